"""Pictures of paths and of records. Nothing is computed here."""

import base64
import hashlib
import html
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.transforms import Affine2D
from torch import Tensor

from support.surfaces import Surface

PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7A6FBE",
    "#666666",
)
"""Colours that people with any kind of colour vision tell apart (Okabe and Ito, and two more)."""

PLAYER = Template(Path(__file__).with_name("player.html").read_text(encoding="utf-8"))
COMPARISON = "application/vnd.descent.comparison+json"
FARTHEST = 1e6  # matplotlib cannot place what lies beyond


def style(*, dark: bool = False) -> None:
    """Set the look of all figures that follow: light by default, or dark for a dark slide or notebook."""
    plt.style.use(["default", "dark_background"] if dark else "default")
    plt.rcParams.update(
        {
            "figure.figsize": (7.0, 3.6),
            "figure.dpi": 144,
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": plt.cycler(color=PALETTE),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "grid.linewidth": 0.6,
            "font.size": 10,
            "axes.titlesize": 10,
            "legend.frameon": False,
            "lines.linewidth": 1.6,
        }
    )


def contours(surface: Surface, ax: Axes, levels: int = 24) -> None:
    """Draw the contour lines of a surface over its domain, denser near its lowest value, and its minima."""
    (left, right), (bottom, top) = surface.domain
    x, y = np.meshgrid(np.linspace(left, right, 241), np.linspace(bottom, top, 241))
    values = surface(torch.tensor(np.stack([x, y], axis=-1))).numpy()
    heights = (
        values.min() + (values.max() - values.min()) * np.linspace(0, 1, levels + 1) ** 3
    )
    ax.contour(x, y, values, levels=heights[1:], colors="gray", linewidths=0.6, alpha=0.55)
    if surface.minima:
        ax.plot(
            *zip(*surface.minima, strict=True),
            "x",
            color="gray",
            markersize=7,
            markeredgewidth=2,
        )
    ax.set(xlim=(left, right), ylim=(bottom, top), xlabel="$x$", ylabel="$y$")
    ax.grid(visible=False)


def trajectories(
    surface: Surface, paths: Mapping[str, Tensor], ax: Axes | None = None
) -> Axes:
    """Draw paths over the contours of a surface, each as its points joined by lines.

    Nothing is cut off in secret: a path with points outside the frame says so in the legend.

    Parameters
    ----------
    surface
        Where the paths run.
    paths
        Label -> points of shape (T + 1, 2), as :func:`support.surfaces.descend` gives them.
    ax
        Where to draw; a new figure by default.
    """
    if ax is None:
        _, ax = plt.subplots()
    contours(surface, ax)
    for label, path in paths.items():
        drawn = _near(path)
        label += _leaving(surface, path)
        ax.plot(drawn[:, 0], drawn[:, 1], ".-", markersize=4, linewidth=1.2, label=label)
    _start(paths, ax)
    ax.legend(loc="best")
    return ax


def _start(paths: Mapping[str, Tensor], ax: Axes) -> None:
    """Mark where the first path starts."""
    x, y = next(iter(paths.values()))[0].numpy()
    ax.plot(x, y, "o", color=plt.rcParams["text.color"], markersize=5, zorder=3)


def _near(path: Tensor) -> np.ndarray:
    """Return the points of a path that can be placed."""
    points = path.numpy()
    return points[np.abs(points).max(axis=1) < FARTHEST]


def _leaving(surface: Surface, path: Tensor) -> str:
    """Return what the legend adds to the name of a path."""
    low, high = np.transpose(surface.domain)
    points = path.numpy()
    return "" if ((low <= points) & (points <= high)).all() else " (leaves the frame)"


@dataclass(frozen=True)
class Animation:
    """A picture that plays in the page, without a server; a notebook shows it as the value of a cell."""

    html: str
    alt: str

    def __repr__(self) -> str:
        """Show what there is where no picture can be."""
        return f"Animation: {self.alt}"

    def _repr_html_(self) -> str:
        return self.html


def animation(
    surface: Surface, paths: Mapping[str, Tensor], alt: str, *, seconds: float = 8.0
) -> Animation:
    """Let paths grow over the contours of a surface, all at the same pace of steps.

    It shows the finished paths until the reader starts it; a slider goes to any step. A path that leaves the
    frame says so in the legend, as in :func:`trajectories`; every point keeps its step, however far it lies.

    Parameters
    ----------
    surface
        Where the paths run.
    paths
        Label -> points of shape (T + 1, 2); a shorter path waits at its end.
    alt
        What is to be seen, for readers who cannot see it.
    seconds
        How long it plays.

    Raises
    ------
    ValueError
        If there are no paths, or ``seconds`` is not positive.
    """
    if not paths:
        raise ValueError("paths must hold at least one path; got none")
    if not seconds > 0:
        raise ValueError(f"seconds must be positive; got {seconds}")
    figure, ax = plt.subplots(figsize=(7.0, 4.6))
    contours(surface, ax)
    colors = [
        ax.plot([], [], label=label + _leaving(surface, path))[0].get_color()
        for label, path in paths.items()
    ]
    _start(paths, ax)
    figure.legend(loc="outside lower center", ncols=4)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=figure.dpi)  # which also places the axes
    width, height = figure.canvas.get_width_height()
    downwards = ax.transData + Affine2D().scale(1, -1).translate(0, height)
    drawn = [
        downwards.transform(
            np.nan_to_num(path.numpy(), nan=FARTHEST).clip(-FARTHEST, FARTHEST)
        )
        for path in paths.values()
    ]
    (left, bottom), (right, top) = downwards.transform(np.transpose(surface.domain))
    plt.close(figure)
    settings = {
        "alt": html.escape(alt),
        "width": width,
        "height": height,
        "picture": base64.b64encode(picture.getvalue()).decode(),
        "frame": f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"',
        "lines": "".join(map(_line, drawn, colors)),
        "steps": max(map(len, drawn)) - 1,
        "milliseconds": round(1000 * seconds),
    }
    name = "animation-" + hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
    return Animation(PLAYER.substitute(settings, name=name), alt)


def _line(points: np.ndarray, color: str) -> str:
    """Return a line and the ball at its end, in the units of the picture."""
    x, y = points[-1]
    where = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<polyline points="{where}" stroke="{color}"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" fill="{color}"/>'
    )


def curves(
    frame: pd.DataFrame, ax: Axes | None = None, *, x: str = "epoch", **encoding: str
) -> Axes:
    """Draw learning curves: the mean over runs, and a band from the smallest to the largest.

    Parameters
    ----------
    frame
        Measured values, one a row, as :meth:`support.records.Records.metric` gives them.
    ax
        Where to draw; a new figure by default.
    x
        Column of the horizontal axis.
    encoding
        Columns for seaborn's ``hue``, ``style`` and so on.
    """
    if ax is None:
        _, ax = plt.subplots()
    sns.lineplot(frame, x=x, y="value", errorbar=("pi", 100), ax=ax, **encoding)
    return ax


class Beside(pd.DataFrame):
    """A table of :func:`beside_published`.

    The metadata of its output in a notebook hold the numbers behind the text, from which the build makes the page
    of all results.
    """

    def _repr_mimebundle_(self, **_: object) -> tuple[dict, dict]:
        return {}, {COMPARISON: self.attrs["numbers"]}


def beside_published(table: pd.DataFrame) -> Beside:
    """Return the table of :func:`support.records.compare` as text: published, and ours as mean ± deviation.

    The deviation has two significant digits and the mean as many decimals. What a source does not print, or
    we did not run, is a dash.
    """

    def ours(row: pd.Series) -> str:
        if pd.isna(row["mean"]):
            return "–"
        if pd.isna(row["sd"]):
            return f"{row['mean']:g}"
        decimals = max(0, 1 - math.floor(math.log10(row["sd"]))) if row["sd"] else 0
        return f"{row['mean']:.{decimals}f} ± {row['sd']:.{decimals}f} ({row['runs']:.0f} runs)"

    shown = Beside(
        {
            "published": table["published"].map(
                lambda value: "–" if pd.isna(value) else f"{value:g}"
            ),
            "ours": table.apply(ours, axis=1),
        }
    )
    known = table[table["row"].notna()] if "row" in table else table.iloc[:0]
    columns = ["row", "mean", "sd", "runs"]
    numbers = known.reindex(columns=columns).astype(object).where(known.notna(), None)
    shown.attrs["numbers"] = numbers.to_dict("records")
    return shown
