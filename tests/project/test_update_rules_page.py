"""The page of all update rules leaves no method out, and its defaults are those of the code."""

import inspect
import re

import pytest
import torch

from support import optim
from tools import update_rules_page as page

RULES = [rule for family in page.families() for rule in family["rules"]]


def test_every_optimizer_is_on_the_page():
    text = page.text()
    for name in optim.OPTIMIZERS:
        path = page.path_of({"name": name})
        assert path.rpartition(".")[2] in text, name


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["title"])
def test_a_rule_names_what_exists(rule):
    planned = (page.ROOT / "_toc.yml").read_text()
    assert re.search(rf"\b{rule['lecture']}\b", planned)
    module, _, name = page.path_of(rule).rpartition(".")
    assert inspect.isclass(getattr(page.import_module(module), name))


def test_defaults_come_from_the_code():
    rules = {rule["title"]: page.defaults(rule) for rule in RULES}
    assert "`betas=(0.9, 0.99)`" in rules["Lion"]
    assert "`momentum=0.9`" in rules["Momentum"]
    assert "`nesterov=True`" in rules["Nesterov's method"]
    assert "`amsgrad=True`" in rules["AMSGrad"]
    assert "`adaptive=True`" in rules["ASAM"]
    assert "`L`" in rules["Clipped similar triangles"]
    eps = inspect.signature(torch.optim.Adagrad).parameters["eps"].default
    assert f"`eps={eps!r}`" in rules["AdaGrad"]


def test_a_lecture_is_linked_only_where_there_is_one(tmp_path):
    (tmp_path / "lectures").mkdir()
    (tmp_path / "lectures" / "adam.ipynb").touch()
    rule = {"title": "Adam", "name": "adam", "lecture": "adam", "rule": "x"}
    assert page.row(rule, tmp_path).startswith("| [Adam](../lectures/adam.ipynb)<br>[Adam]")
    assert page.row(rule | {"lecture": "sam"}, tmp_path).startswith("| Adam<br>")


def test_a_row_has_two_cells():
    for rule in RULES:
        assert page.row(rule).count("|") == 3, rule["title"]
