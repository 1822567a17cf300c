"""The text of ``book/optimizers.md``: what ``support.optim`` holds, how it was tested, and how fast it is.

Every number comes from the tables that ``make mutants`` and ``make bench`` write.
"""

import re
from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).resolve().parent.parent / "support" / "results"
OURS = "support"
REFERENCE = "SGD with momentum"

METHODS = """\
`ClippedSGD` | `clipped_sgd` | M26, M39–M41 | SGD whose gradient is clipped: as a whole, tensor by tensor, or
number by number; with momentum on either side of the clipping, and the mean of the iterates
{cite}`gorbunov2020stochastic`

`ClippedSSTM` | `clipped_sstm` | M42 | the accelerated method of similar triangles with a clipped gradient, for
noise with heavy tails {cite}`gorbunov2020stochastic`

`AdaptiveClipping` | `adaptive_clipping` | M43 | bounds the gradient of each unit relative to its own weights;
around any optimizer {cite}`brock2021high`

`SAM` | `sam`, `asam` | M47 | takes the gradient at the worst point of a small ball, to find flat minima; around
any optimizer {cite}`foret2021sharpness,kwon2021asam`

`Lion` | `lion` | M49 | steps of one size in every coordinate, by the sign of a momentum {cite}`chen2023symbolic`

`Shampoo` | `shampoo` | M48 | a preconditioner for each dimension of each tensor {cite}`gupta2018shampoo`

`KFAC` | `kfac` | M44–M46 | the natural gradient, with a Fisher matrix made of two small factors for each
layer {cite}`martens2015optimizing,grosse2016kronecker`

`GradientNoise` | `gradient_noise` | M38 | adds noise that dies away to the gradient; around any optimizer
{cite}`neelakantan2015adding`

`Snapshots` | – | M57 | keeps a copy of the network before each rise of the step size {cite}`huang2017snapshot`; the
schedules themselves (M54–M56) are torch's
"""

OPENING = """\
# The optimizers of this course: proven and timed

The sources use methods that `torch.optim` does not have. The package `support.optim` has them. This page
says what is there, how we know that it is right, and what it costs. You need no lecture to read it. Its
tables are made anew at every build from recorded tests and measurements.

## What is there

Each method is an optimizer like those of torch. It takes parameter groups, works with the schedulers and
with closures, and can be saved and loaded. `support.optim.make(name, model)` builds it, and torch's own,
by name. The [reference](api.md) has all arguments and the formulas.
"""

TESTED = """\
## How we know that they are right

- **By the paper.** Each method walks 50 steps beside a line-by-line version of its formula, in double
  precision. The two agree to twelve digits.
- **By others.** Where there is an independent package, both walk the same path. Where two conventions
  differ, the test says which and why.
- **By theory.** K-FAC's factors equal the exact Fisher matrix where theory says so. SAM's perturbation
  is the worst one of its ball. Clipped SSTM keeps its proven bound.
- **By their properties.** The order of the parameters does not matter, nor how they are grouped. A run
  that is stopped, saved and loaded goes on to the same bit. Gradients that are zero, missing, infinite
  or not a number do what the reference says.
- **By mistakes.** A wrong argument is refused, with its name and value.

## Bugs put in on purpose

A test is worth something only if it fails when the code is wrong. So we break the code on purpose, in
one place at a time, and run the tests again. Most of these bugs are classics that were found in
published code.
"""

TIMED = """\
## How fast they are

Each method takes whole training steps: forward pass, loss, backward pass, step. The reference is
`torch.optim.SGD` with momentum. Every measurement stands between two of the reference and is divided by
their mean, because the speed of a machine drifts. The tables show the median of this **ratio** over many
rounds, and its quartiles. The first row measures the reference against itself: what it differs from 1 is
noise. The optimizer alone takes its steps on fixed gradients, without a network. The last column is the
ratio of another package, measured in the same rounds.

*K-FAC 10/100* renews its factors every 10 steps and its inverses every 100. Where the name has a number
of rows, only about so many uses of a layer's weights (examples times positions) enter its factors, chosen
at random; otherwise all of them do. The **target** was fixed before the methods were written.
"""

PROFILED = """\
### Where the time goes

The share of each part in the time of a step. Parts below one percent are left out.
"""

KEPT = """\
### What they keep in memory

Numbers that an optimizer keeps between steps for each parameter of the network, working memory included,
and the bytes that they take. The parameter itself and its gradient are not counted.
"""

ALONE = """\
For clipped-SSTM and K-FAC no other package stands beside ours: their authors publish source code only.
"""


def text(results: Path = RESULTS) -> str:
    """Return the page, made from the tables in a folder."""
    sections = [
        OPENING,
        table(["class", "name", "methods", "what it does"], methods()),
        TESTED,
        *about_mutants(read(results / "mutants.csv")),
        TIMED,
        *about_times(
            read(results / "benchmarks" / "optimizers.csv"),
            read(results / "benchmarks" / "optimizers_profile.csv"),
        ),
    ]
    return "\n".join(section.rstrip("\n") + "\n" for section in sections)


def methods() -> list[list[str]]:
    """Return class, name in ``make``, methods of the inventory, and what it does."""
    return [" ".join(entry.split()).split(" | ") for entry in METHODS.split("\n\n")]


def read(path: Path) -> pd.DataFrame:
    """Return a table, an empty one if there is none yet."""
    return pd.read_csv(path) if path.is_file() else pd.DataFrame()


def about_mutants(mutants: pd.DataFrame) -> list[str]:
    """Say how many of the bugs the tests find, and list them."""
    if mutants.empty:
        return ["No such test has been recorded yet."]
    killed = mutants["killed"].astype(bool)
    survivors = list(mutants.loc[~killed, "mutant"])
    score = f"**The tests find {killed.sum()} of {len(mutants)} bugs.**"
    if survivors:
        score += " They do not find: " + "; ".join(plain(bug) for bug in survivors) + "."
    rows = [
        [plain(row.mutant), code(Path(row.file).name), code(row.by) if row.killed else "–"]
        for row in mutants.itertuples()
    ]
    listed = table(["bug", "file", "first test that fails"], rows)
    return [score, f":::{{dropdown}} All {len(mutants)} bugs\n{listed}:::"]


def about_times(times: pd.DataFrame, profile: pd.DataFrame) -> list[str]:
    """Show what was measured on each device."""
    if times.empty:
        return ["Nothing has been measured yet."]
    sections = []
    for device, here in times.groupby("device", sort=False):
        sections += [f"### On {device}", about_targets(here)]
        for benchmark, some in here.groupby("benchmark", sort=False):
            sections += [f"**{benchmark}**", ratios(some), about_kinds(some)]
    sections += [ALONE, KEPT, memory(times)]
    if not profile.empty:
        sections.append(PROFILED)
        for (device, benchmark), some in profile.groupby(
            ["device", "benchmark"], sort=False
        ):
            sections += [f"**{benchmark}**, {device}", parts(some)]
    return [section for section in sections if section]


def about_targets(times: pd.DataFrame) -> str:
    """Say which targets are reached and which are missed."""
    wanted = times.dropna(subset="target")
    if wanted.empty:
        return "There is no target for this device."
    missed = wanted[wanted["ratio"] > wanted["target"]]
    if missed.empty:
        return f"All {len(wanted)} targets are reached."
    listed = [
        f"- {row.method}, {row.benchmark}: {row.ratio:.3f} instead of {row.target:g}"
        for row in missed.itertuples()
    ]
    count = f"{len(wanted) - len(missed)} of {len(wanted)} targets are reached. Missed:"
    return "\n".join([count, "", *listed])


def ratios(times: pd.DataFrame) -> str:
    """Return one row a method: ours, the target, and another package."""
    rows = []
    for method, some in times.groupby("method", sort=False):
        ours, others = (
            some[some["implementation"] == OURS],
            some[some["implementation"] != OURS],
        )
        if ours.empty:  # what torch has itself
            ours, others = others, ours
        row = ours.iloc[0]
        beside = [
            f"{o.ratio:.3f}, {o.implementation.split('+')[0]}" for o in others.itertuples()
        ]
        rows.append(
            [
                method,
                milliseconds(row["milliseconds"]),
                f"{row['ratio']:.3f}",
                f"{row['lower']:.2f}–{row['upper']:.2f}",
                verdict(row),
                "; ".join(beside) or "–",
            ]
        )
    return table(["method", "ms", "ratio", "quartiles", "target", "another package"], rows)


def milliseconds(value: float) -> str:
    """Return a time with four digits."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def verdict(row: pd.Series) -> str:
    """Return the target and whether it is reached."""
    if pd.isna(row["target"]):
        return "–"
    return (
        f"{row['target']:g} {'reached' if row['ratio'] <= row['target'] else '**missed**'}"
    )


def about_kinds(times: pd.DataFrame) -> str:
    """Say which ratios were put together from kinds of steps."""
    some = times[
        (times["measured"] == "kinds of steps") & (times["implementation"] == OURS)
    ]
    if some.empty:
        return ""
    return (
        f"Not all steps of these methods are alike: {'; '.join(some['method'])}. Each kind of step was "
        "measured for itself, and the mean over a period was put together from them."
    )


def memory(times: pd.DataFrame) -> str:
    """Return what each of our methods keeps on each network."""
    ours = times[times["implementation"].eq(OURS) | times["method"].eq(REFERENCE)]
    ours = ours.drop_duplicates(["method", "benchmark"])
    networks = ours["benchmark"].str.split(",").str[0]
    ours = ours.assign(network=networks)[~networks.str.startswith("optimizer alone")]
    names = list(dict.fromkeys(ours["network"]))
    rows = []
    for method, some in ours.groupby("method", sort=False):
        cells = some.set_index("network")
        rows.append([method, *(kept(cells, name) for name in names)])
    return table(["method", *names], rows)


def kept(cells: pd.DataFrame, network: str) -> str:
    """Return what one method keeps on one network."""
    if network not in cells.index:
        return "–"
    row = cells.loc[network]
    return f"{row['numbers per parameter']:.2f} ({row['bytes per parameter']:.1f} bytes)"


def parts(profile: pd.DataFrame) -> str:
    """Return one row a method: its parts, the largest first."""
    rows = []
    for method, some in profile.groupby("method", sort=False):
        some = some.sort_values("share", ascending=False)
        shares = [
            f"{name_of(row.part)} {100 * row.share:.0f} %"
            for row in some.itertuples()
            if row.share >= 0.01
        ]
        rows.append([method, milliseconds(some["milliseconds"].sum()), ", ".join(shares)])
    return table(["method", "ms", "parts"], rows)


def name_of(part: str) -> str:
    """Return a part in words: the name after the colon, or whose own step it is."""
    return f"{code(part)} itself" if part.endswith(".step") else part.split(": ")[-1]


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def plain(text: str) -> str:
    """Return a text in which Markdown finds nothing to set."""
    return re.sub(r"([\\`*_{}\[\]<>$|])", r"\\\1", text)


def code(text: str) -> str:
    """Return a text as code that may stand in a table."""
    return "`" + text.replace("|", "\\|") + "`"
