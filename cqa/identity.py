"""What made a result: this package's own code, the versions of what it computes with, and files."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib import metadata
from pathlib import Path

from cqa import __version__

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy")
PACKAGE = Path(__file__).parent
BOTH = (  # what every digit hangs on
    "layout.py", "kernels", "model", "data/tokenizer.py", "data/tokenizer_files.py",
    "data/template.py",
)  # fmt: skip


def version(library: str) -> str:
    """Return a library's version as it says itself.

    The metadata of a torch from PyPI leave out what it was built for, such as +cu130.
    """
    if library == "torch":
        import torch

        return str(torch.__version__)
    return metadata.version(library)


def versions() -> dict[str, str]:
    """Return the version of everything that a result depends on."""
    own = {"cqa_fast": __version__, "python": platform.python_version()}
    return own | {name: version(name) for name in LIBRARIES}


@cache
def code_digest(*parts: str) -> str:
    """Return a sha256 over the source that computes, its compiled part, and torch's version.

    Two results with the same digest were computed by the same code; a change after which
    results are bit-identical gives another digest too.

    Args:
        parts: Files and folders of the package, beside those that training and scoring share.
    """
    total = hashlib.sha256(version("torch").encode())
    files: set[Path] = set(PACKAGE.glob("*.so"))
    for path in (PACKAGE / part for part in (*BOTH, *parts)):
        files |= set(path.rglob("*.py")) if path.is_dir() else {path}
    for path in sorted(files):
        name = path.relative_to(PACKAGE).as_posix()
        total.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def digest_bytes(paths: list[Path]) -> str:
    """Return one sha256 over the bytes of files, one after the other."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()
