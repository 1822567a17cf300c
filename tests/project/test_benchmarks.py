"""The benchmarks take turns, count whole periods, and keep what was measured on other devices."""

import time
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn
from torch.profiler import record_function

from tools import benchmark_landscape, benchmark_stacks, benchmark_sweep, timing
from tools import benchmark_optimizers as bench
from tools.optimizer_variants import NEVER, OURS, REFERENCE, Kind, Method, methods

COLUMNS = [
    "benchmark",
    "method",
    "implementation",
    "milliseconds",
    "ratio",
    "lower",
    "upper",
    "target",
    "numbers per parameter",
    "bytes per parameter",
    "measured",
    "rounds",
]
PROFILE = ["benchmark", "method", "part", "milliseconds", "share"]
ENVIRONMENT = ["device", "threads", "python", "torch", "commit"]


def test_all_take_turns_and_the_first_round_is_not_counted():
    order = []
    turns = [lambda: order.append("a"), lambda: order.append("b"), lambda: time.sleep(0.01)]
    seconds = timing.measure(turns, 3, "cpu")
    assert order == ["a", "b"] * 4
    assert seconds.shape == (3, 3)
    assert (seconds[:, 2] >= 0.01).all()
    assert (seconds[:, :2] < 0.01).all()


def test_rows_stay_where_their_keys_do_not_occur_again(tmp_path):
    target = tmp_path / "new" / "table.csv"
    old = pd.DataFrame(
        {"device": ["a", "a", "b"], "method": ["x", "y", "x"], "ms": [1, 2, 3]}
    )
    timing.write(timing.joined(old, target), target)
    new = pd.DataFrame({"device": ["a"], "method": ["x"], "ms": [4]})
    both = timing.joined(new, target, ("device", "method"))
    assert both["ms"].tolist() == [2, 3, 4]
    assert timing.joined(new, target)["ms"].tolist() == [3, 4]


def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 10))


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Put a small network in the place of both, and the tables into a temporary folder."""
    rows = {
        "lenet5": bench.Benchmark("whole", small, (1, 2, 2), 1, 2, 1, True),
        "resnet18": bench.Benchmark("kinds", small, (1, 2, 2), 1, 2, 1, False),
        "optimizer": bench.Benchmark("alone", small, None, 1, 2, 1, True, ("SAM", "K-FAC")),
    }
    monkeypatch.setattr(bench, "BENCHMARKS", rows)
    ranks = {row.title: rank for rank, row in enumerate(rows.values())}
    monkeypatch.setitem(bench.RANKS, "benchmark", ranks)
    monkeypatch.setattr(bench, "TABLE", tmp_path / "optimizers.csv")
    monkeypatch.setattr(bench, "PROFILE", tmp_path / "optimizers_profile.csv")
    return tmp_path


def test_the_tables_have_a_row_for_each_method(tiny):
    bench.run(list(bench.BENCHMARKS), bench.choose())
    table = pd.read_csv(bench.TABLE)
    assert list(table) == COLUMNS + ENVIRONMENT
    assert (table["ratio"] > 0).all()
    assert (table["lower"] <= table["ratio"]).all()
    assert (table["ratio"] <= table["upper"]).all()
    rows = {(m.name, m.implementation) for m in methods()}
    for _, some in table[table["benchmark"] != "alone"].groupby("benchmark"):
        assert set(zip(some["method"], some["implementation"], strict=True)) == rows
    alone = set(table.loc[table["benchmark"] == "alone", "method"])
    assert not {name for name in alone if name.startswith(("SAM", "K-FAC"))}
    whole = table[table["benchmark"] == "whole"].set_index(["method", "implementation"])
    kept = whole["numbers per parameter"]
    assert kept[REFERENCE].item() == kept["SAM", OURS] == kept["AGC", OURS] == 1
    assert kept["clipped-SSTM", OURS] == 2
    assert kept["K-FAC 1/1", OURS] > 2
    assert (whole["bytes per parameter"] - 4 * kept).abs().max() < 4e-3
    profile = pd.read_csv(bench.PROFILE)
    assert list(profile) == PROFILE + ENVIRONMENT
    sums = profile.groupby(["benchmark", "method"])["share"].sum()
    assert sums.between(0.98, 1.02).all()
    assert set(profile["method"]) == {m.name for m in methods() if m.implementation == OURS}


def test_a_part_can_be_measured_again(tiny):
    bench.run(["lenet5"], bench.choose(["lion", "AGC"]))
    first = pd.read_csv(bench.TABLE)
    assert set(first["method"]) == {REFERENCE, "Lion", "AGC"}
    bench.run(["lenet5"], bench.choose(["lion"]), rounds=2)
    again = pd.read_csv(bench.TABLE)
    assert again["method"].tolist() == first["method"].tolist()
    assert set(again.loc[again["rounds"] == 2, "method"]) == {REFERENCE, "Lion"}
    with pytest.raises(
        ValueError, match=r"begins with 'adamw'; there are SGD with momentum, "
    ):
        bench.choose(["Lion", "AdamW"])


@pytest.mark.parametrize("method", [m for m in methods() if m.kinds], ids=lambda m: m.name)
def test_a_period_consists_of_its_kinds_of_steps(method):
    """Count in a period which steps have new factors, inverses or roots."""

    def what(step, hyper):
        return tuple(step % interval == 0 for interval in hyper.values())

    steps = [what(step, method.hyper) for step in range(method.period)]
    for kind in method.kinds:
        share = steps.count(what(NEVER // 2 * 2 - 1, kind.hyper)) / len(steps)
        assert share == pytest.approx(kind.share)
    assert sum(kind.share for kind in method.kinds) == pytest.approx(1)


def test_a_turn_covers_whole_periods():
    for method in methods():
        runner = bench.Runner(
            bench.Benchmark("", small, (1, 2, 2), 1, 20, 10, True),
            method, Kind(1.0, method.hyper), "cpu",
        )  # fmt: skip
        assert runner.steps % method.period == 0
        assert runner.steps >= 10


def test_time_is_counted_under_the_innermost_label(monkeypatch):
    clock = [5.0]  # which only the work moves on, however busy the machine is
    monkeypatch.setattr(bench, "perf_counter", lambda: clock[0])

    def work(seconds):
        clock[0] += seconds

    def run():
        with record_function("Optimizer.step#Some.step"):
            work(0.01)
            with record_function(bench.GRADIENT), record_function("Optimizer.zero_grad#"):
                work(0.02)
                with record_function("KFAC: factors"):
                    work(0.04)

    enter = record_function.__enter__
    seconds = bench.spent_in_parts(SimpleNamespace(run=run), "cpu")
    assert record_function.__enter__ is enter
    expected = {
        "Some.step": 0.01,
        bench.GRADIENT: 0.02,
        "KFAC: factors": 0.04,
        bench.REST: 0,
    }
    assert seconds == pytest.approx(expected)


def test_state_is_counted_once_wherever_it_stands():
    model = nn.Linear(3, 2, bias=False)
    model.weight.grad = torch.ones(2, 3)
    whole = torch.zeros(10, dtype=torch.double)
    state = {
        "step": 3,
        "lists": [[whole[:5], (whole[5:],)], {"a": torch.zeros(2)}],
        "itself": [model.weight.detach(), model.weight.grad],
    }
    inner = SimpleNamespace(state={model.weight: state}, scratch=torch.zeros(3))
    outer = SimpleNamespace(state=inner.state, optimizer=inner)
    assert bench.size_of_state(outer, model) == (15, 100)


def test_the_network_is_the_resnet_of_the_target():
    model = bench.resnet18()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert model.layer1(torch.zeros(1, 64, 32, 32)).shape == (1, 64, 32, 32)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(11.2e6, rel=5e-3)


def test_another_package_that_is_missing_is_left_out(monkeypatch):
    monkeypatch.setattr("tools.optimizer_variants.find_spec", lambda name: None)
    packages = {m.implementation.split()[0] for m in methods()}
    assert packages == {OURS, "torch"}
    assert isinstance(methods()[0], Method)


@pytest.mark.skipif(not bench.TABLE.is_file(), reason="nothing has been measured yet")
def test_the_recorded_table_is_that_of_these_benchmarks():
    table = pd.read_csv(bench.TABLE)
    assert list(table) == COLUMNS + ENVIRONMENT
    assert list(pd.read_csv(bench.PROFILE)) == PROFILE + ENVIRONMENT
    titles = {b.title: place for place, b in enumerate(bench.BENCHMARKS.values())}
    assert set(table["benchmark"]) == set(titles)
    wanted = {
        (title, method): targets[place]
        for title, place in titles.items()
        for method, targets in bench.TARGETS["cpu"].items()
        if targets[place]
    }
    ours = table[
        (table["implementation"] == OURS) & ~table["device"].str.contains("NVIDIA")
    ]
    recorded = ours.dropna(subset="target").set_index(["benchmark", "method"])["target"]
    assert recorded.to_dict() == wanted


def test_the_benchmark_of_stacks_measures_both_ways_and_chooses_the_faster(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(benchmark_stacks, "TABLE", tmp_path / "stacks.csv")
    monkeypatch.setattr(benchmark_stacks, "NETWORKS", {"mlp_bn": ((1, 4, 4), 2, 8.0)})
    monkeypatch.setattr(benchmark_stacks, "RUNS", (1, 3))
    benchmark_stacks.run(rounds=1)
    table = pd.read_csv(benchmark_stacks.TABLE)
    assert table["runs"].tolist() == [1, 1, 3, 3]
    assert table["variant"].tolist() == ["ordinary loop", "one stack"] * 2
    assert (table["runs per second"] > 0).all()
    assert (table["times the ordinary loop"][::2] == 1).all()
    for _, pair in table.groupby("runs"):
        fastest = pair["runs per second"].idxmax()
        assert pair["chosen"].sum() == 1
        assert pair["chosen"][fastest]
    assert set(ENVIRONMENT) <= set(table)


def test_the_benchmark_of_surfaces_measures_a_plain_loop_beside_them(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_landscape, "TABLE", tmp_path / "landscape.csv")
    small = {"small": ("mlp_bn", (1, 4, 4), 4, 4.0)}
    monkeypatch.setattr(benchmark_landscape, "NETWORKS", small)
    monkeypatch.setattr(benchmark_landscape, "IMAGES", 30)
    benchmark_landscape.run(rounds=1)
    table = pd.read_csv(benchmark_landscape.TABLE)
    assert table["variant"].tolist() == ["plain loop", "surface"]
    assert (table["points per second"] > 0).all()
    assert table["times the plain loop"][0] == 1
    assert table["points at once"].isin([1, 32]).all()
    assert set(ENVIRONMENT) <= set(table)


def test_the_plain_loop_leaves_the_network_as_it_was():
    model = benchmark_landscape.models.mlp((1, 4, 4), seed=0)
    before = [value.clone() for value in model.parameters()]
    batches = benchmark_landscape.examples((1, 4, 4), "cpu")
    found = benchmark_landscape.landscape.directions(model, seed=0)
    benchmark_landscape.plain(model, batches, found, torch.tensor([[0.5, 1.0]]))()
    for value, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(value, old)


def test_the_benchmark_of_sweeps_measures_empty_runs_and_writes_its_sentence(
    tmp_path, monkeypatch
):
    guide = tmp_path / "guide.md"
    guide.write_text(f"Before. {OLD} After.")
    monkeypatch.setattr(benchmark_sweep, "GUIDE", guide)
    monkeypatch.setattr(benchmark_sweep, "TABLE", tmp_path / "sweep.csv")
    monkeypatch.setattr(benchmark_sweep, "RUNS", 3)
    monkeypatch.setattr(benchmark_sweep, "WAYS", dict.fromkeys(benchmark_sweep.WAYS, ""))
    benchmark_sweep.run(rounds=1)
    table = pd.read_csv(benchmark_sweep.TABLE)
    assert table["way"].tolist() == [*benchmark_sweep.WAYS, benchmark_sweep.RECORDED]
    assert (table["milliseconds a run"] > 0).all()
    assert set(ENVIRONMENT) <= set(table)
    assert guide.read_text() == f"Before. {benchmark_sweep.sentence(table)} After."


OLD = "Measured on 1999-12-31 (an abacus, a store): 1 ms, and 0.5 ms if it is recorded already."


@pytest.mark.skipif(
    not benchmark_sweep.TABLE.is_file(), reason="nothing has been measured yet"
)
def test_the_guide_gives_the_measured_cost_of_a_run():
    table = pd.read_csv(benchmark_sweep.TABLE)
    texts = [benchmark_sweep.sentence(rows) for _, rows in table.groupby("device")]
    guide = benchmark_sweep.GUIDE.read_text(encoding="utf-8")
    assert len(benchmark_sweep.MEASURED.findall(guide)) == 1
    assert any(text in guide for text in texts)
