"""Runs trained together give what each gives alone."""

from functools import partial

import pytest
import torch
from torch.utils.data import TensorDataset

from support import data, optim, stacks, sweep, training
from support.records import Store
from support.stacks import LINEAR, Stack, Stacks

SIX = {
    "sgd": [0.03, 0.1],
    "momentum": [0.01, 0.03],
    "adam": [0.0003, 0.003],
    "adagrad": [0.003, 0.01],
    "adadelta": [0.3, 1.0],
    "rmsprop": [0.0003, 0.001],
}


def configuration(**more):
    base = {
        "data": "digits",
        "size": 8,
        "examples": 200,  # the last batch is smaller
        "validation": 150,
        "model": "mlp_bn",
        "optimizer": "sgd",
        "batch": 64,
        "epochs": 2,
        "seed": 0,
        "lr": 0.1,
    }
    return base | more


@pytest.fixture
def doubles(monkeypatch):
    """Digits and networks in float64, so that rounding stays small."""
    plain = data.DATASETS["digits"]

    def converted(root, size):
        return tuple(
            TensorDataset(part.tensors[0].double(), part.tensors[1])
            for part in plain(root, size=size)
        )

    monkeypatch.setitem(data.DATASETS, "digits", converted)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_equal(together, alone, tolerance=1e-7):
    assert len(together) == len(alone)
    for ours, theirs in zip(together, alone, strict=True):
        assert (ours.status, ours.reason) == (theirs.status, theirs.reason)
        assert [row[:3] for row in ours.history] == [row[:3] for row in theirs.history]
        for one, other in zip(ours.history, theirs.history, strict=True):
            assert one[3] == pytest.approx(
                other[3], rel=tolerance, abs=tolerance, nan_ok=True
            )


# --- equal to the ordinary loop ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["mlp", "mlp_bn", "cnn_bn", "deep_mlp"])
@pytest.mark.parametrize("name", SIX)
def test_each_run_of_a_stack_equals_the_ordinary_loop(doubles, name, model):
    few = {"examples": 100, "epochs": 1} if model == "cnn_bn" else {}
    group = [
        configuration(optimizer=name, model=model, lr=lr, seed=seed, **few)
        for lr in SIX[name]
        for seed in (0, 1)
    ]
    assert Stacks().groups(group) == [group]
    assert_equal(Stacks().train(group), [training.train_one(run) for run in group])


@pytest.mark.parametrize("name", sorted(LINEAR - set(SIX)))
def test_the_other_methods_equal_it_too(doubles, name):
    group = [configuration(optimizer=name, lr=lr) for lr in (0.001, 0.003)]
    assert_equal(Stacks().train(group), [training.train_one(run) for run in group])


def test_arms_of_equal_shape_share_a_stack_and_keep_their_order(doubles):
    group = [
        configuration(optimizer=name, lr=lr, seed=seed, weight_decay=decay)
        for lr, seed, decay in [(0.001, 0, 0.0), (0.01, 3, 0.1)]
        for name in SIX
    ]
    group.append(configuration(optimizer="adam", lr=0.01, eps=1e-3))
    assert Stacks().groups(group) == [group]
    assert_equal(Stacks().train(group), [training.train_one(run) for run in group])


def test_runs_with_one_seed_share_their_batches(doubles):
    group = [configuration(lr=lr, seed=5) for lr in (0.01, 0.1)]
    assert_equal(Stacks().train(group), [training.train_one(run) for run in group])


def test_a_step_size_that_is_not_given_is_the_methods_own(doubles):
    group = [configuration(optimizer="adam"), configuration(optimizer="adam", lr=0.01)]
    del group[0]["lr"]
    assert_equal(Stacks().train(group), [training.train_one(run) for run in group])


def test_both_held_out_parts_are_measured(doubles):
    group = [configuration(seed=seed, test=True) for seed in (0, 1)]
    found = Stacks().train(group)
    assert_equal(found, [training.train_one(run) for run in group])
    assert {row[1] for row in found[0].history} == {"train", "validation", "test"}


def test_in_single_precision_the_runs_agree_to_single_precision():
    group = [configuration(seed=seed, epochs=1, lr=0.01) for seed in (0, 1)]
    alone = [training.train_one(run) for run in group]
    assert_equal(Stacks().train(group), alone, tolerance=1e-3)


def test_a_run_that_diverges_ends_as_it_would_alone_and_disturbs_no_other(doubles):
    group = [
        configuration(model="mlp", lr=lr, epochs=3, seed=1) for lr in (0.1, 1e200, 0.03)
    ]
    found = Stacks().train(group)
    assert [run.status for run in found] == ["finished", "diverged", "finished"]
    assert found[1].reason == training.train_one(group[1]).reason
    assert_equal(found[::2], [training.train_one(run) for run in group[::2]])


# --- interruptions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIX)
def test_a_stack_goes_on_from_its_checkpoint_to_the_same_numbers(
    tmp_path, monkeypatch, name
):
    group = [
        configuration(optimizer=name, lr=lr, seed=seed, epochs=4)
        for lr, seed in [(0.01, 0), (0.003, 1), (1e38, 2)]
    ]
    whole = Stacks().train(group)
    file = tmp_path / "checkpoint.pt"
    calls, train_epoch = [], Stack.train_epoch

    def breaks(stack):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train_epoch(stack)

    monkeypatch.setattr(Stack, "train_epoch", breaks)
    with pytest.raises(KeyboardInterrupt):
        Stacks().train(group, file)
    assert file.exists()
    resumed = Stacks().train(group, file)
    assert len(calls) == 5  # two epochs, the broken one, and the two that were left
    assert_equal(resumed, whole, tolerance=0)


# --- which runs fit together ------------------------------------------------------------------------------------


def test_only_runs_of_one_network_and_setting_fit_together():
    runs = [
        configuration(**more)
        for more in [
            {},
            {"seed": 1},
            {"optimizer": "adam"},
            {"model": "mlp"},
            {"batch": 32},
            {"epochs": 3},
            {"examples": 100},
            {"validation": 100},
            {"test": True},
            {"size": 16},
        ]
    ]
    groups = Stacks().groups(runs)
    assert groups == [runs[:3], *([run] for run in runs[3:])]


@pytest.mark.parametrize("name", sorted(set(optim.OPTIMIZERS) - LINEAR))
def test_other_methods_run_alone(name):
    runs = [configuration(optimizer=name, seed=seed) for seed in (0, 1)]
    assert Stacks().groups(runs) == [[runs[0]], [runs[1]]]


def test_a_class_of_the_readers_own_runs_alone_and_the_pages_own_partial_does_not():
    class Mine(torch.optim.SGD):
        pass

    runs = [
        configuration(optimizer=name, seed=seed)
        for name in ("sgd", "momentum", "mine")
        for seed in (0, 1)
    ]
    own = {
        "sgd": Mine,
        "momentum": partial(torch.optim.SGD, momentum=0.9),
        "mine": Mine,
    }
    groups = Stacks(optimizers=own).groups(runs)
    assert sorted(map(len, groups)) == [1, 1, 1, 1, 2]
    own["momentum"] = partial(torch.optim.SGD, momentum=0.5)
    assert max(map(len, Stacks(optimizers=own).groups(runs))) == 1


def test_a_stack_holds_at_most_so_many_runs():
    runs = [configuration(seed=seed) for seed in range(7)]
    assert [len(group) for group in Stacks(together=3).groups(runs)] == [3, 3, 1]
    with pytest.raises(ValueError, match="together must be positive; got 0"):
        Stacks(together=0)


# --- the faster way, chosen by measurement ------------------------------------------------------------------------


@pytest.mark.parametrize(("stack", "alone", "pays"), [(1.9, 1.0, True), (2.1, 1.0, False)])
def test_a_stack_pays_if_it_is_faster_than_its_runs_one_by_one(
    monkeypatch, stack, alone, pays
):
    def seconds(self, epoch):
        epoch()
        return stack if getattr(epoch, "__name__", "") == "train_epoch" else alone

    monkeypatch.setattr(Stacks, "_seconds", seconds)
    group = [configuration(seed=seed) for seed in (0, 1)]
    assert Stacks().pays(group) is pays
    assert not Stacks().pays(group[:1])


def test_the_measurement_is_of_real_steps():
    group = [configuration(seed=seed) for seed in (0, 1)]
    assert Stacks().pays(group) in (True, False)


# --- in a sweep -------------------------------------------------------------------------------------------------


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(Stacks, "pays", lambda self, group: len(group) > 1)


def never(configuration, checkpoint):
    raise AssertionError("this run should not be trained alone")


@pytest.mark.parametrize("where", ["", "processes:2"])
def test_a_sweep_trains_and_records_stacks(tmp_path, monkeypatch, where):
    store = Store(tmp_path)
    runs = [configuration(seed=seed, lr=lr) for seed in (0, 1) for lr in (0.01, 0.1)]
    runs += [configuration(optimizer="lion", lr=0.001)]
    with sweep.executor(where) as pool:
        found = sweep.run(training.train_one, runs, store, pool, stacks=Stacks())
    alone = sweep.run(training.train_one, runs, Store(tmp_path / "alone"))
    assert set(found.runs["run"]) == set(alone.runs["run"])
    assert set(found.runs["status"]) == {"finished"}
    assert len(found.history) == len(alone.history)
    assert not list((tmp_path / ".unfinished").iterdir())
    again = sweep.run(never, runs, store, stacks=Stacks())
    assert len(again.runs) == 5


def test_what_was_trained_together_says_so(tmp_path, always):
    runs = [configuration(seed=seed) for seed in (0, 1, 2)]
    found = sweep.run(never, runs, Store(tmp_path), stacks=Stacks())
    assert found.runs["together"].tolist() == [3, 3, 3]


def test_a_stack_that_cannot_be_trained_is_trained_run_by_run(
    tmp_path, monkeypatch, always
):
    def breaks(self, group, checkpoint=None):
        raise MemoryError("so many do not fit")

    monkeypatch.setattr(Stacks, "train", breaks)
    runs = [configuration(seed=seed, epochs=1) for seed in (0, 1)]
    with pytest.warns(UserWarning, match=r"2 runs could not .*MemoryError: so many"):
        found = sweep.run(training.train_one, runs, Store(tmp_path), stacks=Stacks())
    assert set(found.runs["status"]) == {"finished"}
    assert "together" not in found.runs
    assert not list((tmp_path / ".unfinished").iterdir())


def test_a_search_over_stacks_chooses_what_a_search_of_single_runs_does(tmp_path, always):
    setting = configuration(optimizer="adam", epochs=1, model="mlp")
    del setting["lr"]
    choices = {"lr": [0.0001, 0.001, 0.01]}
    chosen = [
        sweep.search(training.train_one, setting, choices, Store(tmp_path / name), **how)[1]
        for name, how in [("together", {"stacks": Stacks()}), ("alone", {})]
    ]
    assert chosen[0] == chosen[1]


def test_networks_with_random_layers_are_refused_with_a_reason(monkeypatch):
    def dropping(shape, seed):
        return torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(64, 10)
        )

    monkeypatch.setitem(stacks.models.MODELS, "dropping", dropping)
    group = [configuration(model="dropping", seed=seed) for seed in (0, 1)]
    with pytest.raises(RuntimeError, match="random"):
        Stacks().train(group)
