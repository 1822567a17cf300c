"""``make publish`` joins a store into the recorded runs."""

import pytest

from support import records
from tools import publish


@pytest.fixture
def experiment(monkeypatch, tmp_path):
    """Return a folder of results in which one experiment has no runs yet."""
    monkeypatch.setattr(publish, "experiments", lambda: {"small": None})
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def fill(store, seeds, status="finished"):
    for seed in seeds:
        history = [(1, "test", "accuracy", 0.9, 1.5)]
        records.Store(store).write({"seed": seed}, records.Outcome(status, history))


def test_runs_are_added_and_counted(experiment, tmp_path):
    fill(tmp_path / "first", [0, 1])
    said = publish.publish("small", tmp_path / "first", experiment)
    assert "2 runs added, 0 replaced, 2 in all" in said
    fill(tmp_path / "second", [1], "diverged")
    fill(tmp_path / "second", [2])
    said = publish.publish("small", tmp_path / "second", experiment)
    assert "1 runs added, 1 replaced, 3 in all" in said
    assert "1 diverged" in said
    runs = records.recorded("small").runs
    assert dict(zip(runs["seed"], runs["status"], strict=True)) == {
        0: "finished",
        1: "diverged",
        2: "finished",
    }


def test_an_unknown_experiment_and_an_empty_store_are_refused(experiment, tmp_path):
    with pytest.raises(ValueError, match="NOTEBOOK=large: the experiments are small"):
        publish.publish("large", tmp_path, experiment)
    with pytest.raises(ValueError, match="no finished runs"):
        publish.publish("small", tmp_path / "nowhere", experiment)
    assert not experiment.exists()
