"""The training loop against loops written by hand, and what it does when it is interrupted."""

import contextlib
import errno
import itertools
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from resumable import EPOCHS, STEPS, job
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import TensorDataset

from support import models, training
from support.data import Batches, digits, standardise
from support.models import mlp
from support.records import StoreError
from support.training import Task, evaluate, evaluation, fit, train_epoch, train_one

pytestmark = pytest.mark.usefixtures("untouched_random_state")

# --- the loop by hand -----------------------------------------------------------------------------------------


def _examples(number: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(number, 6, generator=generator, dtype=torch.double)
    return TensorDataset(inputs, torch.randint(3, (number,), generator=generator))


TRAIN, TEST, VALIDATION = _examples(50, 1), _examples(15, 2), _examples(9, 3)


def _model() -> nn.Module:
    return mlp((6,), classes=3, hidden=(5,), seed=0).double()


def _mean_loss(outputs, targets):
    """Cross-entropy, from its definition."""
    return (
        -(outputs.exp() / outputs.exp().sum(1, keepdim=True))[range(len(targets)), targets]
        .log()
        .mean()
    )


def _measured(model, dataset):
    with torch.no_grad():
        outputs = model(dataset.tensors[0])
    right = sum(
        o.argmax() == t for o, t in zip(outputs, dataset.tensors[1], strict=True)
    ).item()
    return {
        "loss": _mean_loss(outputs, dataset.tensors[1]).item(),
        "accuracy": right / len(dataset),
    }


def _sgd(g, p, state, lr, step):
    return p - lr * g


def _momentum(g, p, state, lr, step):
    state["v"] = 0.9 * state.get("v", 0) + g
    return p - lr * state["v"]


def _adam(g, p, state, lr, step):
    g = g + 0.05 * p  # weight decay
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0) + 0.001 * g**2
    return p - lr * state["m"] / (1 - 0.9**step) / (
        (state["v"] / (1 - 0.999**step)).sqrt() + 1e-8
    )


def _by_hand(model, rule, lr, *, epochs, seed, gradient_at=lambda p, g: p):
    """Train by a rule ``(gradient, parameter, state, lr, step) -> parameter``.

    Returns the losses of all steps, the measured values by epoch, split and metric, and all iterates.
    """
    parameters = list(model.parameters())
    states, losses, values, iterates = [{} for _ in parameters], [], {}, []
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(1, epochs + 1):
        total = right = 0
        for chosen in torch.randperm(50, generator=generator).split(8):
            inputs, targets = (tensor[chosen] for tensor in TRAIN.tensors)
            outputs = model(inputs)
            loss = _mean_loss(outputs, targets)
            losses.append(loss.item())
            total += losses[-1] * len(chosen)
            right += (outputs.argmax(1) == targets).sum().item()
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                old = [p.clone() for p in parameters]
                moved = gradient_at(parameters, gradients)
                if moved is not parameters:
                    for p, value in zip(parameters, moved, strict=True):
                        p.copy_(value)
                    with torch.enable_grad():
                        gradients = torch.autograd.grad(
                            _mean_loss(model(inputs), targets), parameters
                        )
                for p, was, g, state in zip(
                    parameters, old, gradients, states, strict=True
                ):
                    p.copy_(rule(g, was, state, lr(epoch), len(losses)))
                iterates.append(nn.utils.parameters_to_vector(parameters).clone())
        measured = {"train": {"loss": total / 50, "accuracy": right / 50}}
        measured |= {
            "test": _measured(model, TEST),
            "validation": _measured(model, VALIDATION),
        }
        values |= {
            (epoch, split, m): v
            for split, some in measured.items()
            for m, v in some.items()
        }
    return losses, values, iterates


def _by_fit(model, optimizer, *, epochs, seed, scheduler=None):
    """Train with ``fit``; returns the loss of all closure calls, the measured values, and the weights."""
    losses = []

    def loss(outputs, targets):
        value = nn.functional.cross_entropy(outputs, targets)
        if torch.is_grad_enabled():
            losses.append(value.item())
        return value

    held_out = {"test": Batches(TEST, 4), "validation": Batches(VALIDATION, 100)}
    task = Task(loss, training.classification.metrics)
    batches = Batches(TRAIN, 8, seed=seed)
    outcome = fit(
        model, optimizer, batches, held_out, epochs=epochs, task=task, scheduler=scheduler
    )
    assert (outcome.status, outcome.reason) == ("finished", "")
    values = {
        (epoch, split, metric): value for epoch, split, metric, value, _ in outcome.history
    }
    assert len(values) == len(outcome.history)
    return losses, values, nn.utils.parameters_to_vector(model.parameters()).detach()


exactly = {"rel": 1e-12, "abs": 1e-12}


@pytest.mark.parametrize(
    ("rule", "build", "halved"),
    [
        (_sgd, lambda p: torch.optim.SGD(p, lr=0.3), False),
        (_momentum, lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9), False),
        (_adam, lambda p: torch.optim.Adam(p, lr=0.3, weight_decay=0.05), False),
        (_momentum, lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9), True),
    ],
    ids=["sgd", "momentum", "adam with weight decay", "momentum with scheduler"],
)
def test_fit_equals_a_loop_written_by_hand(rule, build, halved):
    def lr(epoch):
        return 0.3 * 0.5 ** ((epoch - 1) // 2) if halved else 0.3

    losses, values, iterates = _by_hand(_model(), rule, lr, epochs=5, seed=4)
    model = _model()
    optimizer = build(model.parameters())
    scheduler = lr_scheduler.StepLR(optimizer, 2, gamma=0.5) if halved else None
    ours = _by_fit(model, optimizer, epochs=5, seed=4, scheduler=scheduler)
    assert ours[0] == pytest.approx(losses, **exactly)
    assert ours[1] == pytest.approx(values, **exactly)
    torch.testing.assert_close(ours[2], iterates[-1], rtol=1e-12, atol=1e-12)


class TwoCalls(torch.optim.Optimizer):
    """Sharpness-aware steps: the gradient is taken where the loss rises most, ``rho`` away."""

    def __init__(self, parameters, lr, rho):
        super().__init__(parameters, {"lr": lr, "rho": rho})

    @torch.no_grad()
    def step(self, closure):
        (group,) = self.param_groups
        call = torch.enable_grad()(closure)
        loss = call()
        old = [p.clone() for p in group["params"]]
        norm = math.sqrt(sum((p.grad**2).sum().item() for p in group["params"]))
        for p in group["params"]:
            p += group["rho"] * p.grad / norm
        call()
        for p, was in zip(group["params"], old, strict=True):
            p.copy_(was - group["lr"] * p.grad)
        return loss


def test_an_optimizer_may_call_its_closure_twice_and_the_first_loss_is_recorded():
    def uphill(parameters, gradients):
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        return [p + 0.2 * g / norm for p, g in zip(parameters, gradients, strict=True)]

    losses, values, iterates = _by_hand(
        _model(), _sgd, lambda _: 0.3, epochs=3, seed=4, gradient_at=uphill
    )
    model = _model()
    ours = _by_fit(model, TwoCalls(model.parameters(), lr=0.3, rho=0.2), epochs=3, seed=4)
    assert ours[0][::2] == pytest.approx(losses, **exactly)
    assert (
        min(b - a for a, b in zip(ours[0][::2], ours[0][1::2], strict=True)) > 0.01
    )  # not the second
    assert ours[1] == pytest.approx(values, **exactly)
    torch.testing.assert_close(ours[2], iterates[-1], rtol=1e-12, atol=1e-12)


class Averaging(torch.optim.SGD):
    """Gradient steps whose result is the mean of all iterates."""

    def step(self, closure):
        loss = super().step(closure)
        self.total = [
            a + p.detach() for a, p in zip(self._total(), self._parameters(), strict=True)
        ]
        self.steps = getattr(self, "steps", 0) + 1
        return loss

    def _parameters(self):
        return self.param_groups[0]["params"]

    def _total(self):
        return getattr(self, "total", [0] * len(self._parameters()))

    @contextlib.contextmanager
    def evaluation(self):
        present = [p.detach().clone() for p in self._parameters()]
        self._put([total / self.steps for total in self._total()])
        try:
            yield
        finally:
            self._put(present)

    @torch.no_grad()
    def _put(self, values):
        for p, value in zip(self._parameters(), values, strict=True):
            p.copy_(value)


def test_an_averaging_optimizer_is_evaluated_at_its_average_and_goes_on_from_its_iterate():
    _, values, iterates = _by_hand(_model(), _sgd, lambda _: 0.3, epochs=3, seed=4)
    for epoch in (1, 2, 3):
        averaged = _model()
        nn.utils.vector_to_parameters(
            sum(iterates[: 7 * epoch]) / (7 * epoch), averaged.parameters()
        )
        for split, dataset in {"test": TEST, "validation": VALIDATION}.items():
            for metric, value in _measured(averaged, dataset).items():
                assert metric != "loss" or abs(value - values[epoch, split, metric]) > 1e-3
                values[epoch, split, metric] = value
    model = _model()
    _, ours, weights = _by_fit(
        model, Averaging(model.parameters(), lr=0.3), epochs=3, seed=4
    )
    assert ours == pytest.approx(values, **exactly)
    torch.testing.assert_close(weights, iterates[-1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", [True, False])
def test_evaluation_puts_mode_and_point_back_even_after_an_error(mode):
    model = _model()
    optimizer = Averaging(model.parameters(), lr=0.3)
    train_epoch(model, optimizer, Batches(TRAIN, 8, seed=0))
    model.train(mode)
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()

    def judge():
        with evaluation(model, optimizer):
            assert not model.training
            assert not torch.is_grad_enabled()
            assert not torch.equal(
                nn.utils.parameters_to_vector(model.parameters()), before
            )
            raise KeyError

    with pytest.raises(KeyError):
        judge()
    assert model.training is mode
    assert torch.is_grad_enabled()
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), before)


@pytest.mark.parametrize("mode", [True, False])
def test_evaluate_works_in_evaluation_mode_and_restores_the_mode(mode):
    model = nn.Sequential(nn.Dropout(0.9), _model()).train(mode)
    plain = _measured(model[1].eval(), TEST)
    assert evaluate(model, Batches(TEST, 4)) == pytest.approx(plain, **exactly)
    assert model.training is mode


def test_a_metric_is_a_sum_over_examples_divided_by_their_number():
    task = Task(
        nn.functional.cross_entropy, {"positive": lambda outputs, _: (outputs > 0).sum()}
    )
    model = _model()
    share = (model(TEST.tensors[0]) > 0).sum().item() / 15
    assert 0 < share < 3
    assert evaluate(model, Batches(TEST, 4), task)["positive"] == share


# --- divergence -----------------------------------------------------------------------------------------------


def _explosion(batches: int, held_out: bool, checkpoint: Path | None = None):
    """Minimise w^2 from w = 1 with a step that multiplies w by -10^5: before step k the loss is 10^(10 k)."""
    ones = TensorDataset(torch.ones(2 * batches, 1), torch.zeros(2 * batches, 1))
    model = nn.utils.skip_init(nn.Linear, 1, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=50_000.5)
    train = Batches(ones, 2, seed=0)
    held_out = {"test": Batches(ones, 100)} if held_out else {}
    task = Task(nn.functional.mse_loss)
    return fit(
        model, optimizer, train, held_out, epochs=9, task=task, checkpoint=checkpoint
    )


# float32 ends at 3.4 * 10^38, so that the loss of step 4 is the first that is infinite


def test_an_infinite_loss_on_a_held_out_part_is_a_divergence():
    outcome = _explosion(batches=2, held_out=True)
    assert outcome.status == "diverged"
    assert outcome.reason == "epoch 2: loss on test is not finite"
    assert [row[:3] for row in outcome.history] == [
        (epoch, split, "loss") for epoch in (1, 2) for split in ("train", "test")
    ]
    losses = [(1 + 1e10) / 2, 1e20, (1e20 + 1e30) / 2, math.inf]
    assert [row[3] for row in outcome.history] == pytest.approx(losses, rel=1e-4)


def test_an_infinite_loss_in_training_is_a_divergence():
    outcome = _explosion(batches=3, held_out=False)
    assert (outcome.status, outcome.reason) == (
        "diverged",
        "epoch 2: loss on train is not finite",
    )
    assert [(row[0], row[3]) for row in outcome.history] == [
        (1, pytest.approx((1 + 1e10 + 1e20) / 3, rel=1e-4)),
        (2, math.inf),
    ]


def test_a_huge_step_on_a_network_is_a_divergence_and_no_exception():
    model = mlp((6,), classes=3, seed=0).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e200)
    outcome = fit(
        model, optimizer, Batches(TRAIN, 8, seed=0), {"test": Batches(TEST, 8)}, epochs=20
    )
    assert outcome.status == "diverged"
    assert outcome.reason == "epoch 1: loss on train, test is not finite"
    assert {row[0] for row in outcome.history} == {1}
    losses = [row[3] for row in outcome.history if row[2] == "loss"]
    assert not any(math.isfinite(loss) for loss in losses)


def test_a_diverged_epoch_writes_no_checkpoint(tmp_path):
    first = _explosion(batches=2, held_out=True, checkpoint=tmp_path / "checkpoint.pt")
    assert torch.load(tmp_path / "checkpoint.pt")["epoch"] == 1
    again = _explosion(batches=2, held_out=True, checkpoint=tmp_path / "checkpoint.pt")
    assert [row[:4] for row in again.history] == [row[:4] for row in first.history]
    assert (again.status, again.reason) == (first.status, first.reason)


# --- randomness -----------------------------------------------------------------------------------------------


def _with_dropout(global_seed: int, seed: int):
    model = nn.Sequential(nn.Dropout(0.3), _model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        outcome = fit(
            model,
            optimizer,
            Batches(TRAIN, 8, seed=0),
            {"test": Batches(TEST, 8)},
            epochs=2,
            seed=seed,
        )
        assert torch.equal(torch.get_rng_state(), before)
    return [row[:4] for row in outcome.history]


def test_dropout_depends_on_the_seed_of_fit_alone():
    first = _with_dropout(1, seed=5)
    assert _with_dropout(2, seed=5) == first
    assert _with_dropout(1, seed=6) != first


def test_fit_on_the_processor_does_not_seed_the_accelerator(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", calls.append)
    model = _model()
    fit(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        Batches(TRAIN, 8, seed=0),
        {},
        epochs=1,
    )
    assert calls == []


# --- checkpoints ----------------------------------------------------------------------------------------------


def _without_seconds(outcome):
    return outcome.status, outcome.reason, [row[:4] for row in outcome.history]


def _seconds(outcome):
    """Return the seconds of each epoch; all rows of an epoch must agree."""
    found = {epoch: seconds for epoch, *_, seconds in outcome.history}
    assert all(found[epoch] == seconds for epoch, *_, seconds in outcome.history)
    return list(found.values())


def resumable(path):
    """Start ``resumable.py`` with a checkpoint; it is told on its input where to die."""
    script = str(Path(__file__).with_name("resumable.py"))
    return subprocess.Popen(
        [sys.executable, script, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_run_killed_three_times_gives_exactly_the_numbers_of_an_uninterrupted_one(
    tmp_path,
):
    path = tmp_path / "checkpoint.pt"
    points = [
        f"step {STEPS + 20}",
        f"step {2 * STEPS + 7}",
        "save 2",
    ]  # each from its own start
    epochs, files = [], []
    with resumable(path) as process:
        whole, whole_model = job()  # meanwhile the other process imports torch
        for point in points:
            print(point, file=process.stdin, flush=True)
            where, number = process.stdout.readline().split()
            assert where == "stopped"
            os.kill(int(number), signal.SIGKILL)
            assert process.stdout.readline() == f"ended by {int(signal.SIGKILL)}\n"
            epochs.append(torch.load(path)["epoch"])
            files.append(len(os.listdir(tmp_path)))
        process.stdin.close()
    assert epochs == [1, 3, 4]  # the fifth was complete but not in its place
    assert files == [1, 1, 2]

    resumed, resumed_model = job(path)
    assert _without_seconds(resumed) == _without_seconds(whole)
    assert {row[0] for row in resumed.history} == set(range(1, EPOCHS + 1))
    for ours, theirs in zip(
        resumed_model.parameters(), whole_model.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert all(a < b for a, b in itertools.pairwise(_seconds(resumed)))


OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True, weight_decay=1e-3),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, centered=True, momentum=0.5),
}
SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "milestones": lambda o: lr_scheduler.MultiStepLR(o, [1, 3], 0.5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "function": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)],
        [2],
    ),
}


def _train(
    epochs,
    checkpoint=None,
    optimizer="momentum",
    scheduler="step",
    task=training.classification,
):
    def single(part):
        return TensorDataset(part.tensors[0].float(), part.tensors[1])

    model = nn.Sequential(nn.Dropout(0.2), nn.BatchNorm1d(6), _model()).float()
    method = OPTIMIZERS[optimizer](model.parameters())
    outcome = fit(
        model,
        method,
        Batches(single(TRAIN), 8, seed=0),
        {"test": Batches(single(TEST), 8)},
        epochs=epochs,
        task=task,
        scheduler=SCHEDULERS[scheduler](method),
        seed=1,
        checkpoint=checkpoint,
    )
    return outcome, model.state_dict(), method.param_groups[0]["lr"]


@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [("momentum", s) for s in SCHEDULERS]
    + [(o, "step") for o in OPTIMIZERS if o != "momentum"],
)
def test_every_state_of_optimizer_and_scheduler_is_taken_up_again(
    tmp_path, optimizer, scheduler
):
    whole, weights, lr = _train(5, None, optimizer, scheduler)
    for epochs in (2, 3, 5):
        resumed, again, lr_again = _train(
            epochs, tmp_path / "checkpoint.pt", optimizer, scheduler
        )
    assert _without_seconds(resumed) == _without_seconds(whole)
    assert lr_again == lr
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_a_checkpoint_of_the_last_epoch_gives_the_outcome_without_training(
    tmp_path, monkeypatch
):
    first, weights, _ = _train(2, tmp_path / "checkpoint.pt")
    monkeypatch.delattr(training, "train_epoch")
    again, restored, _ = _train(2, tmp_path / "checkpoint.pt")
    assert again == first
    assert all(torch.equal(weights[name], restored[name]) for name in weights)


def test_resuming_leaves_the_global_random_state_alone(tmp_path):
    _train(1, tmp_path / "checkpoint.pt")
    before = torch.get_rng_state()
    _train(2, tmp_path / "checkpoint.pt")
    assert torch.equal(torch.get_rng_state(), before)


def test_seconds_count_training_alone_and_not_the_time_between_two_processes(
    tmp_path, monkeypatch
):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def loss(outputs, targets):
        clock.now += 1 if torch.is_grad_enabled() else 500
        return nn.functional.cross_entropy(outputs, targets)

    task = Task(loss)
    path = tmp_path / "checkpoint.pt"
    first, *_ = _train(2, path, task=task)
    clock.now = 5.0  # a new process: its clock starts anywhere
    second, *_ = _train(4, path, task=task)
    assert _seconds(first) == [7, 14]  # one second for each of the seven batches
    assert _seconds(second) == [7, 14, 21, 28]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["save", "replace"])
def test_a_crash_while_the_checkpoint_is_written_leaves_the_old_one_whole(
    tmp_path, monkeypatch, where, error
):
    path = tmp_path / "checkpoint.pt"
    _train(1, path)
    before = path.read_bytes()

    def half(_, file):
        file.write(b"PK")
        raise error

    def not_at_all(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(
            *((torch, "save", half) if where == "save" else (os, "replace", not_at_all))
        )
        with pytest.raises(type(error)):
            _train(3, path)
    assert os.listdir(tmp_path) == ["checkpoint.pt"]
    assert path.read_bytes() == before
    assert _without_seconds(_train(3, path)[0]) == _without_seconds(_train(3)[0])


def test_a_run_killed_while_its_checkpoint_is_copied_goes_on_from_it(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with resumable(path) as process:
        print("tear 3", file=process.stdin, flush=True)
        whole, whole_model = job()
        os.kill(int(process.stdout.readline().removeprefix("stopped")), signal.SIGKILL)
        assert process.stdout.readline() == f"ended by {int(signal.SIGKILL)}\n"
        process.stdin.close()
    with pytest.raises((OSError, RuntimeError)):
        torch.load(path)
    assert training.saved(path)["epoch"] == 3
    resumed, model = job(path)
    assert _without_seconds(resumed) == _without_seconds(whole)
    for ours, theirs in zip(model.parameters(), whole_model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert training.saved(path)["epoch"] == EPOCHS


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EEXIST, errno.EIO])
def test_where_files_cannot_be_replaced_a_checkpoint_is_copied(
    tmp_path, monkeypatch, number
):
    def never(*_):
        raise OSError(number, "not here")

    path = tmp_path / "checkpoint.pt"
    monkeypatch.setattr(os, "replace", never)
    for epochs in (1, 3):
        _train(epochs, path)
        assert os.listdir(tmp_path) == ["checkpoint.pt"]
        assert torch.load(path)["epoch"] == epochs
    assert _without_seconds(_train(4, path)[0]) == _without_seconds(_train(4)[0])


def test_where_the_copy_of_a_checkpoint_finds_no_room_the_run_goes_on_from_it(
    tmp_path, monkeypatch
):
    def never(*_):
        raise OSError(errno.ENOSYS, "not here")

    def full(source, target):
        target.write(source.read(100))
        raise OSError(errno.ENOSPC, "no space")

    path = tmp_path / "checkpoint.pt"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", never)
        _train(1, path)
        patch.setattr(training.shutil, "copyfileobj", full)
        with pytest.raises(StoreError, match="No space left on device"):
            _train(2, path)
    assert training.saved(path)["epoch"] == 2
    assert _without_seconds(_train(3, path)[0]) == _without_seconds(_train(3)[0])


def test_a_checkpoint_beside_another_of_a_longer_name_is_not_taken_for_it(tmp_path):
    _train(2, tmp_path / "run10")
    assert training.saved(tmp_path / "run1") is None
    assert training.saved(None) is None
    assert training.saved(tmp_path / "run10")["epoch"] == 2


# --- from a configuration -------------------------------------------------------------------------------------

SETTING = {"data": "digits", "size": 8, "model": "mlp", "batch": 64, "epochs": 2, "seed": 3}


def _assembled(train, held_out, name, optimizer):
    """Train on these pictures and classes after standardising, all put together by hand."""
    mean, deviation = train[0].mean(), train[0].std(correction=0)
    parts = [
        TensorDataset((pictures - mean) / deviation, classes)
        for pictures, classes in (train, held_out)
    ]
    model = mlp((1, 8, 8), seed=3)
    batches = Batches(parts[0], 64, seed=3)
    outcome = fit(
        model,
        optimizer(model.parameters()),
        batches,
        {name: Batches(parts[1], 360)},
        epochs=2,
        seed=3,
    )
    return {row[:3]: row[3] for row in outcome.history}


def _taken(dataset, indices):
    return tuple(tensor[indices] for tensor in dataset.tensors)


def _order(number):
    return torch.randperm(number, generator=torch.Generator().manual_seed(0))


def test_train_one_without_validation_learns_from_all_and_evaluates_the_test_part():
    configuration = SETTING | {
        "validation": 0,
        "optimizer": "adam",
        "lr": 1e-3,
        "weight_decay": 0.1,
    }
    ours = {row[:3]: row[3] for row in train_one(configuration).history}
    train, test = digits()
    theirs = _assembled(
        train.tensors,
        test.tensors,
        "test",
        lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=0.1),
    )
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_train_one_holds_a_validation_part_out_and_learns_from_so_many_examples():
    configuration = SETTING | {
        "validation": 200,
        "examples": 500,
        "optimizer": "momentum",
        "lr": 0.02,
    }
    ours = {row[:3]: row[3] for row in train_one(configuration).history}
    train, _ = digits()
    order = _order(1437)
    validation, rest = order[:200], order[200:]
    theirs = _assembled(
        _taken(train, rest[_order(1237)[:500]]),
        _taken(train, validation),
        "validation",
        lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    )
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_train_one_passes_its_seed_to_dropout(monkeypatch):
    def with_dropout(shape, seed):
        return nn.Sequential(nn.Dropout(0.5), mlp(shape, hidden=(), seed=seed))

    monkeypatch.setitem(models.MODELS, "with dropout", with_dropout)
    configuration = SETTING | {
        "model": "with dropout",
        "validation": 0,
        "optimizer": "sgd",
        "lr": 0.1,
    }
    train, test = standardise(*digits())
    model = with_dropout((1, 8, 8), seed=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    held_out = {"test": Batches(test, 1000)}
    theirs = fit(model, optimizer, Batches(train, 64, seed=3), held_out, epochs=2, seed=3)
    assert _without_seconds(train_one(configuration)) == _without_seconds(theirs)


def test_train_one_takes_a_readers_own_optimizer():
    built = []

    def own(parameters, **hyper):
        built.append(hyper)
        return torch.optim.SGD(parameters, lr=0)

    configuration = SETTING | {
        "validation": 0,
        "optimizer": "own",
        "lr": 7,
        "warm": True,
        "epochs": 1,
    }
    train_one(configuration, optimizers={"own": own})
    assert built == [{"lr": 7, "warm": True}]


def test_train_one_resumes_from_its_checkpoint(tmp_path):
    configuration = SETTING | {"validation": 0, "optimizer": "momentum", "lr": 0.02}
    train_one(configuration | {"epochs": 1}, tmp_path / "checkpoint.pt")
    resumed = train_one(configuration, tmp_path / "checkpoint.pt")
    assert _without_seconds(resumed) == _without_seconds(train_one(configuration))
