"""Count what one layer of a training pass launches on a GPU, forward and backward, without one.

Decoders of three and of two layers run on tensors without data by the Triton backend; the count is
of what the third layer adds: kernels of our own, and torch's operations, each of which is a launch
or more of its library. A product that adds to a copy of its start counts twice, for that copy.
Attention counts as one call of its library each way.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from aot_cases import META, SHAPES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

from cqa.kernels.philox import Dropout
from cqa.layout import pack_documents
from cqa.model import decoder as decoders
from cqa.model.config import DecoderConfig
from cqa.model.decoder import Decoder
from cqa.model.lora import LoraSpec, TrainableLora
from cqa.model.projection import MODULES

SPEC = LoraSpec(32, 64.0, True, MODULES)
NOT_LAUNCHED = ("empty", "new_empty", "_unsafe_view")  # beside views


class Launches(TorchDispatchMode):
    """Names of what was launched since they were last taken."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def taken(self) -> Counter[str]:
        """Return the names so far, and forget them."""
        names, self.names = self.names, Counter()
        return names

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count an operation, and run it."""
        name = func.overloadpacket.__name__
        returned = [r.alias_info for r in func._schema.returns]
        view = any(alias is not None and not alias.is_write for alias in returned)
        if not view and not name.startswith(NOT_LAUNCHED):
            self.names[name] += 1 + (name == "addmm")
        return func(*args, **kwargs or {})

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count kernels and operations, and let attention be one of these each way."""

        def kernel(jit: JITFunction, *args: Any, **kwargs: Any) -> None:
            self.names[jit.fn.__name__.strip("_")] += 1

        with (
            patch.object(JITFunction, "run", kernel),
            patch.object(decoders, "attention", self._attention),
            self,
        ):
            yield

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
        out: Tensor = _Attention.apply(q, k, v, self)  # type: ignore[no-untyped-call]
        return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, launches: Launches) -> Tensor:
        ctx.launches = launches
        ctx.save_for_backward(q, k, v)
        launches.names["attention"] += 1
        return q.new_empty(q.shape)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        if not dout.is_contiguous():
            ctx.launches.names["attention's copy"] += 1
        ctx.launches.names["attention_backward"] += 1
        return *(x.new_empty(x.shape) for x in ctx.saved_tensors), None


def counts(shape: DecoderConfig, n_layers: int, *, dropout: bool) -> dict[str, Counter[str]]:
    """Count the launches of one pass each way, what is before and after the layers included."""
    config = replace(
        shape,
        n_layers=n_layers,
        windows=shape.windows[:n_layers],
        rotations=shape.rotations[:n_layers],
    )
    columns = SPEC.rank_columns()
    decoder = Decoder(
        config, rank_columns=columns, dtype=torch.bfloat16, device=META, backend="triton"
    )
    TrainableLora(decoder, SPEC, 0)
    batch = pack_documents([([0] * 700, [True] * 700)] * 2).to(META)
    rows = torch.arange(batch.n_rows, device=META)
    drawn = Dropout(0.05, 1, 1, rows) if dropout else None
    launches, found = Launches(), {}
    with launches.counting():
        for _ in range(2):  # the first fills what is kept from step to step
            launches.taken()
            hidden = decoder.hidden(batch, dropout=drawn)
            found["forward"] = launches.taken()
            hidden.backward(torch.empty_like(hidden))
            found["backward"] = launches.taken()
    return found


def of_one_layer(shape: DecoderConfig, *, dropout: bool = True) -> dict[str, Counter[str]]:
    """Count the launches of a layer in the middle, each way."""
    more, fewer = (counts(shape, n, dropout=dropout) for n in (3, 2))
    return {way: more[way] - fewer[way] for way in more}


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="7B", choices=list(SHAPES))
    options = parser.parse_args()
    found = of_one_layer(SHAPES[options.shape])
    for way, names in found.items():
        print(f"{way}: {names.total()}")
        for name, count in names.items():
            print(f"  {count} {name}")
    print(f"together: {sum(names.total() for names in found.values())}")


if __name__ == "__main__":
    main()
