"""Every teaching file has what a lecture needs, in its time."""

import re

import pytest

from tools import slides

LECTURES = slides.taught()
LONGEST = 75  # words of a slide's own text: one idea
SHORTEST = 15  # words of a note


def words(text):
    """Count the words of a text: code, mathematics and what is taken from the page left out."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"\$\$.*?\$\$|\$[^$]*\$|!\[[^\]]*\]\([^)]*\)", "", text, flags=re.DOTALL)
    return len(re.findall(r"\w[\w’'-]*", text))


def test_a_teaching_file_belongs_to_a_lecture():
    assert set(LECTURES) <= set(slides.lectures())


@pytest.mark.parametrize("lecture", LECTURES)
def test_all_parts_are_there(lecture):
    kinds = [slide.kind for slide in slides.read(lecture)]
    assert kinds[:2] == ["recall", "recall"]
    assert kinds.count("recall") == 2
    for kind in ("board", "problem", "solution", "demonstration", "recorded"):
        assert kinds.count(kind) == 1, kind
    assert kinds.index("solution") == kinds.index("problem") + 1
    assert kinds.index("recorded") == kinds.index("demonstration") + 1


@pytest.mark.parametrize("lecture", LECTURES)
@pytest.mark.parametrize("route", slides.ROUTES)
def test_the_minutes_of_a_route_add_up(lecture, route):
    on_route = [slide for slide in slides.read(lecture) if route in slide.minutes]
    assert sum(slide.minutes[route] for slide in on_route) == route
    assert {slide.kind for slide in on_route} == slides.KINDS
    assert all(0 < slide.minutes[route] <= 15 for slide in on_route)


@pytest.mark.parametrize("lecture", LECTURES)
def test_the_long_route_leaves_nothing_out(lecture):
    for slide in slides.read(lecture):
        assert 90 in slide.minutes, slide.title
        assert slide.minutes.get(45, 0) <= slide.minutes[90], slide.title


@pytest.mark.parametrize("lecture", LECTURES)
def test_a_slide_has_one_idea_and_a_note(lecture):
    for slide in slides.read(lecture):
        assert words(slide.body) <= LONGEST, slide.title
        assert words(slide.notes) >= SHORTEST, slide.title


@pytest.mark.parametrize("lecture", LECTURES)
def test_a_demonstration_fits_a_slide_and_is_shown_recorded(lecture):
    for slide in slides.read(lecture):
        if slide.kind == "demonstration":
            assert 5 <= len(slide.code.splitlines()) <= 20
            assert max(map(len, slide.code.splitlines())) <= 90
        if slide.kind == "recorded":
            assert re.search(
                r"^!\[recorded\]\(demonstration \".{30,}\"\)$", slide.body, re.M
            )


def test_a_heading_without_minutes_or_of_no_kind_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(slides, "TEACHING", tmp_path)
    for heading in ("## Momentum", "## Momentum {joke, 45: 1, 90: 1}"):
        (tmp_path / "x.md").write_text(f"# T\n\n{heading}\n\ntext\n")
        with pytest.raises(ValueError, match="must end with"):
            slides.read("x")
