"""The text of ``book/results.md``: each number that the sources print, beside ours.

Ours come from the executed pages: the metadata of what ``plotting.beside_published`` shows hold the numbers behind
it.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from support.plotting import COMPARISON
from tools import sources_page

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "support" / "results"
SETTING = r"(?:hyperparameter|setup|data|grid|target)\b"  # how such a metric begins
OUTCOMES = ["agree", "differ", "fewer than three runs", "not run"]
OF_SETTINGS = ["the same", "another", "not compared"]
MARKS = {"differ": "**", "fewer than three runs": "*"}
KEYS = ["table", "metric", "unit"]

OPENING = """\
# Results

Here stands every number that the five sources print, and ours beside it: mean ± standard deviation over runs
that differ in their seed. Each experiment has a page, which says how ours were made and what they mean. This page
is generated at every build from what those pages computed.

Ours are there only where we ran the source's setting on its complete data set. What was run on a sample stands
in the page of the experiment and not here.

**When do two numbers agree?** The sources report single runs. So we ask whether the printed number could be one
more run of ours: it *agrees* if it lies in the 95 % interval of Student's $t$ for one more run,
$\\text{mean} \\pm t\\,\\text{sd}\\sqrt{1 + 1/n}$ from $n$ runs, widened by half a unit of its last digit. Otherwise
it *differs*. With fewer than three runs we do not say. From three runs the interval is wide: *agrees* is weak
evidence then, and *differs* is strong. What the sources leave open about a setting, we chose, and a number can
differ for that reason alone.

In a table with many columns the printed number stands above and ours below it: plain if they agree, **bold** if
they differ, *slanted* with fewer than three runs. Headers are as printed; where an erratum corrects one, ours
are at the corrected place.

What stands only in a figure of a source is lost with the figure. [](sources.md) lists the figures.

"""


@dataclass(frozen=True)
class Ours:
    """What we have beside a printed number."""

    mean: float
    sd: float | None
    runs: float


def collect(executed: Iterable[nbformat.NotebookNode]) -> dict[int, Ours]:
    """Return our numbers by the row of the published one, from the comparisons that executed pages show."""
    found = {}
    for notebook in executed:
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                for one in output.get("metadata", {}).get(COMPARISON, []):
                    if one["mean"] is not None:
                        found[int(one["row"])] = Ours(one["mean"], one["sd"], one["runs"])
    return found


def outcome(printed: str, ours: Ours | None, places: int, *, setting: bool = False) -> str:
    """Return one of ``OUTCOMES``, or for a setting of ``OF_SETTINGS``; the number is printed to so many places."""
    if setting:
        if ours is None:
            return "not compared"
        return "the same" if math.isclose(float(printed), ours.mean) else "another"
    if ours is None:
        return "not run"
    if ours.runs < 3 or ours.sd is None:
        return "fewer than three runs"
    wide = student_t.ppf(0.975, ours.runs - 1) * ours.sd * math.sqrt(1 + 1 / ours.runs)
    within = abs(float(printed) - ours.mean) <= wide + 0.5 * 10.0**-places
    return "agree" if within else "differ"


def shown(printed: str, ours: Ours | None, places: int, *, setting: bool = False) -> str:
    """Return our number as text: to two digits of its deviation, or one more than the source prints."""
    if ours is None:
        return "–"
    if setting:
        return np.format_float_positional(
            ours.mean, precision=4, fractional=False, trim="-"
        )
    if ours.sd is None:
        return f"{ours.mean:.{places + 1}f}"
    if ours.sd:
        places = max(0, 1 - math.floor(math.log10(ours.sd)))
    return f"{ours.mean:.{places}f} ± {ours.sd:.{places}f}"


def judged(found: dict[int, Ours]) -> pd.DataFrame:
    """Return the published values as printed, each with ``ours`` as text and the ``outcome``."""
    values = pd.read_csv(RESULTS / "published.csv", dtype=str, keep_default_na=False)
    values["setting"] = values["metric"].str.match(SETTING)
    values["runs"] = [found[row].runs if row in found else 0 for row in values.index]
    keys = [values[name] for name in ["experiment", *KEYS]]
    digits = values["value"].str.partition(".")[2].str.len()
    places = digits.groupby(keys).transform("max")  # a printed 0.90 is 0.9 in the file
    for column, say in (("ours", shown), ("outcome", outcome)):
        values[column] = [
            say(value, found.get(row), places[row], setting=setting)
            for row, value, setting in values[["value", "setting"]].itertuples()
        ]
    for column in ("value", "ours"):
        values[column] = values[column].str.replace("-", "−")
    return values


def text(executed: Iterable[nbformat.NotebookNode], root: Path = ROOT) -> str:
    """Return the page."""
    values, places = judged(collect(executed)), sources_page.places(root)
    lines = [OPENING, "## In numbers", "", *_count(values), ""]
    tasks = pd.read_csv(RESULTS / "inventory" / "experiments.csv").set_index("id")
    known = record(root)
    order = sorted(set(values["experiment"]), key=lambda name: int(name.split("/")[0][1:]))
    for name in order:
        rows = values[values["experiment"] == name]
        single = name if name in tasks.index else name.split("/")[0]
        task = tasks.loc[single, "task"] if name == single else "the searches"
        if not isinstance(
            task, str
        ):  # the demonstrations of the lectures have a section only
            task = tasks.loc[single, "section"]
        lines += [f"## {name}: {task}", ""]
        lines += [*_state(name, rows, places, known), "", *_tables(rows), ""]
    return "\n".join(lines)


def _count(values: pd.DataFrame) -> list[str]:
    lines = []
    for what, names, rows in (
        ("results", OUTCOMES, values[~values["setting"]]),
        ("settings", OF_SETTINGS, values[values["setting"]]),
    ):
        table = (
            pd.crosstab(rows["source"], rows["outcome"]).reindex(columns=names).fillna(0)
        )
        table = table.astype(int)
        table.loc["together"] = table.sum()
        lines += [
            f"| {what} printed by | number | {' | '.join(names)} |",
            f"|---|{'---|' * (len(names) + 1)}",
        ]
        lines += [
            f"| {source} | {numbers.sum()} | {' | '.join(map(str, numbers))} |"
            for source, numbers in table.iterrows()
        ]
        lines.append("")
    return lines


def _state(name: str, rows: pd.DataFrame, places: dict, known: dict) -> list[str]:
    """Say where the experiment stands, what of it is run, and what is missing; that once for each page."""
    pages = {
        place.page: f"[{place.title}](../{place.page}.ipynb)"
        for one in name.split("/")
        for place in places.get(one, [])
    }
    lines = [f"*{rows['source'].iloc[0]}.* " + ", ".join(pages.values()) + "."]
    if not pages:
        lines = [f"*{rows['source'].iloc[0]}.* No page runs this experiment yet."]
    for page in pages:
        name_of = page.split("/")[-1]
        have = known.get(name_of, ("nothing", "all of it"))
        if isinstance(have, str):
            lines += ["", f"What is recorded and what is missing stands with {have}."]
        else:
            lines += ["", f"Recorded: {have[0]}.", "", f"Missing: {have[1]}."]
            known[name_of] = name
    if rows["setting"].all():
        lines += [
            "",
            "Printed are settings alone. What came of them stood in figures that are lost.",
        ]
    return lines


def record(root: Path = ROOT) -> dict[str, tuple[str, str]]:
    """Return for each experiment page what is recorded and what is missing, from the list beside the records."""
    listed = (root / "support" / "results" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| E\S+ \| `(\w+)` \| (.+?) \| (.+) \|$", listed, re.MULTILINE)
    return {page: (have, missing) for page, have, missing in rows}


def _tables(rows: pd.DataFrame) -> list[str]:
    lines, rest = [], []
    results = rows[~rows["setting"]]
    for _, group in results.groupby(KEYS, sort=False):
        columns = _columns(group)
        if columns is None:
            rest.append(group)
        else:
            lines += _matrix(group, columns)
    if rest:
        lines += _list(pd.concat(rest))
    settings = rows[rows["setting"]]
    if len(settings):
        inside = _list(settings)
        lines += [f":::{{dropdown}} Settings ({len(settings)})", *inside, ":::", ""]
    return lines


def _columns(group: pd.DataFrame) -> pd.Series | None:
    """Return what tells the columns of a printed table apart, if it has at least three and several rows."""
    for names in (["epoch"], ["model", "dataset"]):
        columns = group[names].agg(", ".join, axis=1)
        whole = not pd.concat([group["optimizer"], columns], axis=1).duplicated().any()
        if whole and columns.nunique() >= 3 and group["optimizer"].nunique() > 1:
            return columns
    return None


def _matrix(group: pd.DataFrame, columns: pd.Series) -> list[str]:
    first = group.iloc[0]
    unit = ", %" if first["unit"] == "%" else ""
    about = f"Table {first['table']}: {first['metric']}{unit}"
    head = list(dict.fromkeys(columns))
    if group["epoch"].nunique() >= 3:
        about += f", {first['model']} on {first['dataset']}, by epoch as printed"
    numbers = sorted(set(group["runs"]) - {0})
    runs = ", ".join(f"{number:g}" for number in numbers)
    about += f". Ours below; runs: {runs}." if numbers else ". Ours: not run."
    lines = [f"**{about}**", "", f"| | {' | '.join(head)} |", f"|---|{'---|' * len(head)}"]
    for optimizer, some in group.groupby("optimizer", sort=False):
        cells = dict(zip(columns[some.index], some.apply(_both, axis=1), strict=True))
        lines.append(f"| {optimizer} | {' | '.join(cells.get(one, '') for one in head)} |")
    return [*lines, "", *_errata(first)]


def _errata(first: pd.Series) -> list[str]:
    """Name the errata of a printed table."""
    errata = pd.read_csv(RESULTS / "inventory" / "errata.csv").set_index("id")
    number = re.match(r"\d+", first["table"])
    own = errata["title"].str.match(rf"Tables? {number[0] if number else ''}\b")
    names = errata.index[own & (errata["source"] == first["source"])]
    links = ", ".join(f"{{ref}}`{name} <erratum-{name.lower()}>`" for name in names)
    return [f"On this table: {links}.", ""] if number and links else []


def _both(row: pd.Series) -> str:
    if row["outcome"] == "not run":
        return row["value"]
    mark = MARKS.get(row["outcome"], "")
    mean, spread, deviation = row["ours"].partition(" ± ")
    below = f"<br>± {deviation}" if spread else ""
    return f"{row['value']}<br>{mark}{mean}{mark}{below}"


def _list(rows: pd.DataFrame) -> list[str]:
    lines = ["| | what | printed | ours | |", "|---|---|---|---|---|"]
    for _, row in rows.iterrows():
        who = row["optimizer"] or ("" if row["setting"] else row["model"])
        unit = f", {row['unit']}" if row["unit"] in {"dB", "%"} else ""
        at = f", epoch {row['epoch']}" if row["epoch"] and row["unit"] != "epoch" else ""
        runs = f" ({row['runs']:g} runs)" if row["runs"] and not row["setting"] else ""
        cells = [
            who,
            row["metric"].removeprefix("hyperparameter: ") + unit + at,
            row["value"],
            row["ours"] + runs,
            row["outcome"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]
