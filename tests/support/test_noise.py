"""The laws have mean 0 and variance 1, and are the laws that they are called."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from support import noise

LAWS = [
    (noise.gaussian(), stats.norm()),
    (noise.student(2.5), stats.t(2.5)),
    (noise.student(8.0), stats.t(8.0)),
    (noise.weibull(0.5), stats.weibull_min(0.5)),
    (noise.weibull(2.0), stats.weibull_min(2.0)),
    (noise.burr(1.0, 2.5), stats.burr12(1.0, 2.5)),
    (noise.burr(2.0, 3.0), stats.burr12(2.0, 3.0)),
    (noise.log_normal(1.0), stats.lognorm(1.0)),
    (noise.log_normal(0.3), stats.lognorm(0.3)),
]
each_law = pytest.mark.parametrize(("law", "reference"), LAWS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@each_law
def test_mean_and_variance_are_those_of_the_law(law, reference):
    mean, variance = reference.stats("mv")
    assert law.mean == pytest.approx(float(mean), abs=1e-12)
    assert law.variance == pytest.approx(float(variance), rel=1e-9)


@each_law
def test_draws_have_the_distribution_of_the_law(law, reference):
    draws = law((20_000,), generator()).numpy()
    raw = draws * math.sqrt(law.variance) + law.mean
    assert stats.kstest(raw, reference.cdf).pvalue > 1e-3


@each_law
def test_the_tail_index_tells_which_moments_exist(law, reference):
    if math.isinf(law.tail_index):
        assert np.isfinite(reference.moment(4))
    else:  # P(|X| > x) falls like x to the power of minus the index
        far = np.array([1e4, 1e6])
        beyond = reference.sf(far) + reference.cdf(-far)
        slope = np.diff(np.log(beyond)) / np.diff(np.log(far))
        assert slope == pytest.approx(-law.tail_index, rel=1e-2)


@each_law
def test_draws_are_double_finite_and_repeatable(law, reference):
    draws = law((1000, 3), generator(5))
    assert draws.dtype == torch.float64
    assert draws.shape == (1000, 3)
    assert draws.isfinite().all()
    assert torch.equal(draws, law((1000, 3), generator(5)))
    assert not torch.equal(draws, law((1000, 3), generator(6)))


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53])
def test_the_ends_of_the_uniform_numbers_are_harmless(monkeypatch, draw):
    ends = lambda shape, **_: torch.full(shape, draw, dtype=torch.float64)  # noqa: E731
    monkeypatch.setattr(torch, "rand", ends)
    for law, _ in LAWS[1:7]:
        assert law((2,), generator()).isfinite().all()


@pytest.mark.parametrize(
    ("build", "arguments", "named"),
    [
        (noise.student, (2.0,), "degrees"),
        (noise.student, (math.nan,), "degrees"),
        (noise.weibull, (0.0,), "shape"),
        (noise.burr, (1.0, 2.0), "product above 2"),
        (noise.burr, (-1.0, -3.0), "positive"),
        (noise.log_normal, (-1.0,), "spread"),
    ],
)
def test_laws_without_a_variance_are_refused(build, arguments, named):
    with pytest.raises(ValueError, match=named):
        build(*arguments)
