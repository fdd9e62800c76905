"""Build step: the native CPU ops, cqa._C, from csrc/; everything declarative is in pyproject.toml.

Without torch or a C++ compiler the package installs all the same, and says so in one line; CPU
work then runs the PyTorch reference, as `cqa-fast doctor` shows.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import setup

FLAGS = [
    "-O3",
    "-std=c++17",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-Wno-psabi",
    "-fvisibility=hidden",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",  # torch's stable ABI as of 2.11
]


def native_build() -> dict[str, Any]:
    """Return setup()'s arguments for the extension, none where it cannot be built."""
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        return skipped("torch is not installed here (--no-build-isolation uses the installed one)")
    if not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        return skipped("no C++ compiler was found")
    sources, headers = (sorted(str(p) for p in Path("csrc").glob(f"*.{s}")) for s in ("cpp", "h"))
    extension = CppExtension(
        "cqa._C",
        sources,
        include_dirs=["csrc"],
        depends=headers,
        extra_compile_args=FLAGS,
        py_limited_api=True,
    )
    extension.optional = True
    command = BuildExtension.with_options(no_python_abi_suffix=True, use_ninja=True)
    return {"ext_modules": [extension], "cmdclass": {"build_ext": command}}


def skipped(reason: str) -> dict[str, Any]:
    """Say in one line why there are no native ops."""
    print(f"cqa-fast: native CPU ops are not built: {reason}", file=sys.stderr)
    return {}


setup(**native_build())
