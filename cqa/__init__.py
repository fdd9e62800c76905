"""cqa-fast: fine-tune a LoRA on expert samples and score texts by conditional log-probability.

    import cqa

    model = cqa.load("Qwen2.5-7B", adapter="run/epoch-05")
    model.logprobs("She read the letter twice.", " Then she put it in the stove.")

`load`, `read_scores`, `train`, `score` and `report` are those of `cqa.api`. Importing this package
imports neither torch nor anything else that is heavy; calling does.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cqa.api import load, read_scores, report, score, train

__version__ = "0.1.0"
__all__ = ["__version__", "load", "read_scores", "report", "score", "train"]


class _Command(ModuleType):
    """A package that is called like the command of its name: `cqa.train(model=…)`."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        name = self.__name__.rpartition(".")[2]
        return getattr(import_module("cqa.api"), name)(*args, **settings)


for _name in ("train", "score", "report"):  # packages of these names are there, and are empty
    import_module(f"cqa.{_name}").__class__ = _Command


def __getattr__(name: str) -> Any:
    if name in ("load", "read_scores"):
        return getattr(import_module("cqa.api"), name)
    raise AttributeError(f"module 'cqa' has no attribute {name!r}")
