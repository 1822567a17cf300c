"""Pictures of paths and of records. Nothing is computed here."""

import math
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
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
    (left, right), (bottom, top) = surface.domain
    for label, path in paths.items():
        points = path.numpy()
        inside = (
            (left <= points[:, 0])
            & (points[:, 0] <= right)
            & (bottom <= points[:, 1])
            & (points[:, 1] <= top)
        )
        note = "" if inside.all() else " (leaves the frame)"
        drawn = points[
            np.abs(points).max(axis=1) < 1e6
        ]  # matplotlib cannot place what is farther away
        ax.plot(
            drawn[:, 0], drawn[:, 1], ".-", markersize=4, linewidth=1.2, label=label + note
        )
    ax.plot(
        *next(iter(paths.values()))[0].numpy(),
        "o",
        color=plt.rcParams["text.color"],
        markersize=5,
        zorder=3,
    )
    ax.legend(loc="best")
    return ax


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


def beside_published(table: pd.DataFrame) -> pd.DataFrame:
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

    return pd.DataFrame(
        {
            "published": table["published"].map(
                lambda value: "–" if pd.isna(value) else f"{value:g}"
            ),
            "ours": table.apply(ours, axis=1),
        }
    )
