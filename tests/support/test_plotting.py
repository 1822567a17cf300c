"""The pictures show what they are given: nothing cut off in secret, bands from the lowest to the highest."""

import json
import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.colors import to_rgb

from support import plotting, surfaces


@pytest.fixture(autouse=True)
def without_a_screen():
    plt.switch_backend("agg")
    with mpl.rc_context():
        yield
    plt.close("all")


def path(*points):
    return torch.tensor(points, dtype=torch.float64)


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_a_path_that_leaves_the_frame_says_so():
    paths = {
        "inside": path((0.0, 0.1), (0.5, 0.2)),
        "outside": path((0.0, 0.1), (5.0, 0.2)),
        "lost": path((0.0, 0.1), (np.inf, np.nan)),
    }
    ax = plotting.trajectories(surfaces.ravine(), paths)
    assert labels(ax) == ["inside", "outside (leaves the frame)", "lost (leaves the frame)"]
    ax.figure.canvas.draw()


def test_the_frame_is_the_domain_and_every_point_is_drawn():
    drawn = path((0.0, 0.1), (5.0, 0.2), (0.3, -0.4))
    ax = plotting.trajectories(surfaces.ravine(), {"one": drawn})
    assert (ax.get_xlim(), ax.get_ylim()) == surfaces.ravine().domain
    line = next(line for line in ax.lines if line.get_label().startswith("one"))
    assert np.array_equal(np.column_stack(line.get_data()), drawn.numpy())


def test_the_minima_are_marked():
    _, ax = plt.subplots()
    plotting.contours(surfaces.himmelblau, ax)
    crosses = next(line for line in ax.lines if line.get_marker() == "x")
    assert np.allclose(np.column_stack(crosses.get_data()), surfaces.himmelblau.minima)


def animated(paths, **options):
    """Return the frame of an animation and its lines, in the units of the picture."""
    shown = plotting.animation(surfaces.ravine(), paths, "Two <paths>.", **options)
    text = shown._repr_html_()
    frame = re.search(r'<rect x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)"/>', text)
    lines = re.findall(r'<polyline points="(.*?)"', text)
    split = [[point.split(",") for point in line.split()] for line in lines]
    return text, np.array(frame.groups(), float), [np.array(one, float) for one in split]


def test_an_animation_holds_every_point_at_its_place():
    drawn = path((-1.2, -0.6), (0.0, 0.0), (5.0, 0.2), (1.2, 0.6))
    text, (left, top, width, height), (line, short) = animated(
        {"one": drawn, "short": drawn[:2]}
    )
    x, y = (drawn[:, 0] + 1.2) / 2.4, (drawn[:, 1] + 0.6) / 1.2
    expected = np.column_stack([left + x * width, top + (1 - y) * height])
    assert np.allclose(line, expected, atol=0.2)
    assert np.array_equal(short, line[:2])
    assert 'max="3" value="3"' in text
    assert 'aria-label="Two &lt;paths&gt;."' in text
    assert plt.get_fignums() == []


def test_an_animation_keeps_the_step_of_every_point_however_far_it_lies():
    drawn = path((0.0, 0.1), (1e9, 0.0), (np.inf, np.nan), (0.3, -0.4))
    _, (left, top, width, height), (line,) = animated({"far": drawn})
    assert len(line) == 4
    assert (line[1:3, 0] > left + width).all()
    expected = [left + 1.5 / 2.4 * width, top + 1.0 / 1.2 * height]
    assert np.allclose(line[3], expected, atol=0.2)


def test_an_animation_asks_for_nothing_outside():
    text, _, _ = animated({"one": path((0.0, 0.1), (0.3, 0.2))})
    assert "http" not in text


@pytest.mark.parametrize(
    ("paths", "seconds"), [({}, 8.0), ({"one": path((0.0, 0.1))}, 0.0)]
)
def test_an_animation_of_nothing_is_refused(paths, seconds):
    with pytest.raises(ValueError, match=r"paths|seconds"):
        plotting.animation(surfaces.ravine(), paths, "nothing", seconds=seconds)


def test_curves_show_the_mean_and_the_whole_range():
    frame = pd.DataFrame(
        {"epoch": [1, 1, 1, 2, 2, 2], "value": [0.0, 1.0, 5.0, 2.0, 2.0, 8.0]}
    )
    ax = plotting.curves(frame)
    assert np.allclose(ax.lines[0].get_ydata(), [2.0, 4.0])
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (0.0, 8.0)


def test_the_table_beside_published_values():
    table = pd.DataFrame(
        {
            "published": [0.985, np.nan, 20.0, 7.0],
            "mean": [0.98712, 3.4, 20.0, np.nan],
            "sd": [0.00123, 0.89, np.nan, np.nan],
            "runs": [5, 5, 1, np.nan],
        }
    )
    shown = plotting.beside_published(table)
    assert list(shown["published"]) == ["0.985", "–", "20", "7"]
    assert list(shown["ours"]) == [
        "0.9871 ± 0.0012 (5 runs)",
        "3.40 ± 0.89 (5 runs)",
        "20",
        "–",
    ]


def test_the_numbers_behind_the_table_are_in_the_metadata_of_its_output():
    table = pd.DataFrame(
        {
            "published": [0.985, 0.9, np.nan],
            "row": [7.0, 3.0, np.nan],
            "mean": [0.98712, np.nan, 1.0],
            "sd": [np.nan, np.nan, 0.5],
            "runs": [1, np.nan, 2],
        }
    )
    shown = plotting.beside_published(table)
    data, metadata = InteractiveShell().display_formatter.format(shown)
    assert set(data) == {"text/plain", "text/html"}
    assert data["text/html"] == pd.DataFrame(shown).to_html(notebook=True)
    assert json.loads(json.dumps(metadata)) == {
        plotting.COMPARISON: [
            {"row": 7, "mean": 0.98712, "sd": None, "runs": 1},
            {"row": 3, "mean": None, "sd": None, "runs": None},
        ]
    }
    _, metadata = InteractiveShell().display_formatter.format(
        plotting.beside_published(table.drop(columns="row"))
    )
    assert metadata == {plotting.COMPARISON: []}


def test_equal_values_have_no_decimals_to_invent():
    table = pd.DataFrame({"published": [np.nan], "mean": [3.0], "sd": [0.0], "runs": [5]})
    assert list(plotting.beside_published(table)["ours"]) == ["3 ± 0 (5 runs)"]


def test_both_styles_set_letters_off_from_the_ground():
    for dark in (False, True):
        plotting.style(dark=dark)
        ground = np.mean(to_rgb(plt.rcParams["figure.facecolor"]))
        letters = np.mean(to_rgb(plt.rcParams["text.color"]))
        assert (ground < 0.2) == dark
        assert abs(letters - ground) > 0.8
        ax = plotting.trajectories(surfaces.ravine(), {"one": path((0.0, 0.1), (0.5, 0.2))})
        start = next(line for line in ax.lines if line.get_marker() == "o")
        assert abs(np.mean(to_rgb(start.get_color())) - ground) > 0.8
