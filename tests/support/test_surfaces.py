"""The test surfaces against finite differences and what is known about them, and paths against plain loops."""

from functools import partial

import numpy as np
import pytest
import torch

from support import surfaces
from support.surfaces import Surface, descend, double_well, ravine

SURFACES = [
    ravine(),
    ravine(1),
    double_well(),
    double_well(0),
    surfaces.rosenbrock,
    surfaces.himmelblau,
]


def name(surface):
    return surface.name


@pytest.mark.parametrize("surface", [*SURFACES, surfaces.saddle], ids=name)
def test_the_gradient_is_that_of_finite_differences(surface):
    points = torch.randn(
        20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    steps = 1e-6 * torch.eye(2, dtype=torch.float64)
    differences = [
        (surface(points + step) - surface(points - step)) / 2e-6 for step in steps
    ]
    assert torch.allclose(surface.gradient(points), torch.stack(differences, -1), atol=1e-5)


@pytest.mark.parametrize("surface", SURFACES, ids=name)
def test_minima_are_minima_in_the_domain_the_lowest_first(surface):
    (left, right), (bottom, top) = surface.domain
    minima = torch.tensor(surface.minima, dtype=torch.float64)
    assert torch.allclose(surface.gradient(minima), torch.zeros_like(minima), atol=1e-4)
    for x, y in minima:
        assert left < x < right
        assert bottom < y < top
        assert (torch.linalg.eigvalsh(surface.hessian(torch.stack([x, y]))) > 0).all()
    values = surface(minima)
    assert (values.diff() > -1e-9).all()


def test_there_is_no_lower_point_than_the_first_minimum():
    for surface in SURFACES:
        (left, right), (bottom, top) = surface.domain
        x, y = np.meshgrid(np.linspace(left, right, 300), np.linspace(bottom, top, 300))
        lowest = surface(torch.tensor(np.stack([x, y], -1))).min()
        assert (
            lowest >= surface(torch.tensor(surface.minima[0], dtype=torch.float64)) - 1e-9
        )


def test_a_ravine_has_the_curvatures_that_it_says():
    hessian = ravine(50).hessian(torch.tensor([0.3, -0.2], dtype=torch.float64))
    assert torch.equal(hessian, torch.diag(torch.tensor([1.0, 50.0], dtype=torch.float64)))


def test_the_saddle_has_one_falling_direction():
    hessian = surfaces.saddle.hessian(torch.zeros(2, dtype=torch.float64))
    assert torch.linalg.eigvalsh(hessian).sign().tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("build", "argument"),
    [(ravine, 0.5), (ravine, float("nan")), (double_well, -0.1), (double_well, 1.6)],
)
def test_what_makes_no_such_surface_is_an_error(build, argument):
    with pytest.raises(ValueError, match=str(argument)):
        build(argument)


@pytest.mark.parametrize(
    ("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)]
)
def test_a_path_is_that_of_a_plain_loop(momentum, nesterov):
    method = partial(torch.optim.SGD, lr=1e-3, momentum=momentum, nesterov=nesterov)
    path = descend(surfaces.himmelblau, (0.5, -1.0), method, 50)
    point, velocity = torch.tensor([0.5, -1.0], dtype=torch.float64), 0.0
    assert path.shape == (51, 2)
    assert path.dtype == torch.float64
    for step in range(51):
        assert torch.allclose(path[step], point, rtol=0, atol=1e-12)
        slope = surfaces.himmelblau.gradient(point)
        velocity = momentum * velocity + slope
        point = point - 1e-3 * (slope + momentum * velocity if nesterov else velocity)


def test_a_path_that_diverges_is_recorded_and_not_raised():
    path = descend(surfaces.rosenbrock, (-1.5, 2.0), partial(torch.optim.SGD, lr=1.0), 20)
    assert path.shape == (21, 2)
    assert not path.isfinite().all()
    assert path[0].isfinite().all()


def test_any_function_of_any_dimension_can_be_descended():
    start = torch.ones(5)
    path = descend(lambda x: (x**2).sum() / 2, start, partial(torch.optim.SGD, lr=0.5), 3)
    assert torch.equal(path[-1], torch.full((5,), 0.125, dtype=torch.float64))
    assert torch.equal(start, torch.ones(5)), "the start is left as it was"


def test_a_surface_takes_points_of_any_leading_shape():
    flat = Surface("sum", "x + y", lambda points: points.sum(-1), ((0, 1), (0, 1)))
    assert flat(torch.ones(3, 4, 2)).shape == (3, 4)
    assert flat.gradient(torch.ones(3, 4, 2)).shape == (3, 4, 2)
