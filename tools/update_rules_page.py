"""The text of ``book/update_rules.md``: each method's rule, its lecture, its code and its default values.

The formulas stand in ``book/update_rules.toml``; the defaults come from the constructors.
"""

import inspect
import tomllib
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from support import optim

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "book" / "update_rules.toml"
TORCH = "https://docs.pytorch.org/docs/stable/generated/"
SWITCHES = {  # how a step is carried out, not what it is
    "self",
    "params",
    "model",
    "optimizer",
    "foreach",
    "maximize",
    "capturable",
    "differentiable",
    "fused",
    "decoupled_weight_decay",
    "amsgrad",
    "last_epoch",
    "verbose",
    "unknown",
}

OPENING = """\
# All update rules

One row for each method: its rule in the letters of the [notation](notation.md), and the arguments of its
class with their default values. The name of a method leads to the lecture that derives it, the class to its
reference. An argument without a value must be given. The default values are read from the code at every build.

To try the rules on surfaces of two variables, open the [playground](playground.md).
"""


def families() -> list[dict[str, Any]]:
    """Return the families of rules, as the table of formulas has them."""
    return tomllib.loads(RULES.read_text(encoding="utf-8"))["family"]


def text(root: Path = ROOT) -> str:
    """Return the page."""
    parts = [OPENING]
    for family in families():
        parts += [
            f"## {family['title']}\n",
            "| method and class | rule and default values |",
        ]
        parts += ["|---|---|", *(row(rule, root) for rule in family["rules"]), ""]
    parts.append(others())
    return "\n".join(parts)


def row(rule: dict[str, str], root: Path = ROOT) -> str:
    """Return the row of one method."""
    method = rule["title"]
    if (root / "lectures" / f"{rule['lecture']}.ipynb").is_file():
        method = f"[{method}](../lectures/{rule['lecture']}.ipynb)"
    note = f"<br>{rule['note']}" if "note" in rule else ""
    formula = f"${rule['rule']}$"
    return f"| {method}<br>{link(path_of(rule))} | {formula}{note}<br>{defaults(rule)} |"


def path_of(rule: dict[str, str]) -> str:
    """Return where the class of a method can be imported from."""
    if "code" in rule:
        return rule["code"]
    constructor = optim.OPTIMIZERS[rule["name"]]
    if isinstance(constructor, optim.Around):
        constructor = constructor.wrapper
    while isinstance(constructor, partial):
        constructor = constructor.func
    module = "support.optim" if "support" in constructor.__module__ else "torch.optim"
    return f"{module}.{constructor.__name__}"


def link(path: str) -> str:
    """Return a link to the reference of a class."""
    name = path.rpartition(".")[2]
    if path.startswith("support."):
        return f"{{py:class}}`{name} <{path}>`"
    return f"[{name}]({TORCH}{path}.html)"


def defaults(rule: dict[str, str]) -> str:
    """Return the arguments of a method with their default values."""
    if "settings" in rule:
        return ", ".join(f"`{setting}`" for setting in rule["settings"].split(", "))
    module, _, name = path_of(rule).rpartition(".")
    constructor: Callable = getattr(import_module(module), name)
    chosen = optim.OPTIMIZERS.get(rule.get("name", ""))
    fixed = getattr(chosen, "keywords", getattr(chosen, "fixed", {}))
    shown = []
    for argument in inspect.signature(constructor).parameters.values():
        value = fixed.get(argument.name, argument.default)
        if argument.name in SWITCHES - set(fixed):
            continue
        given = "" if value is inspect.Parameter.empty else f"={value!r}"
        shown.append(f"`{argument.name}{given}`")
    return ", ".join(shown)


def others() -> str:
    """Return the sentence on methods of torch that the sources do not use."""
    named = {rule.get("name") for family in families() for rule in family["rules"]}
    rest = [name for name in optim.OPTIMIZERS if name not in named]
    links = ", ".join(link(path_of({"name": name})) for name in rest)
    return f"`support.optim.make` also builds these of torch, which no page of the course derives: {links}.\n"
