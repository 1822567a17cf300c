"""The text of ``book/glossary.md``: terms in English with their Russian names."""

from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
TERMS = ROOT / "support" / "results" / "inventory" / "glossary.csv"

OPENING = """\
# Glossary

The terms of the five sources, which are in Russian, as this course says them, with what each means.

"""


def text(path: Path = TERMS) -> str:
    """Return the page: each English term once, in alphabetical order, with all its Russian names."""
    terms = pd.read_csv(path, keep_default_na=False)
    terms["sorted"] = terms["english"].str.lower()
    lines = [OPENING, ":::{glossary}"]
    for _, same in terms.sort_values("sorted", kind="stable").groupby("sorted"):
        names = ", ".join(dict.fromkeys(same["russian"]))
        meaning = " ".join(
            dict.fromkeys(f"{part.rstrip('.')}." for part in same["definition"])
        )
        lines += [same["english"].iloc[0], f"  {meaning} In Russian: {names}.", ""]
    return "\n".join([*lines, ":::", ""])
