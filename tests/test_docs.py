"""The documents are true: their Python blocks run, their links lead somewhere, and generated pages are up to date."""

import importlib.util
import re
from pathlib import Path

import onnx
import pytest

from tests import small

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += sorted((ROOT / "docs").glob("*.md")) + sorted(ROOT.glob("models/**/*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\(([^)#\s]+)")


def blocks():
    return [page for page in PAGES if BLOCK.search(page.read_text())]


@pytest.mark.parametrize("page", blocks(), ids=lambda p: p.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """All blocks of a page in order, in one namespace, in a folder where small models lie under the names pages use."""
    from flamert.grad.registry import RULES
    from flamert.importers.registry import CONVERTERS
    from flamert.ops import OPS

    onnx.save(small.perceptron(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    ops, converters = dict(OPS), {key: list(found) for key, found in CONVERTERS.items()}
    kernels, rules = {name: list(op.kernels) for name, op in OPS.items()}, dict(RULES)
    namespace = {"__name__": "docs"}
    try:
        for match in BLOCK.finditer(page.read_text()):
            if "torch" in match.group(1) and importlib.util.find_spec("torch") is None:
                continue
            line = page.read_text()[: match.start()].count("\n") + 1
            exec(compile("\n" * line + match.group(1), str(page), "exec"), namespace)
    finally:
        OPS.clear()
        OPS.update(ops)
        RULES.clear()
        RULES.update(rules)
        CONVERTERS.clear()
        CONVERTERS.update(converters)
        for name, op in ops.items():
            op.kernels[:] = kernels[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text()):
        assert target.startswith(("http://", "https://")) or (page.parent / target).exists(), target


def test_operators_page_is_up_to_date():
    from flamert.cli.ops import operators, ops, page

    found = (ROOT / "docs" / "operators.md").read_text().splitlines()
    assert found == list(page(operators(), ops())), "run: python -m flamert ops --markdown > docs/operators.md"


def test_every_command_and_error_is_documented():
    from flamert import errors

    text = "".join(page.read_text() for page in PAGES)
    for name in errors.__all__:
        assert name in text, f"{name} is in no document"
