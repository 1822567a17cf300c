"""The text of ``book/errata.md``: what is wrong or missing in the sources, and the corrected form."""

import tomllib
from pathlib import Path

import pandas as pd

from tools import sources_page

ROOT = Path(__file__).resolve().parent.parent
ERRATA = ROOT / "book" / "errata.toml"
LISTED = ROOT / "support" / "results" / "inventory" / "errata.csv"
GROUPS = {  # prefix of the ids -> heading
    "ZH": "Zholobov: gradient clipping",
    "KI": "Kitov: lecture on neural networks",
    "BA": "Baigushev: lecture on optimisation",
    "KU": "Kuznetsova: methods that use curvature",
    "CH": "Chabanenko: batch normalisation",
    "XS": "Between the sources",
    "ME": "Method",
}
KINDS = {  # kind of an erratum in the inventory -> what the page calls it
    "error": "wrong",
    "garbled": "damaged",
    "ambiguous": "two readings",
    "omission": "missing",
}

OPENING = """\
# Errata

Here stands what we found in the five sources that is wrong, damaged, open to two readings or missing. Each entry
says what stands there and how it should read, in the letters of the source, so that you can correct your copy;
then where the course treats it, in the letters of the [notation](notation.md): with a derivation, an exercise, or
a cell that computes it.

The sources reached us through a conversion by machine. A lost sign or index can come from there and not from the
author. The page is generated at every build.

"""


def corrections() -> dict[str, dict[str, str]]:
    """Return for each id what ``stands`` in the source and the ``corrected`` form."""
    return tomllib.loads(ERRATA.read_text(encoding="utf-8"))


def text(root: Path = ROOT) -> str:
    """Return the page."""
    listed = pd.read_csv(LISTED, keep_default_na=False).set_index("id")
    groups = listed.index.str.split("-").str[0]
    found, entries = sources_page.places(root), corrections()
    lines = [OPENING, *_count(listed, groups)]
    for prefix, heading in GROUPS.items():
        lines += [f"## {heading}", ""]
        for identity, row in listed[groups == prefix].iterrows():
            lines += _entry(identity, row, entries[identity], found)
    return "\n".join(lines)


def _count(listed: pd.DataFrame, groups: pd.Index) -> list[str]:
    table = pd.crosstab(groups, listed["kind"]).reindex(GROUPS)
    table = table[list(KINDS)].assign(all=table.sum(axis=1))
    lines = [f"| | {' | '.join(KINDS.values())} | all |", "|---|---|---|---|---|---|"]
    for prefix, heading in GROUPS.items():
        numbers = (str(number or "") for number in table.loc[prefix])
        lines.append(f"| {heading} | {' | '.join(numbers)} |")
    return [*lines, f"| together | {' | '.join(map(str, table.sum()))} |", ""]


def _entry(identity: str, row: pd.Series, entry: dict[str, str], found: dict) -> list[str]:
    joined = {name: " ".join(part.split()).rstrip(".") for name, part in entry.items()}
    kind = KINDS.get(row["kind"])
    stands, correct = ("Stands", "Correct") if kind else ("Found", "Here")
    title = "" if row["kind"] == "method" else f" {row['title']}"
    return [
        f"(erratum-{identity.lower()})=",
        f"**{identity}**{title}" + (f" *({kind})*" if kind else ""),
        f": *{stands}:* {joined['stands']}.",
        "",
        f": *{correct}:* {joined['corrected']}.",
        "",
        f": → {sources_page.where(identity, found)}",
        "",
    ]
