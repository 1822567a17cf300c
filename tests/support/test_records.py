"""Runs on disk, recorded runs, published values, the inventory, and verdicts."""

import contextlib
import errno
import inspect
import itertools
import json
import math
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support import records
from support.records import (
    Outcome,
    Records,
    Store,
    StoreError,
    badge,
    compare,
    identity,
    inventory,
    published,
    recorded,
    verdict,
)

A = {"optimizer": "adam", "lr": 0.1, "seed": 0}
B = {"optimizer": "sgd", "lr": 1, "seed": 0, "momentum": 0.9}
C = {"optimizer": "adam", "lr": 0.1, "seed": 1}
ENVIRONMENT = {"device": "abacus", "threads": 1, "torch": "2.6.0", "commit": None}


def _history(scale: float) -> list:
    return [
        (epoch, split, metric, scale * epoch + shift, epoch / 8)
        for epoch in (1, 2)
        for split, metric, shift in (
            ("train", "loss", 0.25),
            ("test", "loss", 0.5),
            ("test", "accuracy", 0.75),
        )
    ]


def _finished(scale: float = 1.0) -> Outcome:
    return Outcome("finished", _history(scale))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


@pytest.fixture
def three(store):
    """Return a store with a run that finished, one that diverged and one that raised an error."""
    store.write(A, _finished(1 / 3), ENVIRONMENT)
    store.write(
        B,
        Outcome("diverged", [(1, "train", "loss", math.inf, 0.5)], "too fast"),
        ENVIRONMENT,
    )
    store.write(
        C, Outcome("failed", [], 'ValueError: "no", she said,\nand left'), ENVIRONMENT
    )
    return store


# --- identity -------------------------------------------------------------------------------------------------

values = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
tricky = st.sampled_from(
    [0, 0.0, -0.0, False, 1, 1.0, True, None, "", "1", "1.0", "None", 10**22, 1e22, 0.1, 2]
)


@given(st.dictionaries(st.text(), values), st.randoms(use_true_random=False))
def test_identity_does_not_depend_on_the_order(configuration, random):
    shuffled = list(configuration.items())
    random.shuffle(shuffled)
    assert identity(dict(shuffled)) == identity(configuration)


@given(values | tricky, values | tricky)
def test_identity_depends_on_each_value_but_not_on_how_a_number_is_written(a, b):
    same = a == b and isinstance(a, bool) == isinstance(b, bool)
    assert (identity({"x": a, "y": 1}) == identity({"y": 1.0, "x": b})) == same


def test_identity_depends_on_the_names():
    assert (
        len(
            {
                identity({}),
                identity({"x": 1}),
                identity({"y": 1}),
                identity({"x": 1, "y": 1}),
            }
        )
        == 4
    )


def test_the_identity_of_recorded_runs_stays():
    configuration = {
        "data": "mnist",
        "size": 32,
        "validation": 10000,
        "model": "lenet5",
        "batch": 100,
    }
    configuration |= {
        "epochs": 20,
        "optimizer": "momentum",
        "seed": 0,
        "lr": 0.001,
        "weight_decay": 0.0,
    }
    assert identity(configuration) == "6521b1fd00"


def test_a_float_of_numpy_is_a_number_like_any_other():
    assert identity({"lr": np.float64(0.1)}) == identity({"lr": 0.1})
    assert identity({"lr": np.float64(2)}) == identity({"lr": 2})


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        [1],
        (1,),
        {},
        torch.tensor(1.0),
        np.int64(1),
        np.bool_(True),
        1j,
        b"x",
    ],
    ids=repr,
)
def test_values_that_are_no_plain_finite_values_are_refused(value, store):
    with pytest.raises(ValueError, match="got bad="):
        identity({"good": 1, "bad": value})
    with pytest.raises(ValueError, match="got bad="):
        store.write({"bad": value}, _finished())
    assert store.load().runs.empty


# --- the store ------------------------------------------------------------------------------------------------


def test_a_written_run_is_there_with_its_status(store):
    assert A not in store
    assert store.status(A) is None
    store.write(A, _finished())
    assert A in store
    assert store.status(A) == "finished"
    assert C not in store


def test_a_run_is_found_however_its_configuration_is_written(store):
    store.write(B, _finished())
    assert {"momentum": 0.9, "seed": 0.0, "lr": 1.0, "optimizer": "sgd"} in store
    store.write(dict(reversed(B.items())) | {"lr": 1.0}, _finished())
    assert len(store.load().runs) == 1


def test_a_run_is_one_folder_with_two_files(store):
    store.write(A, _finished(1 / 3), ENVIRONMENT)
    (folder,) = store.path.iterdir()
    assert folder.name.endswith("-" + identity(A))
    assert sorted(os.listdir(folder)) == ["history.csv", "run.json"]
    assert json.loads((folder / "run.json").read_text()) == {
        "configuration": A,
        "status": "finished",
        "reason": "",
        "environment": ENVIRONMENT,
    }
    header, *rows = (folder / "history.csv").read_text().splitlines()
    assert header == "epoch,split,metric,value,seconds"
    assert rows == [",".join(str(value) for value in row) for row in _history(1 / 3)]


@pytest.mark.parametrize("text", ["../../away", "a/b\\c", "x" * 500, "", "*?<>|\0"])
def test_any_text_makes_a_folder_inside_the_store(store, text):
    store.write({"name": text}, _finished())
    assert {"name": text} in store
    assert len(os.listdir(store.path)) == 1
    assert store.load().runs["name"].tolist() == [text]


def _no_rename(*_):
    raise PermissionError("read-only")


@pytest.mark.parametrize(
    ("outcome", "environment", "rename"),
    [
        (
            Outcome("finished", [*_history(1), 5]),
            {},
            os.rename,
        ),  # in the middle of the history
        (_finished(), {"threads": math.nan}, os.rename),  # after the history
        (_finished(), {"device": torch.ones(1)}, os.rename),
        (_finished(), {}, _no_rename),
    ],
    ids=["history", "nan", "tensor", "rename"],
)
def test_a_writer_that_fails_half_way_leaves_nothing(
    store, monkeypatch, outcome, environment, rename
):
    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises((ValueError, TypeError, PermissionError, records.csv.Error)):
        store.write(A, outcome, environment)
    assert A not in store
    assert os.listdir(store.path) == []


def test_a_failed_write_keeps_the_checkpoint_and_a_good_one_drops_it(store):
    path = store.checkpoint(A)
    other = store.checkpoint(B)
    path.write_text("half-way")
    other.write_text("other")
    with pytest.raises(ValueError):
        store.write(A, _finished(), {"threads": math.nan})
    assert path.read_text() == "half-way"
    store.write(A, _finished())
    assert not path.parent.exists()
    assert other.read_text() == "other"


def test_checkpoints_are_no_runs(store):
    store.checkpoint(A).write_text("")
    assert A not in store
    assert store.load().runs.empty


def test_the_first_of_two_records_of_a_run_stays(store):
    store.write(A, _finished(1))
    store.write(A, _finished(2))
    assert store.load().history["value"].tolist() == [row[3] for row in _history(1)]


def test_two_writers_of_the_same_run_leave_one(store, monkeypatch):
    both, rename = threading.Barrier(2), os.rename

    def together(source, target):
        both.wait(10)  # both have written all, and neither has moved it
        rename(source, target)

    monkeypatch.setattr(os, "rename", together)
    writers = [
        threading.Thread(target=store.write, args=(A, _finished(scale))) for scale in (1, 2)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(10)
    assert len(os.listdir(store.path)) == 1
    loaded = store.load()
    assert loaded.runs["run"].tolist() == [identity(A)]
    assert loaded.history["value"].tolist() in [
        [row[3] for row in _history(scale)] for scale in (1, 2)
    ]


def test_a_forgotten_run_can_be_written_again(three):
    three.forget(A)
    assert A not in three
    assert B in three
    three.write(A, _finished(7))
    assert three.load().only([identity(A)]).history["value"].tolist() == [
        row[3] for row in _history(7)
    ]
    three.forget({"never": "there"})


# --- reading --------------------------------------------------------------------------------------------------


def test_load_gives_a_row_for_each_run_and_for_each_value(three):
    loaded = three.load()
    names = ["run", "optimizer", "lr", "seed", "momentum", "status", "reason", *ENVIRONMENT]
    assert set(loaded.runs) == set(names)
    runs = loaded.runs.set_index("run")
    assert set(runs.index) == {identity(A), identity(B), identity(C)}
    assert runs.loc[identity(B), ["optimizer", "lr", "momentum", "device"]].tolist() == [
        "sgd",
        1,
        0.9,
        "abacus",
    ]
    assert runs["status"].to_dict() == {
        identity(A): "finished",
        identity(B): "diverged",
        identity(C): "failed",
    }
    assert runs["reason"].to_dict() == {
        identity(A): "",
        identity(B): "too fast",
        identity(C): 'ValueError: "no", she said,\nand left',
    }
    assert list(loaded.history) == ["run", "epoch", "split", "metric", "value", "seconds"]
    rows = loaded.history[loaded.history["run"] == identity(A)].drop(columns="run")
    assert [tuple(row) for row in rows.itertuples(index=False)] == _history(
        1 / 3
    )  # to the last bit
    assert loaded.history["value"][loaded.history["run"] == identity(B)].tolist() == [
        math.inf
    ]
    assert len(loaded.history) == 7


@pytest.mark.parametrize("chosen", [[A], [A, C], [C], [A, B, C]], ids=len)
def test_columns_of_a_history_are_numbers_even_if_runs_failed(store, three, chosen):
    history = three.load().only([identity(c) for c in chosen]).history
    dtypes = history.dtypes
    assert pd.api.types.is_integer_dtype(dtypes["epoch"])
    assert pd.api.types.is_float_dtype(dtypes["value"])
    assert pd.api.types.is_float_dtype(dtypes["seconds"])


def test_an_empty_or_missing_store_loads_as_nothing(store):
    for loaded in (store.load(), Records.empty()):
        assert list(loaded.runs) == ["run"]
        assert len(loaded.runs) == len(loaded.history) == 0
        assert loaded.metric("test", "loss").empty


def test_metric_gives_one_metric_of_one_split_with_the_configuration(three):
    found = three.load().metric("test", "loss")
    assert found[["epoch", "value", "optimizer", "lr", "status"]].values.tolist() == [
        [1, 1 / 3 + 0.5, "adam", 0.1, "finished"],
        [2, 2 / 3 + 0.5, "adam", 0.1, "finished"],
    ]
    assert three.load().metric("validation", "loss").empty


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"optimizer": "adam"}, [A, C]),
        ({"optimizer": "adam", "seed": 1}, [C]),
        ({"lr": 1.0}, [B]),
        ({"lr": 0.1, "status": "finished"}, [A]),
        ({"momentum": 0.9}, [B]),
        ({"momentum": 0}, []),
        ({"no such": 1}, []),
        ({}, [A, B, C]),
    ],
    ids=str,
)
def test_where_gives_the_runs_with_these_values_and_their_histories(
    three, condition, expected
):
    found = three.load().where(**condition)
    assert set(found.runs["run"]) == {identity(c) for c in expected}
    assert set(found.history["run"]) == {identity(c) for c in expected} - {identity(C)}
    assert found.runs.index.tolist() == list(range(len(expected)))


def test_where_finds_none(store):
    store.write(A | {"clip": None}, _finished())
    store.write(A | {"clip": 2.0}, _finished())
    assert store.load().where(clip=None).runs["run"].tolist() == [
        identity(A | {"clip": None})
    ]


def test_only_gives_the_runs_of_these_identities(three):
    found = three.load().only(name for name in (identity(B), "unknown"))
    assert found.runs["run"].tolist() == [identity(B)]
    assert found.history["value"].tolist() == [math.inf]


def test_join_has_the_runs_of_both_and_prefers_the_other(tmp_path, three):
    other = Store(tmp_path / "other")
    other.write(A, _finished(5), {"device": "sundial"})
    other.write(A | {"seed": 9}, _finished(6), {"device": "sundial"})
    joined = three.load().join(other.load())
    assert len(joined.runs) == 4
    assert joined.runs.set_index("run")["device"].to_dict() == {
        identity(A): "sundial",
        identity(A | {"seed": 9}): "sundial",
        identity(B): "abacus",
        identity(C): "abacus",
    }
    mine = joined.history[joined.history["run"] == identity(A)]
    assert mine["value"].tolist() == [row[3] for row in _history(5)]
    assert len(joined.history) == 6 + 6 + 1


def test_join_with_nothing_changes_nothing(three):
    loaded = three.load()
    for joined in (loaded.join(Records.empty()), Records.empty().join(loaded)):
        pd.testing.assert_frame_equal(joined.runs, loaded.runs)
        pd.testing.assert_frame_equal(joined.history, loaded.history)
    assert Records.empty().join(Records.empty()).runs.empty


# --- recorded runs --------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_what_is_saved_is_recorded_to_six_digits(three, results):
    loaded = three.load()
    loaded.save(results / "mine")
    again = recorded("mine")
    keys = ["epoch", "split", "metric"]
    expected = loaded.history.sort_values(["run", *keys]).reset_index(drop=True)
    pd.testing.assert_frame_equal(again.history[["run", *keys]], expected[["run", *keys]])
    for column in ("value", "seconds"):
        assert pd.api.types.is_float_dtype(again.history[column])
        rounded = [float(f"{value:.5e}") for value in expected[column]]
        assert again.history[column].tolist() == rounded
    assert list(again.runs) == list(loaded.runs)
    runs, expected = (frame.runs.set_index("run").sort_index() for frame in (again, loaded))
    for column in runs:
        ours, theirs = runs[column], expected[column]
        assert ours.isna().tolist() == theirs.isna().tolist(), column
        assert ours.dropna().tolist() == theirs.dropna().tolist(), column
    found = again.where(optimizer="adam", lr=0.1, status="finished")
    assert found.runs["run"].tolist() == [identity(A)]


def test_the_files_do_not_depend_on_the_order_of_the_runs(three, results):
    loaded = three.load()
    loaded.save(results / "one")
    shuffled = Records(
        loaded.runs.iloc[::-1], loaded.history.sample(frac=1, random_state=0)
    )
    shuffled.save(results / "two")
    for name in ("runs.csv", "history.csv"):
        assert (results / "one" / name).read_bytes() == (
            results / "two" / name
        ).read_bytes()


def test_texts_of_digits_alone_stay_texts(store, results):
    configurations = ({"seed": seed, "code": "0123456789"} for seed in itertools.count())
    configuration = next(chosen for chosen in configurations if identity(chosen).isdigit())
    store.write(configuration, _finished(), {"commit": "0012"})
    store.load().save(results / "digits")
    found = recorded("digits")
    assert found.runs[["run", "code", "commit"]].values.tolist() == [
        [identity(configuration), "0123456789", "0012"]
    ]
    assert set(found.history["run"]) == {identity(configuration)}


def test_what_was_never_recorded_is_empty(results):
    assert recorded("nothing").runs.empty
    assert recorded("nothing").history.empty


def test_nothing_can_be_saved_and_read_again(results):
    Records.empty().save(results / "empty")
    assert recorded("empty").runs.empty
    assert recorded("empty").history.empty


# --- sources --------------------------------------------------------------------------------------------------


def test_all_671_published_values_are_there():
    table = published()
    assert len(table) == 671
    names = [
        "source",
        "experiment",
        "dataset",
        "model",
        "optimizer",
        "metric",
        "epoch",
        "value",
        "unit",
        "table",
        "row",
    ]
    assert list(table) == names
    assert table["row"].tolist() == list(range(671))
    assert table[["source", "experiment", "metric", "value"]].notna().all(axis=None)
    assert pd.api.types.is_float_dtype(table["value"])


def test_e5_has_eleven_hyper_parameters_of_five_methods():
    e5 = published("E5")
    assert len(e5) == 17
    assert set(e5["experiment"]) == {"E5"}
    assert e5.index.tolist() == list(range(17))
    assert published()["value"][e5["row"]].tolist() == e5["value"].tolist()
    hyper = e5[e5["metric"].str.startswith("hyperparameter")]
    steps = (
        hyper[hyper["metric"] == "hyperparameter: alpha"]
        .set_index("optimizer")["value"]
        .to_dict()
    )
    assert steps == {"SGD": 0.1, "SAM": 0.03, "Lion": 1e-4, "K-FAC": 0.01, "Shampoo": 0.1}
    assert len(hyper) == 11
    assert published("no such experiment").empty


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("methods", 81),
        ("experiments", 28),
        ("figures", 113),
        ("claims", 112),
        ("errata", 136),
        ("glossary", 193),
    ],
)
def test_the_inventory_is_complete_and_its_ids_are_unique(kind, number):
    table = inventory(kind)
    assert len(table) == number
    if kind != "glossary":
        assert table.index.name == "id"
        assert table.index.is_unique
        assert (table.index != "").all()
        assert not table["title" if "title" in table else table.columns[0]].eq("").any()
    else:
        assert list(table) == ["russian", "english", "definition"]


def test_errata_are_119_and_17_conflicts_and_caveats():
    kinds = inventory("errata")["kind"].value_counts().to_dict()
    assert kinds.pop("conflict") + kinds.pop("method") == 17
    assert sum(kinds.values()) == 119
    assert set(kinds) == {"error", "ambiguous", "omission", "garbled"}


def test_records_need_no_torch():
    script = "import sys; from support import records; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_compare_gives_mean_deviation_and_number_beside_the_published_value():
    ours = pd.DataFrame(
        [
            ("sgd", "accuracy", 0.5),
            ("sgd", "accuracy", 0.7),
            ("sgd", "accuracy", 0.9),
            ("lion", "accuracy", 0.25),
        ],
        columns=["optimizer", "metric", "value"],
    )
    theirs = pd.DataFrame(
        [("sgd", "accuracy", 0.8, "x"), ("adam", "accuracy", 0.6, "x")],
        columns=["optimizer", "metric", "value", "table"],
    )
    both = compare(ours, theirs)
    assert list(both) == ["published", "mean", "sd", "runs"]
    assert both.index.names == ["optimizer", "metric"]
    rows = {name: list(both.loc[(name, "accuracy")]) for name in ("sgd", "adam", "lion")}
    assert rows["sgd"] == pytest.approx([0.8, 0.7, 0.2, 3])
    assert rows["adam"] == pytest.approx([0.6, math.nan, math.nan, math.nan], nan_ok=True)
    assert rows["lion"] == pytest.approx([math.nan, 0.25, math.nan, 1], nan_ok=True)
    assert len(both) == 3


def test_compare_keeps_the_place_of_a_published_value():
    ours = pd.DataFrame({"lr": [1, 2], "value": [1.0, 5]})
    theirs = pd.DataFrame({"lr": [3, 1], "value": [4.0, 6.0], "row": [40, 41]})
    both = compare(ours, theirs, on=["lr"])
    assert both["row"].tolist() == pytest.approx([41, math.nan, 40], nan_ok=True)
    assert both["published"].tolist() == pytest.approx([6, math.nan, 4], nan_ok=True)


def test_compare_takes_other_columns_as_names():
    ours = pd.DataFrame({"lr": [1, 1, 2], "value": [1.0, 3, 5], "optimizer": list("abc")})
    theirs = pd.DataFrame({"lr": [1], "value": [4.0]})
    both = compare(ours, theirs, on=["lr"])
    assert both.loc[1].tolist() == pytest.approx([4, 2, math.sqrt(2), 2])
    assert both.loc[2, "mean"] == 5


# --- verdicts and badges --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "text", "kind"),
    [
        (True, "confirmed", "confirmed"),
        (False, "refuted", "refuted"),
        (None, "undecided", "undecided"),
        (np.True_, "confirmed", "confirmed"),
        (np.float64(1) < 0, "refuted", "refuted"),
        (pd.Series([1, 2]).gt(0).all(), "confirmed", "confirmed"),
        ("a GPU", "not tested (needs a GPU)", "not"),
    ],
)
def test_a_verdict_names_its_outcome(outcome, text, kind):
    found = verdict("C1", outcome, "3 of 5 runs")
    assert found.outcome == text
    assert repr(found) == f"C1 {text}: 3 of 5 runs"
    shown = found._repr_mimebundle_()
    assert shown["text/plain"] == repr(found)
    assert f'class="verdict verdict-{kind}" id="claim-C1"' in shown["text/html"]
    assert shown["application/vnd.descent.verdict+json"] == {
        "claim": "C1",
        "outcome": text,
        "evidence": "3 of 5 runs",
    }
    json.dumps(shown)


def test_a_verdict_carries_the_hypothesis_of_the_inventory():
    assert verdict("C1", True, "").hypothesis == inventory("claims").loc["C1", "hypothesis"]
    assert verdict("C1", True, "").hypothesis.startswith(
        "A step that is too large diverges"
    )


@pytest.mark.parametrize("claim", ["C0", "c1", "", "M01"])
def test_a_verdict_on_an_unknown_claim_is_an_error(claim):
    with pytest.raises(KeyError):
        verdict(claim, True, "")


@pytest.mark.parametrize("outcome", [math.nan, 0.5, [True]])
def test_an_outcome_that_is_no_truth_value_is_an_error(outcome):
    with pytest.raises(TypeError):
        verdict("C1", outcome, "")


def test_a_formula_in_a_hypothesis_is_marked_for_the_browser():
    html = verdict("C14", True, "")._repr_mimebundle_()["text/html"]
    assert r'<span class="math notranslate nohighlight">\(\gamma=0.9\)</span>' in html
    assert "$" not in html


def test_a_verdict_escapes_what_it_shows():
    found = records.Verdict(
        "C1", "a < b & c", "not tested (needs <b>)", 'p < 0.05 <script>"'
    )
    html = found._repr_mimebundle_()["text/html"]
    assert "a &lt; b &amp; c" in html
    assert "needs &lt;b&gt;" in html
    assert "p &lt; 0.05 &lt;script&gt;" in html
    assert "<script>" not in html


def test_a_notebook_may_ask_for_some_kinds_of_output_only():
    for shown in (verdict("C1", True, ""), badge(Records.empty(), [])):
        assert inspect.signature(shown._repr_mimebundle_).bind(include=None, exclude=None)
        assert set(shown._repr_mimebundle_(include=None)) >= {"text/plain", "text/html"}


@pytest.mark.parametrize(
    ("configurations", "sample", "kind", "number"),
    [
        ([A, B], False, "complete", "2 of the 2"),
        ([A, B, A | {"seed": 5}], False, "partial", "2 of the 3"),
        ([A, A, dict(reversed(A.items()))], False, "complete", "1 of the 1"),
        ([A, B], True, "sample", "2 of the 2"),
        ([A, A | {"seed": 5}], True, "sample", "1 of the 2"),
    ],
)
def test_a_badge_says_how_many_of_the_runs_are_recorded_and_where(
    three, configurations, sample, kind, number
):
    found = badge(three.load(), configurations, sample=sample)
    assert found.kind == kind
    what = "runs of the study" if sample else "full runs"
    assert found.text == f"{number} {what} are recorded, run on abacus"
    shown = found._repr_mimebundle_()
    assert f'record-badge record-{kind}"' in shown["text/html"]
    assert shown["text/plain"] == f"{kind}: {found.text}"


@pytest.mark.parametrize("sample", [True, False])
def test_a_badge_of_runs_that_are_not_there_says_so(three, sample):
    for some in (Records.empty(), three.load()):
        found = badge(some, [A | {"seed": 5}, A | {"seed": 6}], sample=sample)
        assert found.kind == "not run"
        what = "runs of the study" if sample else "full runs"
        assert found.text == f"none of the 2 {what} has been recorded yet"
        assert 'record-badge record-not"' in found._repr_mimebundle_()["text/html"]


def test_a_badge_names_only_the_devices_of_the_runs_it_counts(three):
    three.write(A | {"seed": 5}, _finished(), {"device": "<sundial>"})
    assert badge(three.load(), [A, B]).text.endswith("run on abacus")
    found = badge(three.load(), [A, A | {"seed": 5}])
    assert found.text.endswith("run on <sundial>, abacus")
    assert "run on &lt;sundial&gt;, abacus" in found._repr_mimebundle_()["text/html"]


def test_a_failed_run_is_not_a_recorded_one(three):
    three.write(A | {"seed": 5}, Outcome("failed", [], "no memory"), {"device": "abacus"})
    found = badge(three.load(), [A, A | {"seed": 5}])
    assert (found.kind, found.text[:8]) == ("partial", "1 of the")


# --- oscillation ----------------------------------------------------------------------------------------------


def test_a_straight_curve_does_not_oscillate_and_a_zigzag_does():
    assert records.oscillation([3 - 0.5 * t for t in range(9)]) == pytest.approx(
        0, abs=1e-12
    )
    zigzag = [(-1) ** t for t in range(8)]  # second differences of size 4
    assert records.oscillation(zigzag) == pytest.approx((16 / 6) ** 0.5)
    assert records.oscillation([1, 2, 4]) == pytest.approx((1 / 6) ** 0.5)


def test_oscillation_is_the_deviation_of_the_noise_about_a_trend():
    noise = np.random.default_rng(0).normal(scale=0.3, size=4000)
    curve = [0.01 * t + value for t, value in enumerate(noise)]
    assert records.oscillation(curve) == pytest.approx(0.3, rel=0.03)


def test_oscillation_of_two_values_is_refused():
    with pytest.raises(ValueError, match="three or more; got 2"):
        records.oscillation([1.0, 2.0])


# --- claims -----------------------------------------------------------------------------------------------------


def _ended_process():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def _leave_claim(store, owner, age=0.0):
    """Leave the claim on A that a process has made, and not touched for so many seconds."""
    file = store.checkpoint(A).with_name("claim.1")
    file.write_text(owner)
    now = file.stat().st_mtime
    os.utime(file, (now - age, now - age))
    return file


def test_a_claim_keeps_others_out_until_it_is_given_back(store):
    other = Store(store.path)
    with store.claim([A, B]) as mine:
        with other.claim([A]) as theirs:
            assert (mine, theirs) == (True, False)
        with other.claim([C]) as theirs:
            assert theirs
        with other.claim([A]) as theirs:
            assert not theirs
    with other.claim([A]) as theirs:
        assert theirs
    assert os.listdir(store.path / ".unfinished") == []


def test_runs_are_claimed_all_or_none(store):
    with store.claim([A]), Store(store.path).claim([A, B, C]) as theirs:
        assert not theirs
        with Store(store.path).claim([B, C]) as others:
            assert others


def test_an_error_gives_a_claim_back_and_keeps_the_checkpoint(store):
    def interrupted():
        with store.claim([A]):
            store.checkpoint(A).write_text("half-way")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with store.claim([A]) as mine:
        assert mine
    assert os.listdir(store.checkpoint(A).parent) == ["checkpoint.pt"]


def test_the_claim_of_a_process_that_has_ended_here_is_taken_over_at_once(store):
    _leave_claim(store, f"{records._machine()} {_ended_process()}")
    assert store.abandoned(A) == 1
    with store.claim([A]) as mine:
        assert mine
        assert store.abandoned(A) == 1
        with Store(store.path).claim([A]) as theirs:
            assert not theirs


@pytest.mark.parametrize(
    "owner",
    ["elsewhere 1", "", f"{records._machine()} {os.getpid()}"],
    ids=["elsewhere", "nobody", "this process"],  # the number is another one in each worker
)
def test_a_claim_without_a_sign_of_life_is_taken_over_when_it_is_stale(store, owner):
    file = _leave_claim(store, owner, age=store.stale - 20)
    with store.claim([A]) as mine:
        assert not mine
    assert store.abandoned(A) == 0
    _leave_claim(store, owner, age=store.stale + 1)
    with store.claim([A]) as mine:
        assert mine
    assert file.exists()  # it counts how many gave up
    assert store.abandoned(A) == 1


def test_a_claim_shows_signs_of_life_until_it_is_given_back(tmp_path):
    store = Store(tmp_path, stale=0.3)
    with store.claim([A]):
        (file,) = store.checkpoint(A).parent.glob("claim.*")
        for _ in range(2):
            os.utime(file, (0, 0))
            end = time.monotonic() + 60
            while not file.stat().st_mtime:
                assert time.monotonic() < end
                time.sleep(0.01)
        threads = threading.active_count()
    end = time.monotonic() + 60
    while threading.active_count() >= threads:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("left", [False, True], ids=["new", "left behind"])
def test_of_many_at_once_one_gets_the_claim(store, left):
    if left:
        _leave_claim(store, "elsewhere 1", age=2 * store.stale)
    for _ in range(20):
        start, end, got = threading.Barrier(6), threading.Barrier(6), []

        def claim(start=start, end=end, got=got):
            own = Store(store.path)
            start.wait(60)
            with own.claim([A]) as mine:
                got.append(mine)
                end.wait(60)

        threads = [threading.Thread(target=claim) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got) == [False] * 5 + [True]


def test_a_run_recorded_meanwhile_leaves_nothing_to_claim_behind(store):
    with store.claim([A]) as mine:
        store.write(A, _finished())
        assert mine
    assert os.listdir(store.path / ".unfinished") == []


def test_another_process_gets_the_folder_by_its_whole_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    text = pickle.dumps(Store("runs", stale=7))
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = pickle.loads(text)
    assert (again.path, again.stale) == (tmp_path / "runs", 7)


# --- a file system that does not rename in one step, or has no room -------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.ENOTSUP, errno.EIO])
def test_where_folders_cannot_be_renamed_a_record_is_the_same(store, monkeypatch, number):
    def never(*_):
        raise OSError(number, "not here")

    store.write(B, _finished(3), ENVIRONMENT)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", never)
        store.write(A, _finished(1 / 3), ENVIRONMENT)
        store.write(A, _finished(5), ENVIRONMENT)  # the first one stays
    again = Store(store.path.with_name("again"))
    again.write(A, _finished(1 / 3), ENVIRONMENT)
    (folder,) = again.path.iterdir()
    for file in folder.iterdir():
        assert (store.path / folder.name / file.name).read_bytes() == file.read_bytes()
    assert len(os.listdir(store.path)) == 2
    assert len(os.listdir(store.path / folder.name)) == 2


@pytest.mark.parametrize("torn", ["history.csv", "run.json", "both", "none"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_process_that_dies_while_a_folder_is_moved_leaves_no_record(store, torn, order):
    """The file system copies one file after the other, and the second, or all of both, never arrive."""

    def half(source, target):
        os.mkdir(target)
        for name in ["history.csv", "run.json"][::order]:
            whole = (Path(source) / name).read_bytes()
            if torn != "none":
                part = whole[: len(whole) // 2] if torn in (name, "both") else whole
                (Path(target) / name).write_bytes(part)
        os._exit(9)

    child = os.fork()
    if not child:
        os.rename = half
        store.write(A, _finished(1 / 3), ENVIRONMENT)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert A not in store
    assert store.status(A) is None
    assert store.load().runs.empty
    store.write(A, _finished(1 / 3), ENVIRONMENT)
    assert store.load().history["value"].tolist() == [row[3] for row in _history(1 / 3)]


@contextlib.contextmanager
def _little_room(size):
    """Let no file grow beyond a size, as a full disk does."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("renames", [True, False])
def test_a_record_for_which_there_is_no_room_is_one_clear_error(
    store, monkeypatch, renames
):
    store.write(A, _finished())
    long = Outcome("finished", _history(1) * 5000)
    if not renames:

        def never(*_):
            raise OSError(errno.ENOSYS, "not here")

        monkeypatch.setattr(os, "rename", never)
    with (
        _little_room(100_000),
        pytest.raises(
            StoreError, match=rf"^cannot write to {re.escape(str(store.path))}: "
        ),
    ):
        store.write(B, long)
    assert B not in store
    assert len(os.listdir(store.path)) == len(store.load().runs) == 1


def test_where_the_copy_of_a_record_finds_no_room_nothing_is_left(store, monkeypatch):
    """The disk is full after the first of two files."""

    def never(*_):
        raise OSError(errno.ENOSYS, "not here")

    written, durable = [], records._durable

    def full(path):
        written.append(path.name)
        if len(written) == 4:  # two beside the place, and two in it
            raise OSError(errno.ENOSPC, "no space")
        return durable(path)

    monkeypatch.setattr(os, "rename", never)
    monkeypatch.setattr(records, "_durable", full)
    with pytest.raises(StoreError, match="No space left on device"):
        store.write(A, _finished())
    assert os.listdir(store.path) == []


@pytest.mark.parametrize("number", sorted(records.REFUSALS))
def test_a_store_that_may_not_be_written_says_so_before_anything_runs(
    store, monkeypatch, number
):
    def refused(*_, **__):
        raise OSError(number, "refused")

    monkeypatch.setattr(os, "mkdir", refused)
    for write in (lambda: store.checkpoint(A), lambda: store.write(A, _finished())):
        with pytest.raises(StoreError, match=re.escape(os.strerror(number))):
            write()
    with pytest.raises(StoreError, match="cannot write"), store.claim([A]):
        pass
