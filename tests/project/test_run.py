"""``make run``: unknown parameters and text for numbers are refused, right ones reach the notebook."""

import subprocess

import nbformat
import pytest

from tools import run

PARAMETERS = """
scale = "smoke"
lr = 0.1
epochs = 5
retune = False
seeds = [0]
optimizers = None  # a = b
root = (
    ""  # a folder
)
"""


@pytest.fixture
def project(tmp_path):
    """Return a folder with one small experiment."""
    cells = [
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("assert epochs < 100, 'too many'\nprint(lr * epochs)"),
    ]
    (tmp_path / "notebooks").mkdir()
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks" / "small.ipynb"
    )
    return tmp_path


def test_defaults_are_read_from_the_parameters_cell(project):
    assert run.defaults(project / "notebooks" / "small.ipynb") == {
        "scale": "smoke",
        "lr": 0.1,
        "epochs": 5,
        "retune": False,
        "seeds": [0],
        "optimizers": None,
        "root": "",
    }


@pytest.mark.parametrize("name", sorted(run.experiments()))
def test_every_experiment_has_literal_defaults_and_starts_at_smoke(name):
    assert run.defaults(run.experiments()[name])["scale"] == "smoke"


@pytest.mark.parametrize(
    ("value", "default"),
    [
        (0.001, 0.1),
        (1, 0.1),
        (3, 5),
        (True, False),
        ([1, 2, 3], [0]),
        ([], [0]),
        ([1, 0.5], [0.1]),
        (["sgd"], None),
        ("quick", "smoke"),
        ([1, "a"], []),
    ],
)
def test_a_value_of_the_right_type_is_taken(value, default):
    assert run.misfit(value, default) is None


@pytest.mark.parametrize(
    ("text", "default", "complaint"),
    [
        ("1e-3", 0.1, "1.0e-3"),
        ("'3'", 5, "not a number"),
        ("3.5", 5, "whole number"),
        ("true", 5, "whole number"),
        ("true", 0.1, "a number"),
        ("1", False, "true or false"),
        ("quick", 0.1, "a number"),
        ("1", "smoke", "'\"1\"'"),
        ("1", [0], r"'\[1\]'"),
        ("[0, 1e-3]", [0.1], "'1e-3': this is a text"),
        ("null", 5, "whole number"),
        ("1e1", None, "not a number"),
        ("[0, 1e1]", None, "not a number"),
    ],
)
def test_a_value_of_another_type_is_refused(text, default, complaint):
    with pytest.raises(run.ParameterError, match=complaint):
        run.check({"name": run.parse(text)}, {"name": default})


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["small", "-p", "rate", "1"], "(?s)unknown parameter 'rate'.*epochs = 5"),
        (["small", "-p", "lr", "1e-3"], r"small: lr: .*1\.0e-3.*the default is 0\.1"),
        (["large"], "NOTEBOOK=large: the experiments are small"),
        (["small", "-f", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_a_wrong_command_is_refused_before_anything_runs(project, arguments, complaint):
    with pytest.raises(SystemExit, match=complaint):
        run.main(arguments, project)
    assert not (project / "_build").exists()


def test_parameters_reach_the_notebook(project, capsys):
    (project / "given.yaml").write_text("lr: 0.25\nepochs: 2\n")
    file = str(project / "given.yaml")
    run.main(["small", "-f", file, "-p", "epochs", "4"], project)
    (executed,) = (project / "_build" / "runs").glob("small-*.ipynb")
    assert str(executed) in capsys.readouterr().out
    assert nbformat.read(executed, as_version=4).cells[-1].outputs[0].text == "1.0\n"


def test_a_failing_notebook_says_where_it_stopped(project):
    with pytest.raises(SystemExit, match=r"(?s)AssertionError: too many.*small-.*ipynb"):
        run.main(["small", "-p", "epochs", "100"], project)


def test_make_sweep_passes_the_scheduler_on():
    made = subprocess.run(
        [
            "make",
            "--dry-run",
            "sweep",
            "NOTEBOOK=page",
            "SCHEDULER=tcp://a:1",
            "ARGS=-p b 2",
        ],
        cwd=run.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert '-m tools.run "page" -p executor "tcp://a:1" -p b 2' in made.stdout
