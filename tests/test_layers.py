"""The import diagram and the size of a module, executable; change a layer here first."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers import ROOT

BASE = {
    "assets", "errors", "config", "escape", "files", "reading", "identity", "interrupt", "text",
    "schema",
    "data", "layout", "kernels", "ranks", "model", "run_folder", "score_folder", "output_folder",
    "family",
}  # fmt: skip
MAY_IMPORT = {
    "errors": {"text"},
    "config": {"errors", "reading"},
    "files": {"errors", "reading"},
    "reading": {"errors"},
    "identity": {"errors"},
    "interrupt": {"errors"},
    "escape": set(),
    "text": {"escape"},
    "assets": set(),
    "schema": {"errors"},
    "output_folder": {"errors", "files", "reading"},
    "run_folder": {"errors", "config", "files", "schema", "data", "model"},
    "score_folder": {"errors", "schema", "data"},
    "family": {"errors", "files", "schema", "data", "score_folder"},
    "data": {"errors", "reading", "schema", "text"},
    "layout": {"errors"},
    "kernels": {"errors"},
    "ranks": {"errors", "interrupt", "data"},
    "model": {"errors", "reading", "files", "layout", "kernels", "ranks"},
    "coverage": {"errors", "assets", "text", "schema", "data"},
    "doctor": BASE,
    "train": BASE,
    "convert": BASE,
    "stats": {"errors", "config", "schema"},
    "server": {"errors", "text", "schema"},
    "score": BASE | {"stats", "server"},
    "report": BASE | {"stats"},
    "generate": BASE | {"score"},
    "letters": BASE | {"server", "score"},
    "compare": BASE | {"stats", "report"},
    "claims": BASE | {"score", "stats", "report"},
    "study": BASE | {"train", "score", "stats", "report"},
    "bridges": BASE | {"score"},
    "api": BASE | {"train", "score", "stats", "report", "study"},
    "bench": BASE | {"train", "score", "stats", "report"},
}
PEERS = ROOT / "cqa" / "bench" / "peers"  # they are what they are compared with
ONLY_IN = {"click": set(), "rich": set(), "transformers": {"data", "model", "convert"}}
MOST_LINES = 400  # what is longer has two jobs
MODULES = sorted(p for p in (ROOT / "cqa").rglob("*.py") if p != ROOT / "cqa/__init__.py")


def imported_names(path: Path) -> set[str]:
    """Return every module that a file imports, dotted."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_module_imports_only_lower_layers(path):
    layer = path.relative_to(ROOT / "cqa").parts[0].removesuffix(".py")
    names = imported_names(path)
    used = {n.split(".")[1] for n in names if n.startswith("cqa.")} - {layer, "__version__"}
    assert used <= MAY_IMPORT[layer]
    assert not any(n.startswith("cqa_fast") for n in names)
    for library, layers in ONLY_IN.items():
        if layer not in layers and path.parent != PEERS:
            assert not any(n.split(".")[0] == library for n in names), library


@pytest.mark.parametrize(
    "path",
    [*MODULES, *sorted((ROOT / "cli").rglob("*.py"))],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_module_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_every_package_is_listed_in_pyproject():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "cqa").rglob("__init__.py")
    }
    assert set(settings["tool"]["setuptools"]["packages"]) == found | {"cqa_fast"}


@pytest.mark.parametrize(
    "module", ["cqa", "cqa.api", "cqa.train.config", "cqa.score.config", "cqa_fast.main"]
)
def test_the_command_line_layer_does_not_import_torch(module):
    code = (
        f"import sys; sys.path.insert(0, 'cli'); import {module}; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
