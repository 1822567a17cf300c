"""Schedules (M54-M57, erratum KU-21) and the snapshots before their rises."""

import io
import math

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from support.optim import SAM, SCHEDULES, ClippedSGD, ClippedSSTM, Snapshots

pytestmark = pytest.mark.usefixtures("untouched_random_state")


def _sgd(lr: float = 0.4) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


def _rates(scheduler, number: int) -> list[float]:
    rates = []
    for _ in range(number):
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def test_schedules_are_torchs():
    assert {
        "exponential": lr_scheduler.ExponentialLR,
        "piecewise": lr_scheduler.MultiStepLR,
        "cosine": lr_scheduler.CosineAnnealingLR,
        "restarts": lr_scheduler.CosineAnnealingWarmRestarts,
    } == SCHEDULES


def test_exponential_schedule_is_a_geometric_sequence():
    rates = _rates(SCHEDULES["exponential"](_sgd(0.1), gamma=0.9), 30)
    assert rates == pytest.approx([0.1 * 0.9**t for t in range(30)], rel=1e-12)


def test_piecewise_schedule_falls_after_the_step_a():
    first, second, A = 0.4, 0.03, 7
    scheduler = SCHEDULES["piecewise"](
        _sgd(first), milestones=[A + 1], gamma=second / first
    )
    expected = [first if t <= A else second for t in range(20)]
    assert _rates(scheduler, 20) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("least", [0.0, 0.05])
@pytest.mark.parametrize("J", [1, 2, 20])
def test_cosine_schedule_counts_from_zero_as_erratum_ku_21_says(J, least):
    most = 0.4
    rates = _rates(SCHEDULES["cosine"](_sgd(most), T_max=J, eta_min=least), J)
    expected = [
        least + (most - least) / 2 * (1 + math.cos(j / J * math.pi)) for j in range(J)
    ]
    assert rates == pytest.approx(expected, rel=1e-12)
    assert rates[0] == most
    assert rates[-1] > least


def test_mean_step_of_the_cosine_schedule_is_that_of_the_erratum():
    rates = _rates(SCHEDULES["cosine"](_sgd(1.0), T_max=20), 20)
    assert sum(rates) / 20 == pytest.approx(0.525)


def _restarts(
    most: float, least: float, first: int, factor: int, number: int
) -> list[float]:
    """Return the rates of cycles of first, factor * first, ... steps."""
    rates, length = [], first
    while len(rates) < number:
        rates += [
            least + (most - least) / 2 * (1 + math.cos(j / length * math.pi))
            for j in range(length)
        ]
        length *= factor
    return rates[:number]


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_restarts_repeat_the_cosine(factor):
    scheduler = SCHEDULES["restarts"](_sgd(0.4), T_0=3, T_mult=factor, eta_min=0.01)
    expected = _restarts(0.4, 0.01, 3, factor, 40)
    assert _rates(scheduler, 40) == pytest.approx(expected, rel=1e-12)


# --- snapshots ------------------------------------------------------------------------------------------------

INPUTS = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
CYCLES = {"T_0": 3, "T_mult": 2}  # the rate rises after 3, 9 and 21 steps
RISES = [3, 9, 21]
OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
    "average": lambda ps: ClippedSGD(ps, lr=0.1, level=1.0, average=True),
    "sstm": lambda ps: ClippedSSTM(ps, L=5.0, B=1.0),
    "sam": lambda ps: SAM(torch.optim.SGD(ps, lr=0.1)),
    "sam of sstm": lambda ps: SAM(ClippedSSTM(ps, L=5.0, B=1.0)),
}
optimizers = pytest.mark.parametrize("name", OPTIMIZERS)


class _Job:
    def __init__(self, name: str) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(1)
            self.model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.optimizer = OPTIMIZERS[name](self.model.parameters())
        self.snapshots = Snapshots(
            SCHEDULES["restarts"](self.optimizer, **CYCLES), self.model
        )

    def epoch(self) -> None:
        def closure():
            self.optimizer.zero_grad()
            value = self.model(INPUTS).exp().mean()
            value.backward()
            return value

        self.optimizer.step(closure)

    def shown(self) -> dict[str, torch.Tensor]:
        if isinstance(self.optimizer, torch.optim.SGD):
            return self._copied()
        with self.optimizer.evaluation():
            return self._copied()

    def _copied(self) -> dict[str, torch.Tensor]:
        return {key: value.clone() for key, value in self.model.state_dict().items()}


def _assert_same_states(found, expected):
    assert len(found) == len(expected)
    for f, e in zip(found, expected, strict=True):
        assert f.keys() == e.keys()
        assert all(torch.equal(f[key], e[key]) for key in e)


@optimizers
def test_snapshots_are_what_the_optimizer_shows_before_each_rise_of_the_rate(name):
    job, expected = _Job(name), []
    for epoch in range(1, 23):
        job.epoch()
        before, shown = job._copied(), job.shown()
        expected += [shown] if epoch in RISES else []
        job.snapshots.step()
        _assert_same_states([job._copied()], [before])
        _assert_same_states(job.snapshots.states, expected)
    assert len(expected) == len(RISES)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(expected[0].values(), expected[1].values(), strict=True)
    )


def test_snapshots_differ_from_the_iterate_where_the_optimizer_shows_another_point():
    job = _Job("sstm")
    for _ in range(3):
        job.epoch()
        job.snapshots.step()
    (state,) = job.snapshots.states
    assert not torch.equal(state["0.weight"], job.model.state_dict()["0.weight"])


def test_falling_rates_leave_no_snapshot():
    job = _Job("sgd")
    snapshots = Snapshots(lr_scheduler.StepLR(job.optimizer, 2, gamma=0.5), job.model)
    for _ in range(10):
        job.epoch()
        snapshots.step()
    assert snapshots.states == []


def test_a_rise_of_one_group_is_enough():
    model = _Job("sgd").model
    optimizer = torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.1)
    rates = [lambda t: 0.9**t] * 3 + [lambda t: 2.0 if t == 4 else 1.0]
    snapshots = Snapshots(lr_scheduler.LambdaLR(optimizer, rates), model)
    for t in range(1, 7):
        optimizer.step()
        snapshots.step()
        assert len(snapshots.states) == (t >= 4)


@optimizers
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 8, 9, 10])
def test_a_restored_run_goes_on_with_the_right_step_and_keeps_its_snapshots(name, stop):
    whole, first, second = _Job(name), _Job(name), _Job(name)
    rates = []
    for _ in range(22):
        whole.epoch()
        whole.snapshots.step()
        rates.append([group["lr"] for group in whole.optimizer.param_groups])
    for _ in range(stop):
        first.epoch()
        first.snapshots.step()
    file = io.BytesIO()
    parts = ("model", "optimizer", "snapshots")
    torch.save({part: getattr(first, part).state_dict() for part in parts}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    for part in parts:
        getattr(second, part).load_state_dict(saved[part])
    assert [group["lr"] for group in second.optimizer.param_groups] == rates[stop - 1]
    for epoch in range(stop, 22):
        second.epoch()
        second.snapshots.step()
        assert [group["lr"] for group in second.optimizer.param_groups] == rates[epoch]
    _assert_same_states(second.snapshots.states, whole.snapshots.states)
    _assert_same_states([second._copied()], [whole._copied()])


def test_a_saved_state_does_not_change_with_the_run():
    job = _Job("sgd")
    for _ in range(4):
        job.epoch()
        job.snapshots.step()
    saved = job.snapshots.state_dict()
    expected = _Job("sgd")
    expected.snapshots.load_state_dict(saved)
    before = [dict(state) for state in expected.snapshots.states]
    for _ in range(10):
        job.epoch()
        job.snapshots.step()
    restored = _Job("sgd")
    restored.snapshots.load_state_dict(saved)
    _assert_same_states(restored.snapshots.states, before)
    assert len(job.snapshots.states) == 2
