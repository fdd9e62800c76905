"""Count what one layer of a training pass launches on a GPU, forward and backward, without one.

Decoders of three layers and of two are recorded (aot_record.py); the count is of what the third
adds: kernels of our own, and calls of torch's products, of attention and of anything else.
"""

from __future__ import annotations

import argparse
from collections import Counter

import torch
from aot_cases import META, SHAPES
from aot_launch import Execution
from aot_record import Attention, Event, Events, Product, decoder_of, recorded, shorter
from aot_time import CARDS

from cqa.kernels.philox import Dropout
from cqa.layout import pack_documents
from cqa.model.config import DecoderConfig
from cqa.model.lora import LoraSpec, TrainableLora
from cqa.model.projection import MODULES

SPEC = LoraSpec(32, 64.0, True, MODULES)
TOKENS = (700, 700)


def name_of(event: Event) -> str:
    """Name a launch."""
    if isinstance(event, Execution):
        return event.launch.kernel_name
    if isinstance(event, Attention):
        return "attention"
    return "product" if isinstance(event, Product) else event.name


def passed(shape: DecoderConfig, n_layers: int) -> dict[str, Events]:
    """Record a training pass each way, what is before and after the layers included."""
    decoder = decoder_of(shorter(shape, n_layers), SPEC.rank_columns())
    TrainableLora(decoder, SPEC, 0)
    batch = pack_documents([([0] * n, [True] * n) for n in TOKENS]).to(META)
    dropout = Dropout(0.05, 1, 1, torch.arange(batch.n_rows, device=META))
    with recorded(CARDS["H200"], shape.vocab_size) as events:
        hidden = decoder.hidden(batch, dropout=dropout)
        forward = Counter(events)
        hidden.backward(torch.empty_like(hidden))
    return {"forward": forward, "backward": events - forward}


def of_one_layer(shape: DecoderConfig) -> dict[str, Counter[str]]:
    """Count the launches of a layer in the middle, by name, each way."""
    passed(shape, 3)  # fills what is kept from pass to pass
    more, fewer = passed(shape, 3), passed(shape, 2)
    found = {}
    for way in more:
        names: Counter[str] = Counter()
        for event, n in (more[way] - fewer[way]).items():
            names[name_of(event)] += n
        found[way] = names
    return found


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="7B", choices=list(SHAPES))
    found = of_one_layer(SHAPES[parser.parse_args().shape])
    for way, names in found.items():
        print(f"{way}: {names.total()}")
        for name, count in names.items():
            print(f"  {count} {name}")
    print(f"together: {sum(names.total() for names in found.values())}")


if __name__ == "__main__":
    main()
