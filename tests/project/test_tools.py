"""Nothing lies in ``tools/`` that nobody calls."""

import re

import pytest

from tools.build_book import ROOT

TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))
CALLERS = [ROOT / name for name in ("Makefile", ".pre-commit-config.yaml", ".ci/run")]


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_is_called_by_make_or_by_another(name):
    others = [path for path in (ROOT / "tools").glob("*.py") if path.stem != name]
    texts = [path.read_text(encoding="utf-8") for path in [*CALLERS, *others]]
    module = rf"\btools\.{name}\b|^from tools import \(?[\w,\s]*\b{name}\b"
    assert any(re.search(module, text, re.MULTILINE) for text in texts)
