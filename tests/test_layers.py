"""Imports point one way: graph ← rewrite ← ops ← {grad, passes, optim} ← model ← {importers, exporters, trainer}."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(p for p in (ROOT / "flamert").rglob("*.py"))

LOWEST = {"about", "dtypes", "errors", "files", "kept", "limits", "graph"}
OPS = LOWEST | {"rewrite", "ops"}
RUNTIME = OPS | {"runtime"}
MODEL = RUNTIME | {"grad", "passes", "optim", "differentiate", "feeds", "origin", "params", "model", "profile", "summary"}
MODEL |= {"adapters", "buckets", "safetensors", "training_info"}
# `importers` sees `exporters` because a model's origin is what saves it.
ALLOWED = {
    **dict.fromkeys(LOWEST, LOWEST),
    "rewrite": LOWEST | {"rewrite"},
    "ops": OPS,
    "runtime": RUNTIME,
    "grad": OPS | {"grad"},
    "passes": RUNTIME | {"passes", "grad"},
    "optim": OPS | {"grad", "optim"},
    "feeds": RUNTIME | {"feeds"},
    "differentiate": MODEL,
    "origin": RUNTIME | {"feeds", "origin"},
    "params": RUNTIME | {"feeds", "origin", "params"},
    "buckets": RUNTIME | {"feeds", "buckets"},
    "model": MODEL,
    "profile": MODEL,
    "summary": MODEL,
    "adapters": MODEL,
    "training_info": MODEL,
    "testing": MODEL | {"testing", "importers", "exporters"},
    "importers": MODEL | {"importers", "exporters"},
    "exporters": MODEL | {"importers", "exporters"},
}
"""What each part may import of flamert. Parts that are not listed (session, cli, trainer, …) are on top and may use all."""

FOREIGN = {
    "onnx": ("importers", "exporters", "onnx_backend"),
    "onnx_ir": ("importers", "exporters", "onnx_backend"),
    "cupy": ("runtime", "ops.cuda"),
    "cupyx": ("runtime", "ops.cuda"),
    "torch": (),
    "onnxruntime": ("cli",),
    "typer": ("cli",),
    "rich": ("cli", "summary", "training.progress"),
}
"""Which parts may import what belongs to others."""


def imports(path):
    """Modules that a file imports, wherever in it; those needed for annotations alone are left out."""
    tree = ast.parse(path.read_text())
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], base]).rstrip(".")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def part(path):
    return ".".join(path.relative_to(ROOT / "flamert").with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=part)
def test_imports_follow_the_layers(path):
    own = part(path)
    allowed = ALLOWED.get(own.split(".")[0])
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "flamert" and allowed is not None and rest:
            assert rest.split(".")[0] in allowed, f"{own} imports {name}"
        if top in FOREIGN:
            assert any(own == p or own.startswith(f"{p}.") for p in FOREIGN[top]), f"{own} imports {name}"


def loaded_after(code):
    """Top-level modules that a fresh interpreter has loaded after running the code."""
    show = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stdout.split())


HEAVY = {"rich", "typer", "scipy", "PIL", "cupy", "onnxruntime", "torch", "numba"}


def test_importing_flamert_loads_nothing_heavy():
    assert not loaded_after("import flamert") & HEAVY


def test_loading_a_model_needs_only_what_it_must():
    assert not loaded_after("import flamert; flamert.load; flamert.InferenceSession") & HEAVY
