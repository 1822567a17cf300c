"""Lists of configurations, and running each of them once."""

import functools
import importlib.util
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import torch

import support
from support import sweep, training
from support.records import Outcome, Records, Store, StoreError, identity
from support.sweep import (
    DEATHS,
    Renewable,
    best,
    environment,
    executor,
    fingerprint,
    grid,
    run,
    search,
    widen,
)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


class Recorder:
    """Stands for training: counts its calls, and gives ``value(configuration)`` as accuracy of epoch 2."""

    def __init__(self, value=lambda _: 0.5, status="finished"):
        self.value, self.status, self.calls, self.checkpoints = value, status, [], []

    def __call__(self, configuration, *, checkpoint):
        self.calls.append(dict(configuration))
        self.checkpoints.append(checkpoint)
        value = self.value(configuration)
        rows = [
            (1, "validation", "accuracy", 1 - value, 1.0),
            (2, "validation", "accuracy", value, 2.0),
        ]
        return Outcome(self.status, rows)


def _breaks(configuration):
    if configuration["lr"] == 2:
        raise ZeroDivisionError("two is too much")
    return configuration["lr"]


# --- grids ----------------------------------------------------------------------------------------------------


def test_a_grid_is_all_combinations_the_last_name_fastest():
    assert grid(optimizer=["sgd", "adam"], epochs=3, lr=(0.1, 0.2)) == [
        {"optimizer": "sgd", "epochs": 3, "lr": 0.1},
        {"optimizer": "sgd", "epochs": 3, "lr": 0.2},
        {"optimizer": "adam", "epochs": 3, "lr": 0.1},
        {"optimizer": "adam", "epochs": 3, "lr": 0.2},
    ]
    assert list(grid(b=1, a=2)[0]) == ["b", "a"]


def test_a_single_value_stands_for_itself():
    assert grid(name="abc", none=None, yes=True) == [
        {"name": "abc", "none": None, "yes": True}
    ]
    assert grid() == [{}]
    assert grid(lr=[]) == []


# --- running --------------------------------------------------------------------------------------------------


def test_run_trains_each_configuration_and_gives_its_records(store):
    train = Recorder(lambda c: c["lr"] / 8)
    found = run(train, grid(lr=[1, 2], seed=[0, 1]), store)
    assert train.calls == grid(lr=[1, 2], seed=[0, 1])
    last = found.metric("validation", "accuracy").query("epoch == 2")
    assert sorted(last[["lr", "seed", "value"]].values.tolist()) == [
        [lr, seed, lr / 8] for lr in (1, 2) for seed in (0, 1)
    ]
    assert set(found.runs["status"]) == {"finished"}
    assert set(environment()) < set(found.runs)
    assert [path.name for path in train.checkpoints] == ["checkpoint.pt"] * 4
    assert len({path.parent for path in train.checkpoints}) == 4


def test_what_the_store_holds_is_not_run_again(store):
    run(Recorder(), grid(lr=[1, 2]), store)
    train = Recorder(lambda _: 0.75)
    found = run(train, grid(lr=[1.0, 2, 3]), store)
    assert train.calls == [{"lr": 3}]
    assert len(found.runs) == 3


def test_run_gives_only_what_was_asked_for(store):
    run(Recorder(), grid(lr=[1, 2]), store)
    found = run(Recorder(), grid(lr=[2]), store)
    assert found.runs["lr"].tolist() == [2]
    assert set(found.history["run"]) == {identity({"lr": 2})}
    assert run(Recorder(), [], store).runs.empty


def test_what_is_known_from_elsewhere_is_not_run(store, tmp_path):
    known = run(Recorder(lambda _: 0.25), grid(lr=[1, 2, 9]), Store(tmp_path / "known"))
    train = Recorder(lambda _: 0.75)
    found = run(train, grid(lr=[1, 2, 3]), store, known=known)
    assert train.calls == [{"lr": 3}]
    last = (
        found.metric("validation", "accuracy").query("epoch == 2").set_index("lr")["value"]
    )
    assert last.to_dict() == {1: 0.25, 2: 0.25, 3: 0.75}
    assert len(store.load().runs) == 1


def test_what_occurs_twice_is_run_once(store):
    train = Recorder()
    again = [{"lr": 1, "seed": 0}, {"seed": 0, "lr": 1.0}, {"lr": 1, "seed": 0}]
    assert len(run(train, again, store).runs) == 1
    assert len(train.calls) == 1


def test_a_run_that_raises_is_recorded_with_its_reason_and_the_others_go_on(store):
    found = run(Recorder(_breaks), grid(lr=[1, 2, 3]), store).runs.set_index("lr")
    assert found["status"].to_dict() == {1: "finished", 2: "failed", 3: "finished"}
    line = _breaks.__code__.co_firstlineno + 2
    assert (
        found.loc[2, "reason"]
        == f"ZeroDivisionError: two is too much (test_sweep.py:{line})"
    )
    assert found.loc[[1, 3], "reason"].tolist() == ["", ""]
    assert found.loc[2, "threads"] == 1


def test_what_failed_is_run_again_only_if_asked(store):
    run(Recorder(_breaks), grid(lr=[1, 2]), store)
    train = Recorder(lambda _: 0.75)
    run(train, grid(lr=[1, 2]), store)
    assert train.calls == []
    found = run(train, grid(lr=[1, 2]), store, retry_failed=True)
    assert train.calls == [{"lr": 2}]
    assert found.runs["status"].tolist() == ["finished", "finished"]
    run(train, grid(lr=[1, 2]), store, retry_failed=True)
    assert len(train.calls) == 1


def test_a_divergence_is_a_result_and_is_not_retried(store):
    run(Recorder(status="diverged"), grid(lr=[1]), store)
    train = Recorder()
    assert run(train, grid(lr=[1]), store, retry_failed=True).runs["status"].tolist() == [
        "diverged"
    ]
    assert train.calls == []


def test_an_interruption_stops_the_sweep_and_keeps_what_is_done_and_the_checkpoint(store):
    def interrupted(configuration, *, checkpoint):
        checkpoint.write_text("half-way")
        if configuration["lr"] == 2:
            raise KeyboardInterrupt
        return Outcome("finished", [])

    with pytest.raises(KeyboardInterrupt):
        run(interrupted, grid(lr=[1, 2, 3]), store)
    assert [configuration in store for configuration in grid(lr=[1, 2, 3])] == [
        True,
        False,
        False,
    ]
    assert store.checkpoint({"lr": 2}).read_text() == "half-way"
    assert not store.checkpoint({"lr": 1}).exists()


def test_a_bad_value_is_refused_before_anything_is_run(store):
    train = Recorder()
    with pytest.raises(ValueError, match="got lr=nan"):
        run(train, [{"lr": 1}, {"lr": math.nan}], store)
    assert train.calls == []


def test_any_executor_will_do(store):
    train = Recorder(_breaks)
    with ThreadPoolExecutor(3) as pool:
        found = run(train, grid(lr=[0, 1, 2, 3]), store, pool)
    assert sorted(call["lr"] for call in train.calls) == [0, 1, 2, 3]
    assert found.runs.set_index("lr")["status"].to_dict() == {
        0: "finished",
        1: "finished",
        2: "failed",
        3: "finished",
    }


@pytest.mark.parametrize("hidden", ["0", "1"])
def test_the_variable_hides_the_progress_bar(store, monkeypatch, capsys, hidden):
    monkeypatch.setenv("SUPPORT_PROGRESS", hidden)
    run(Recorder(), grid(lr=[1, 2, 3]), store)
    assert ("3/3" in capsys.readouterr().out) == (hidden == "1")
    run(Recorder(), grid(lr=[1, 2, 3]), store)
    assert capsys.readouterr().out == ""


# --- executors ------------------------------------------------------------------------------------------------


def test_no_executor_is_this_process():
    with executor("") as pool:
        assert pool is None


def test_processes_give_the_same_numbers_as_this_process(tmp_path):
    setting = {
        "data": "digits",
        "size": 8,
        "validation": 200,
        "model": "mlp",
        "batch": 100,
        "epochs": 2,
    }
    configurations = grid(**setting, optimizer="adam", lr=[1e-3, 1e-2], seed=[0, 1])
    here = run(training.train_one, configurations, Store(tmp_path / "here"))
    with executor("processes:2") as pool:
        there = run(training.train_one, configurations, Store(tmp_path / "there"), pool)
    assert set(there.runs["threads"]) == set(here.runs["threads"]) == {1}
    keys = ["run", "epoch", "split", "metric"]
    ours, theirs = (
        r.history.sort_values(keys).reset_index(drop=True) for r in (here, there)
    )
    assert len(ours) == 4 * 2 * 4
    pd.testing.assert_frame_equal(
        ours[[*keys, "value"]], theirs[[*keys, "value"]], check_exact=True
    )


@pytest.mark.parametrize(
    "where",
    [
        "processes",
        "processes:",
        "processes:0",
        "processes:-1",
        "processes:x",
        "threads:2",
        "2",
        " ",
    ],
)
def test_other_executors_are_refused(where):
    with pytest.raises(ValueError, match=f"got {where!r}"), executor(where):
        pass


@pytest.mark.parametrize("where", ["tcp:", "tcp:127.0.0.1:1", "http://127.0.0.1:1"])
def test_what_is_no_address_of_a_scheduler_is_refused(where):
    with pytest.raises(ValueError, match='such as "tcp://'), executor(where):
        pass


def test_without_dask_a_cluster_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"pip install .descent-lectures\[cluster\]"):
        executor("tcp://127.0.0.1:1").__enter__()


# --- executors that break -------------------------------------------------------------------------------------


class Here(Executor):
    """Runs what is submitted at once, in this process, unless ``breaks`` raises."""

    def __init__(self, breaks=lambda group: None):
        self.breaks, self.opened, self.groups = breaks, 0, []

    def __enter__(self):
        self.opened += 1
        return self

    def submit(self, function, /, *values):
        future = Future()
        self.groups.append([chosen["lr"] for chosen in values[1]])
        try:
            self.breaks(values[1])
            future.set_result(function(*values))
        except Exception as error:
            future.set_exception(error)
        return future


def _breaking(error, when=lambda calls: True):
    calls = itertools.count(1)

    def breaks(_):
        if when(next(calls)):
            raise error

    return breaks


def test_a_broken_executor_is_opened_again_and_what_is_recorded_is_not_run_again(store):
    inner = Here(_breaking(BrokenExecutor("gone"), lambda call: call == 2))
    train = Recorder()
    found = run(train, grid(lr=[1, 2, 3]), store, Renewable(lambda: inner))
    assert inner.opened == 2
    assert inner.groups == [[1], [2], [3], [2]]
    assert [call["lr"] for call in train.calls] == [1, 3, 2]
    assert set(found.runs["status"]) == {"finished"}


def test_an_executor_that_breaks_again_and_again_is_given_up(store):
    inner = Here(_breaking(BrokenExecutor("gone")))
    with pytest.raises(BrokenExecutor, match="gone"):
        run(Recorder(), grid(lr=[1]), store, Renewable(lambda: inner))
    assert inner.opened == 1 + DEATHS


def test_a_broken_executor_of_others_is_not_opened_again(store):
    with pytest.raises(BrokenExecutor, match="gone"):
        run(Recorder(), grid(lr=[1]), store, Here(_breaking(BrokenExecutor("gone"))))


class KilledWorker(Exception):  # noqa: N818
    """Stands for the error of dask for work of which several workers have died."""


def _dies_of(store, value, error):
    """Leave behind what a process leaves that is killed while it carries out the run with this step size."""

    def breaks(group):
        if value in [chosen["lr"] for chosen in group]:
            claim = store.checkpoint({"lr": value}).parent
            number = len(list(claim.glob("claim.*"))) + 1
            (claim / f"claim.{number}").write_text("elsewhere 1")
            os.utime(claim / f"claim.{number}", (0, 0))
            raise error

    return breaks


@pytest.mark.parametrize("error", [BrokenExecutor("gone"), KilledWorker("killed")])
def test_a_run_of_which_processes_die_is_tried_alone_at_last_and_then_fails(store, error):
    inner = Here(_dies_of(store, 2, error))
    found = run(Recorder(), grid(lr=[1, 2, 3]), store, Renewable(lambda: inner))
    assert inner.groups == [[1], [2], [3], *[[2]] * (DEATHS - 1)]
    runs = found.runs.set_index("lr")
    assert runs["status"].to_dict() == {1: "finished", 2: "failed", 3: "finished"}
    assert (
        runs.loc[2, "reason"] == f"{DEATHS} processes died of it: killed, or out of memory"
    )
    assert run(Recorder(), grid(lr=[2]), store, retry_failed=True).runs[
        "status"
    ].tolist() == ["finished"]


def test_the_first_error_stops_what_has_not_begun(store):
    begun = []

    def train(configuration, *, checkpoint):
        begun.append(configuration["lr"])
        raise StoreError("the disk is full")

    with ThreadPoolExecutor(1) as pool, pytest.raises(StoreError, match="disk is full"):
        run(train, grid(lr=list(range(50))), store, pool)
    assert len(begun) < 50
    assert store.load().runs.empty


def test_two_runs_never_share_a_process_at_the_same_time(store):
    inside = []

    def train(configuration, *, checkpoint):
        inside.append(configuration["lr"])
        time.sleep(0.01)
        assert inside == [configuration["lr"]]
        inside.clear()
        return Outcome("finished", [])

    with ThreadPoolExecutor(4) as pool:
        found = run(train, grid(lr=list(range(8))), store, pool)
    assert set(found.runs["status"]) == {"finished"}


# --- what other sweeps hold -----------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [None, Here()], ids=["this process", "executor"])
def test_what_another_sweep_holds_is_left_to_it_and_its_record_awaited(store, inner):
    own = Store(store.path, stale=0.3)
    train, order = Recorder(), []
    with store.claim([{"lr": 2}]):

        def elsewhere():
            order.append("recorded")
            store.write({"lr": 2}, Outcome("finished", []))

        timer = threading.Timer(0.2, elsewhere)
        timer.start()
        os.utime(
            next(store.path.glob(".unfinished/*/claim.1")), (2**32, 2**32)
        )  # not stale
        found = run(train, grid(lr=[1, 2, 3]), own, inner)
    assert [call["lr"] for call in train.calls] == [1, 3]
    assert order == ["recorded"]
    assert len(found.runs) == 3


def test_what_another_sweep_records_before_a_run_is_claimed_is_not_run(store, monkeypatch):
    take = Store._take

    def late(self, configuration):
        if configuration not in store:
            store.write(configuration, Outcome("finished", []), {"device": "elsewhere"})
        return take(self, configuration)

    monkeypatch.setattr(Store, "_take", late)
    train = Recorder()
    assert run(train, grid(lr=[1]), store).runs["device"].tolist() == ["elsewhere"]
    assert train.calls == []


# --- searching ------------------------------------------------------------------------------------------------


def _peak(**optimum):
    """Return a function that is largest, 0, where all hyper-parameters have the values of the optimum."""

    def value(configuration):
        return -sum(abs(math.log(configuration[name] / at)) for name, at in optimum.items())

    return value


def test_a_search_inside_its_grid_runs_the_grid_once(store):
    train = Recorder(_peak(lr=0.1))
    records, chosen = search(train, {"model": "m"}, {"lr": [0.01, 0.1, 1]}, store)
    assert chosen == {"lr": 0.1}
    assert train.calls == grid(model="m", lr=[0.01, 0.1, 1])
    assert len(records.runs) == 3


@pytest.mark.parametrize(
    ("optimum", "rounds", "tried"),
    [
        (
            10,
            3,
            [0.01, 0.1, 1, 10, 100],
        ),  # one round finds it, another shows that it is no edge
        (1, 3, [0.01, 0.1, 1, 10]),
        (1e-4, 3, [1e-5, 1e-4, 1e-3, 0.01, 0.1, 1]),
        (1e9, 3, [0.01, 0.1, 1, 10, 100, 1000]),  # as far as the rounds go
        (1e9, 1, [0.01, 0.1, 1, 10]),
        (1e9, 0, [0.01, 0.1, 1]),
    ],
)
def test_a_search_widens_its_grid_at_the_edge_and_runs_nothing_twice(
    store, optimum, rounds, tried
):
    train = Recorder(_peak(lr=optimum))
    records, chosen = search(
        train, {"model": "m"}, {"lr": [0.1, 0.01, 1]}, store, rounds=rounds
    )
    assert sorted(call["lr"] for call in train.calls) == tried
    assert chosen == {"lr": min(max(tried), optimum)}
    assert sorted(records.runs["lr"]) == tried


def test_a_search_widens_each_hyper_parameter_on_its_own_and_keeps_the_grid_whole(store):
    train = Recorder(_peak(lr=1, decay=1e-3))
    choices = {"lr": [0.1, 0.3], "decay": [0.0001, 0.001, 0.01]}
    value = train.value
    records, chosen = search(train, {}, choices, store)
    assert chosen == {"lr": 0.9, "decay": 0.001}
    assert {(call["lr"], call["decay"]) for call in train.calls} == {
        (lr, decay) for lr in (0.1, 0.3, 0.9, 2.7) for decay in (0.0001, 0.001, 0.01)
    }
    assert len(train.calls) == len(records.runs) == 12
    assert value(chosen) == max(map(value, train.calls))
    assert choices == {
        "lr": [0.1, 0.3],
        "decay": [0.0001, 0.001, 0.01],
    }  # not changed under the caller


def test_a_search_for_the_smallest_value_of_another_metric(store):
    def train(configuration, *, checkpoint):
        value = math.log(configuration["lr"]) ** 2
        rows = [(1, "validation", metric, value, 1.0) for metric in ("loss", "accuracy")]
        return Outcome("finished", rows)

    _, chosen = search(train, {}, {"lr": [0.5, 1, 2]}, store, metric="loss", largest=False)
    assert chosen == {"lr": 1}


def test_a_search_takes_known_records_for_run(store, tmp_path):
    known, _ = search(
        Recorder(_peak(lr=10)), {}, {"lr": [0.1, 1]}, Store(tmp_path / "known")
    )
    train = Recorder(_peak(lr=10))
    records, chosen = search(train, {}, {"lr": [0.1, 1]}, store, known=known)
    assert train.calls == []
    assert chosen == {"lr": 10}
    assert len(records.runs) == len(known.runs) == 4


def test_a_search_passes_over_runs_that_diverge(store):
    def train(configuration, *, checkpoint):
        status = "diverged" if configuration["lr"] > 0.5 else "finished"
        return Outcome(status, [(1, "validation", "accuracy", configuration["lr"], 1.0)])

    _, chosen = search(train, {}, {"lr": [0.01, 0.1, 1]}, store)
    assert chosen == {"lr": 0.1}


@pytest.mark.parametrize(
    ("values", "chosen", "added"),
    [
        ([0.01, 0.03, 0.1], 0.1, [0.3]),
        ([0.1, 0.01, 0.03], 0.01, [0.003]),
        ([1, 3, 10], 10, [30]),
        ([1, 3, 10], 1, [0.3]),
        ([1, 3, 10], 3, None),
        ([2, 4], 2, [1]),
        ([2, 4], 4, [8]),
        ([0, 1e-4, 1e-3], 0, None),
        ([0.0, 1e-4, 1e-3], 1e-4, [1e-5]),
        ([0, 1e-4], 1e-4, None),
        ([5], 5, None),
    ],
    ids=str,
)
def test_a_grid_goes_on_by_its_own_ratio(values, chosen, added):
    assert widen({"x": values}, {"x": chosen}) == (
        {} if added is None else {"x": pytest.approx(added, rel=0.02)}
    )


@pytest.mark.parametrize("values", [[0], [0.0, 0], []])
def test_a_grid_without_positive_numbers_is_not_widened(values):
    assert widen({"x": values}, {"x": 0}) == {}


# --- the best -------------------------------------------------------------------------------------------------


def _records(*rows):
    """Return records of runs ``(lr, decay, seed, status, accuracy of each epoch ...)``."""
    runs, history = [], []
    for number, (lr, decay, seed, status, *values) in enumerate(rows):
        runs.append(
            {"run": str(number), "lr": lr, "decay": decay, "seed": seed, "status": status}
        )
        history += [
            {
                "run": str(number),
                "epoch": e,
                "split": "validation",
                "metric": "accuracy",
                "value": v,
                "seconds": e,
            }
            for e, v in enumerate(values, 1)
        ]
    return Records(pd.DataFrame(runs), pd.DataFrame(history))


SEEDS = _records(
    (0.1, 0, 0, "finished", 0.99, 0.50),  # best in its first epoch
    (0.1, 0, 1, "finished", 0.99, 0.70),  # mean 0.6
    (0.2, 0, 0, "finished", 0.10, 0.90),  # the best single run
    (0.2, 0, 1, "finished", 0.10, 0.20),  # mean 0.55
    (0.3, 1, 0, "finished", 0.10, 0.40),  # mean 0.4
    (0.3, 1, 1, "finished", 0.10, 0.40),
    (0.4, 0, 0, "diverged", 0.99, 0.99),
    (0.5, 0, 0, "failed"),
)


def test_the_best_is_that_of_the_mean_over_seeds_after_the_last_epoch():
    assert best(SEEDS, "validation", "accuracy", largest=True, by=["lr", "decay"]) == {
        "lr": 0.1,
        "decay": 0,
    }
    assert best(SEEDS, "validation", "accuracy", largest=False, by=["lr", "decay"]) == {
        "lr": 0.3,
        "decay": 1,
    }
    assert best(SEEDS, "validation", "accuracy", largest=True, by=["lr"]) == {"lr": 0.1}


def test_the_best_is_made_of_plain_values():
    chosen = best(SEEDS, "validation", "accuracy", largest=True, by=["decay", "lr"])
    assert {name: type(value) for name, value in chosen.items()} == {
        "decay": int,
        "lr": float,
    }
    identity(chosen)


def test_each_run_counts_at_its_own_last_epoch():
    records = _records((0.1, 0, 0, "finished", 0.9), (0.2, 0, 0, "finished", 0.1, 0.2, 0.8))
    assert best(records, "validation", "accuracy", largest=True, by=["lr"]) == {"lr": 0.1}


def test_of_equally_good_ones_the_first_wins():
    records = _records(
        (0.2, 0, 0, "finished", 0.5),
        (0.1, 1, 0, "finished", 0.5),
        (0.1, 0, 0, "finished", 0.5),
    )
    for largest in (True, False):
        chosen = best(
            records, "validation", "accuracy", largest=largest, by=["lr", "decay"]
        )
        assert chosen == {"lr": 0.1, "decay": 0}


@pytest.mark.parametrize(
    "records",
    [_records((0.1, 0, 0, "diverged", 0.9), (0.2, 0, 0, "diverged", 0.5)), Records.empty()],
    ids=["diverged", "empty"],
)
def test_without_a_finished_run_there_is_no_best(records):
    with pytest.raises(ValueError, match="no run finished"):
        best(
            records.join(Records.empty()), "validation", "accuracy", largest=True, by=["lr"]
        )


def test_a_sweep_in_which_all_runs_fail_has_no_best(store):
    records = run(Recorder(_breaks), grid(lr=[2]), store)
    with pytest.raises(ValueError, match="no run finished"):
        best(records, "validation", "accuracy", largest=True, by=["lr"])


# --- fingerprints ---------------------------------------------------------------------------------------------

SOURCE = """
class Method:
    def step(self):
        return {}

class Other:
    pass
"""


def _module(tmp_path, number, name):
    path = tmp_path / f"{name}.py"
    path.write_text(SOURCE.format(number))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # inspect looks classes up there
    spec.loader.exec_module(module)
    return module


def test_a_fingerprint_changes_with_the_source_of_the_class(tmp_path):
    one, same, two = (_module(tmp_path, n, f"reader_{i}") for i, n in enumerate((1, 1, 2)))
    assert fingerprint(one.Method) == fingerprint(same.Method) != fingerprint(two.Method)
    assert fingerprint(one.Other) == fingerprint(two.Other)
    nested = functools.partial(functools.partial(one.Method, lr=1), mu=2)
    assert fingerprint(nested) == fingerprint(functools.partial(one.Method, mu=2, lr=1))
    assert fingerprint(nested) != fingerprint(one.Method)
    assert identity({"code": fingerprint(one.Method)})
    for module in (one, same, two):
        del sys.modules[module.__name__]


@pytest.mark.parametrize(
    "constructor",
    [torch.optim.SGD, functools.partial(torch.optim.SGD, momentum=0.9), Store],
    ids=["torch", "partial of the package", "support"],
)
def test_what_torch_and_the_package_bring_has_no_fingerprint(constructor):
    assert fingerprint(constructor) is None


def test_other_keywords_than_the_packages_are_another_method():
    heavier = functools.partial(torch.optim.SGD, momentum=0.95)
    assert fingerprint(heavier) is not None
    assert fingerprint(heavier) != fingerprint(
        functools.partial(torch.optim.SGD, momentum=0.99)
    )


def test_a_choice_with_a_diverged_seed_cannot_win():
    records = _records(
        (0.1, 0, 0, "finished", 0.5),
        (0.2, 0, 0, "finished", 0.9),
        (0.2, 0, 1, "diverged", 0.9),
    )
    assert best(records, "validation", "accuracy", largest=True, by=["lr"]) == {"lr": 0.1}


# --- environment ----------------------------------------------------------------------------------------------


def test_the_environment_is_device_threads_versions_and_commit():
    found = environment()
    assert set(found) == {"device", "threads", "python", "torch", "commit"}
    assert found["threads"] == torch.get_num_threads() == 1
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert found["device"].endswith(" cores")
    identity(found)  # plain values only
    json.dumps(found)


def test_the_commit_is_that_of_the_checkout():
    folder = Path(support.__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        pytest.skip("the package is installed and not a checkout: there is no git to ask")
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    head = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.strip()
    commit = environment()["commit"].removesuffix("-dirty")
    assert len(commit) >= 12
    assert head.startswith(commit)


def test_the_device_of_a_partial_is_recorded(store, monkeypatch):
    devices = []
    monkeypatch.setattr(
        sweep, "environment", lambda device="cpu": devices.append(device) or {}
    )

    def train(configuration, *, checkpoint, device="cpu"):
        return Outcome("finished", [])

    run(functools.partial(train, device="meta"), [{"a": 1}], store)
    run(train, [{"a": 2}], store)
    assert devices == ["meta", "cpu"]
