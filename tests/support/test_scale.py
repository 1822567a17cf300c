"""Sweeps at scale: a cluster, dying workers, a restarted scheduler, a shared store, a full disk."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import scale_jobs

from support import training
from support.records import Store
from support.sweep import DEATHS, executor, grid, run
from tools import run as command

distributed = pytest.importorskip("distributed")

PATIENCE = 400  # seconds until a test gives up; a tenth is enough on a healthy machine
SETTING = {
    "data": "digits",
    "size": 8,
    "validation": 200,
    "model": "mlp",
    "batch": 100,
    "optimizer": "momentum",
    "lr": 0.01,
}


def until(holds):
    """Wait until something holds."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def stopped(notes):
    """Return the numbers of the processes that wait to be killed."""
    return [int(words[1]) for words in scale_jobs.lines(notes) if words[0] == "stopped"]


def epochs(notes):
    """Return how often each epoch was begun: (seed, epoch) -> number."""
    words = [words for words in scale_jobs.lines(notes) if words[0] == "epoch"]
    return Counter((int(seed), int(epoch)) for _, seed, epoch, _ in words)


@contextlib.contextmanager
def meanwhile(function, *arguments, **named):
    """Call a function in a thread; its result is to be asked for."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(function, *arguments, **named)


def assert_same_numbers(ours, theirs):
    keys = ["run", "epoch", "split", "metric"]
    ours, theirs = (
        records.history.sort_values(keys).reset_index(drop=True)[[*keys, "value"]]
        for records in (ours, theirs)
    )
    assert len(ours) > 0
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


@pytest.fixture(scope="module")
def cluster():
    """Return the address of the scheduler of two workers, each a process of one thread."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50
    ) as local:
        yield local.scheduler_address


def test_a_worker_killed_on_a_cluster_costs_its_run_since_the_checkpoint_and_no_bit_changes(
    cluster, tmp_path
):
    notes = tmp_path / "notes"
    runs = grid(**SETTING, epochs=5, seed=[0, 1, 2])
    train = functools.partial(scale_jobs.train, notes=notes)
    with (
        executor(cluster) as pool,
        meanwhile(run, train, runs, Store(tmp_path / "there"), pool) as found,
    ):
        until(lambda: stopped(notes))
        os.kill(stopped(notes)[0], signal.SIGKILL)
        there = found.result(PATIENCE)
    here = run(training.train_one, runs, Store(tmp_path / "here"))
    assert_same_numbers(there, here)
    assert there.runs["threads"].tolist() == here.runs["threads"].tolist() == [1] * 3
    assert set(there.runs["device"]) == set(here.runs["device"])
    assert set(there.runs["status"]) == {"finished"}
    again = {key: number for key, number in epochs(notes).items() if number != 1}
    assert again == {(0, 3): 2}  # the epoch in which it was killed
    assert len(epochs(notes)) == 3 * 5
    processes = {words[-1] for words in scale_jobs.lines(notes)}
    assert len(processes) >= 2
    assert not list((tmp_path / "there" / ".unfinished").iterdir())


def test_what_raises_or_diverges_on_a_cluster_is_recorded_and_the_others_go_on(
    cluster, tmp_path
):
    does = {0: "finish", 1: "raise", 2: "diverge", 3: "finish"}
    runs = [{"seed": seed, "does": what} for seed, what in does.items()]
    quick = functools.partial(scale_jobs.quick, notes=tmp_path / "notes")
    with executor(cluster) as pool:
        found = run(quick, runs, Store(tmp_path / "store"), pool).runs.set_index("seed")
    assert found["status"].to_dict() == {
        0: "finished",
        1: "failed",
        2: "diverged",
        3: "finished",
    }
    assert found.loc[1, "reason"].startswith(
        "ArithmeticError: nothing to divide (scale_jobs.py:"
    )
    assert found.loc[2, "reason"] == "epoch 1: too fast"


PAGE = """
from support import records, sweep

def train_one(configuration, checkpoint):
    return records.Outcome("finished", [(1, "test", "loss", configuration["seed"] / 3, 0.0)])

with sweep.executor(executor) as pool:
    sweep.run(train_one, sweep.grid(seed=[0, 1]), records.Store(out), pool)
    assert not executor or pool.submit(abs, -1).result() == 1
"""


def test_a_page_takes_the_cluster_as_a_parameter(cluster, tmp_path):
    parameters = nbformat.v4.new_code_cell('executor = ""\nout = ""')
    parameters.metadata["tags"] = ["parameters"]
    cells = [parameters, nbformat.v4.new_code_cell(PAGE)]
    (tmp_path / "notebooks").mkdir()
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks" / "page.ipynb"
    )
    given = {"executor": cluster, "out": str(tmp_path / "store")}
    words = [word for item in given.items() for word in ("-p", *item)]
    command.main(["page", *words], tmp_path)
    found = Store(tmp_path / "store").load()
    assert found.runs["status"].tolist() == ["finished"] * 2
    assert sorted(found.history["value"]) == [0, 1 / 3]


# --- a scheduler that is restarted ----------------------------------------------------------------------------


@contextlib.contextmanager
def process(*command, **environment):
    """Run a command of Python beside the tests, and kill it at the end."""
    paths = [str(Path(__file__).parent), *sys.path]
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        env=os.environ | one_thread | {"PYTHONPATH": os.pathsep.join(paths)},
        stderr=subprocess.DEVNULL,
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def scheduler(file, port=0):
    where = ["--host", "127.0.0.1", "--port", str(port), "--scheduler-file", str(file)]
    return process("distributed.cli.dask_scheduler", *where, "--no-dashboard")


def worker(file):
    how = ["--nthreads", "1", "--no-nanny", "--no-dashboard"]
    return process("distributed.cli.dask_worker", "--scheduler-file", str(file), *how)


def address(file):
    """Return the address that a scheduler has written into its file."""

    def written():
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            return json.loads(file.read_text())["address"]

    until(written)
    return written()


def test_a_restarted_scheduler_runs_nothing_again_that_had_finished(tmp_path):
    notes, store = tmp_path / "notes", Store(tmp_path / "store", stale=12)
    runs = grid(**SETTING, epochs=4, seed=[1, 2, 0, 3])
    train = functools.partial(scale_jobs.train, notes=notes)
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(scheduler(tmp_path / "one"))
        where = address(tmp_path / "one")
        orphan = stack.enter_context(worker(tmp_path / "one"))
        pool = stack.enter_context(executor(where))
        found = stack.enter_context(meanwhile(run, train, runs, store, pool))
        until(lambda: stopped(notes))
        finished = set(store.load().runs["seed"])
        assert 0 < len(finished) < 4
        for ended in (old, orphan):  # a worker ends when it has lost its scheduler
            ended.kill()
            ended.wait()
        stack.enter_context(scheduler(tmp_path / "two", where.rpartition(":")[2]))
        address(tmp_path / "two")
        stack.enter_context(worker(tmp_path / "two"))
        there = found.result(PATIENCE)
    again = {key: number for key, number in epochs(notes).items() if number != 1}
    assert again == {(0, 3): 2}
    assert len(epochs(notes)) == 4 * 4
    assert_same_numbers(there, run(training.train_one, runs, Store(tmp_path / "here")))


# --- other executors, and two sweeps at once ------------------------------------------------------------------


def test_a_broken_pool_is_opened_again_and_what_breaks_it_fails_alone(tmp_path):
    notes = tmp_path / "notes"
    runs = [{"seed": seed, "does": "die" if seed == 1 else "finish"} for seed in range(4)]
    with executor("processes:2") as pool:
        train = functools.partial(scale_jobs.quick, notes=notes)
        found = run(train, runs, Store(tmp_path / "store"), pool).runs.set_index("seed")
    assert found["status"].drop(1).tolist() == ["finished"] * 3
    assert found.loc[1, "status"] == "failed"
    assert found.loc[1, "reason"].startswith(f"{DEATHS} processes died of it")
    ran = Counter(seed for _, seed in scale_jobs.lines(notes))
    assert 1 < ran["1"] <= DEATHS


def test_two_sweeps_at_once_on_one_store_run_each_once(tmp_path):
    notes, runs = tmp_path / "notes", grid(seed=list(range(6)))
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        both = [
            pool.submit(
                scale_jobs.whole_sweep, runs, Store(tmp_path / "store", stale=30), notes
            )
            for _ in range(2)
        ]
        found = [sweep.result(PATIENCE).runs for sweep in both]
    assert sorted(words[1] for words in scale_jobs.lines(notes)) == list("012345")
    for own in found:
        assert own["status"].tolist() == ["finished"] * 6
    assert len(Store(tmp_path / "store").load().runs) == 6
    assert not list((tmp_path / "store" / ".unfinished").iterdir())


# --- nowhere to write -----------------------------------------------------------------------------------------

FULL = """
import functools, json, os, pathlib, subprocess, sys
import scale_jobs
from support import sweep
from support.records import Store, StoreError

folder = pathlib.Path(sys.argv[1])
notes = folder / "notes"  # on the disk below
disk = folder / "disk"
disk.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=True)
store = Store(disk / "store")

def tried(runs, train=scale_jobs.quick):
    try:
        sweep.run(functools.partial(train, notes=notes), runs, store)
    except StoreError as error:
        return str(error)
    return "nothing was raised"

def left():
    names = sorted(path.name for path in store.path.iterdir() if path.name != ".unfinished")
    return [len(names), len(store.load().runs)]

runs = [{"seed": n, "does": what} for n, what in enumerate(["finish", "fill", "finish"])]
found = {"record": tried(runs), "left": left()}
big = {"data": "digits", "size": 8, "validation": 200, "model": "mlp", "batch": 100,
       "optimizer": "momentum", "lr": 0.01, "epochs": 2, "seed": 1}
found |= {"checkpoint": tried([big], scale_jobs.train), "left by it": left()}
subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
found |= {"read-only": tried([{"seed": 5, "does": "finish"}]), "left then": left()}
found["notes"] = scale_jobs.lines(notes)
print(json.dumps(found))
"""


def test_a_full_disk_and_a_read_only_store_give_one_clear_error_and_no_half_record(
    tmp_path,
):
    mine = (
        ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "-r", "-m"]
    )
    with contextlib.suppress(OSError):
        if subprocess.run(
            [*mine, "mount", "-t", "tmpfs", "x", "/mnt"], check=False
        ).returncode:
            pytest.skip("no file system can be mounted here")
    found = subprocess.run(
        [*mine, sys.executable, "-c", FULL, str(tmp_path)],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        stdout=subprocess.PIPE,
        check=True,
    )
    found = json.loads(found.stdout)
    store = tmp_path / "disk" / "store"
    assert found["record"].startswith(f"cannot write to {store}: No space left on device.")
    assert found["left"] == [1, 1]
    assert found["checkpoint"].startswith(f"cannot write to {store}")
    assert "No space left on device" in found["checkpoint"]
    assert found["left by it"] == [1, 1]
    assert found["read-only"].startswith(f"cannot write to {store}: Read-only file system.")
    assert found["left then"] == [1, 1]
    ran = [words for words in found["notes"] if words[0] == "ran"]
    assert ran == [["ran", "0"], ["ran", "1"]]  # nothing after the error, nothing in vain
