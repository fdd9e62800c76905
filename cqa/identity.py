"""What made a result: the versions of this package and of what it computes with."""

from __future__ import annotations

import platform
from importlib.metadata import version

from cqa import __version__

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Return the version of everything that a result depends on."""
    own = {"cqa_fast": __version__, "python": platform.python_version()}
    return own | {name: version(name) for name in LIBRARIES}
