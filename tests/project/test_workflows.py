"""The workflows of GitHub run what a person runs: make targets that exist."""

import re

import pytest
import yaml

from tools.build_book import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
# The only steps that are not make: fetch the tree and a Python, hand the built book to GitHub's pages.
ACTIONS = {
    "actions/checkout",
    "actions/setup-python",
    "actions/upload-pages-artifact",
    "actions/deploy-pages",
}


def steps(workflow):
    """Return the steps of all jobs of a workflow."""
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def called(command):
    """Return the targets that a command asks make for."""
    program, *words = re.sub(r'"[^"]*"', "", command).split()
    assert program == "make", command
    return {word for word in words if not word.startswith("-") and "=" not in word}


def test_there_are_workflows_for_tests_book_and_week():
    assert [path.stem for path in WORKFLOWS] == ["book", "tests", "weekly"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_make_and_nothing_else(workflow):
    commands = [step["run"] for step in steps(workflow) if "run" in step]
    used = {step["uses"].partition("@")[0] for step in steps(workflow) if "uses" in step}
    assert used <= ACTIONS
    targets = {target for command in commands for target in called(command)}
    assert targets
    assert targets <= TARGETS


def test_a_push_is_checked_as_by_the_projects_own_script():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    own = next(line for line in script.splitlines() if line.startswith("make --keep-going"))
    (push,) = (
        step["run"] for step in steps(ROOT / ".github/workflows/tests.yml") if "run" in step
    )
    assert push == own


def test_every_week_colab_is_tried_with_both_versions_of_torch_and_links_are_asked():
    weekly = yaml.safe_load((ROOT / ".github/workflows/weekly.yml").read_text())
    assert "schedule" in weekly[True]  # YAML reads the key "on" as true
    assert weekly["jobs"]["colab"]["strategy"]["matrix"]["torch"] == ["oldest", "newest"]
    runs = [
        step["run"]
        for step in steps(ROOT / ".github/workflows/weekly.yml")
        if "run" in step
    ]
    assert [called(run) for run in runs] == [{"colab"}, {"links"}]
