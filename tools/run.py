"""Run an experiment with papermill: ``make run NOTEBOOK=mnist_lenet ARGS="-p scale quick -p seeds '[0, 1]'"``.

papermill itself takes an unknown parameter, or a number that YAML reads as text, without a word. Here both
are refused before anything runs.
"""

import argparse
import ast
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import papermill
import yaml

ROOT = Path(__file__).resolve().parent.parent
TEXT_FOR_NUMBER = (
    "this is a text, not a number; write it as in 0.001 or 1.0e-3, without quotes"
)
NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a mapping",
}


class ParameterError(ValueError):
    """A parameter that the experiment does not have, or a value that does not fit it."""


def experiments(root: Path = ROOT) -> dict[str, Path]:
    """Return the notebooks of the experiments by name."""
    return {path.stem: path for path in sorted(root.glob("notebooks/*.ipynb"))}


def defaults(notebook: Path) -> dict[str, object]:
    """Return the parameters of a notebook and their defaults: the literals of its cell tagged ``parameters``."""
    cells = [
        cell
        for cell in nbformat.read(notebook, as_version=4).cells
        if "parameters" in cell.metadata.get("tags", [])
    ]
    if len(cells) != 1:
        raise ParameterError(
            f"{notebook.name}: {len(cells)} cells are tagged parameters, not one"
        )
    found = {}
    for line in ast.parse(cells[0].source).body:
        if not isinstance(line, ast.Assign) or not isinstance(line.targets[0], ast.Name):
            raise ParameterError(
                f"{notebook.name}: the parameters cell holds more than assignments"
            )
        found[line.targets[0].id] = ast.literal_eval(line.value)
    return found


def parse(text: str) -> object:
    """Return the value that a text on the command line means."""
    try:
        return None if text == "None" else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ParameterError(f"cannot read the value {text!r}: {error}") from error


def check(given: Mapping[str, object], known: Mapping[str, object]) -> None:
    """Refuse a parameter that is not known, and a value of another type than the default's.

    Raises
    ------
    ParameterError
        With the parameters that there are, or with what the value should be.
    """
    for name, value in given.items():
        if name not in known:
            there = "\n".join(f"  {key} = {default!r}" for key, default in known.items())
            raise ParameterError(
                f"unknown parameter {name!r}; the parameters and their defaults are\n{there}"
            )
        if complaint := misfit(value, known[name]):
            raise ParameterError(
                f"{name}: {complaint} (the default is {known[name]!r}; got {value!r})"
            )


def misfit(value: object, default: object) -> str | None:
    """Return why a value cannot stand in place of a default, ``None`` if it can."""
    if (
        default is None
    ):  # it says nothing of the type, but a number in quotes is never meant
        entries = value if isinstance(value, list) else [value]
        texts = [entry for entry in entries if isinstance(entry, str) and is_number(entry)]
        return TEXT_FOR_NUMBER if texts else None
    if isinstance(default, list | tuple):
        return misfit_of_list(value, default)
    kind = type(default)
    if type(value) is kind or (kind is float and type(value) is int):
        return None
    if kind in (int, float) and isinstance(value, str) and is_number(value):
        return TEXT_FOR_NUMBER
    if kind is str and isinstance(value, bool | int | float):
        return f"it must be a text; write '\"{value}\"' to mean one"
    return f"it must be {NAMES[kind]}"


def misfit_of_list(value: object, default: Sequence[object]) -> str | None:
    """Return why a value cannot stand in place of a list; each entry must fit one of the default's."""
    if not isinstance(value, list):
        return f"it must be a list; write '[{value}]'"
    for entry in value if default else ():
        complaints = [misfit(entry, example) for example in default]
        if None not in complaints:
            return f"in the list, {entry!r}: {complaints[0]}"
    return None


def is_number(text: str) -> bool:
    """Tell whether Python reads a text as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def parameters(options: argparse.Namespace) -> dict[str, object]:
    """Return the parameters given by ``-f`` and ``-p``; those of ``-p`` win."""
    given = {}
    if options.file:
        given = yaml.safe_load(options.file.read_text(encoding="utf-8")) or {}
        if not isinstance(given, dict):
            raise ParameterError(f"{options.file} must hold lines 'name: value'")
    return given | {name: parse(text) for name, text in options.parameters}


def execute(notebook: Path, given: Mapping[str, object], root: Path = ROOT) -> Path:
    """Execute a notebook with these parameters, in the root folder, and return where the executed one is."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    target = root / "_build" / "runs" / f"{notebook.stem}-{stamp}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"{notebook.name} with {dict(given) or 'its defaults'} -> {target}", flush=True)
    try:
        papermill.execute_notebook(
            notebook,
            target,
            parameters=dict(given),
            kernel_name="python3",
            language="python",
            cwd=root,
            stderr_file=sys.stderr,  # the progress bars of the sweeps
            extra_arguments=["--log-level=ERROR"],
        )
    except papermill.PapermillExecutionError as error:
        sys.exit(f"{error}\nThe notebook stopped here: {target}")
    return target


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(
        prog="tools/run.py", description=__doc__.split("\n")[0]
    )
    parser.add_argument("notebook", help="name of a notebook in notebooks/")
    parser.add_argument(
        "-p",
        dest="parameters",
        nargs=2,
        metavar=("NAME", "VALUE"),
        action="append",
        default=[],
        help="a parameter; may be repeated",
    )
    parser.add_argument("-f", dest="file", type=Path, help="a YAML file of parameters")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> None:
    """Run what the command line says."""
    options, known = options_of(arguments), experiments(root)
    if options.notebook not in known:
        sys.exit(f"NOTEBOOK={options.notebook}: the experiments are {', '.join(known)}")
    notebook = known[options.notebook]
    try:
        given = parameters(options)
        check(given, defaults(notebook))
    except (ParameterError, OSError, yaml.YAMLError) as error:
        sys.exit(f"{notebook.stem}: {error}")
    print(f"Done: {execute(notebook, given, root)}")


if __name__ == "__main__":
    main()
