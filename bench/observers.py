"""What looking at the layers of a scoring pass costs beside the pass itself, in turn.

    python bench/observers.py .models/smollm2-135m-instruct --context 400 --option 60 --rounds 7

The pass feeds contexts of random ids with two options each, every token of them, and takes the
log-probabilities, as scoring does. Times are medians of processor seconds, which other jobs on the
machine change less than the clock, and their ratios to the plain pass of the same round.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cqa.kernels.token_logprobs import token_stats
from cqa.layout import Tree, pack_whole_options
from cqa.model.attention_mass import option_attention
from cqa.model.load import load_model
from cqa.model.option_states import option_states


def main() -> None:
    """Read the command line, and print a line for each kind of pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--items", type=int, default=4)
    parser.add_argument("--context", type=int, default=400)
    parser.add_argument("--option", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    decoder = load_model(given.model, device=torch.device("cpu"), dtype=torch.float32).decoder
    draw = random.Random(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(draw.choices(range(decoder.config.vocab_size), k=n))

    trees = [
        Tree(ids(given.context), (ids(given.option), ids(given.option))) for _ in range(given.items)
    ]
    y = [(0, given.context)] * given.items

    @torch.no_grad()
    def scores() -> None:
        batch, _ = pack_whole_options(trees)
        hidden = decoder.hidden_for_scoring(batch)
        token_stats(hidden, decoder.head, batch.target, backend=decoder.backend)

    calls: dict[str, Callable[[], object]] = {
        "scores": scores,
        "option states": lambda: option_states(decoder, trees),
        "attention on y": lambda: option_attention(decoder, trees, y),
        "nothing but the layers": lambda: decoder.hidden_for_scoring(pack_whole_options(trees)[0]),
    }
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(given.rounds + 1):  # the first warms up
        for name in sorted(calls, reverse=turn % 2 == 1):
            start = time.process_time()
            calls[name]()
            taken[name].append(time.process_time() - start)
    plain = taken["nothing but the layers"][1:]
    for name, times in taken.items():
        ratios = [a / b for a, b in zip(times[1:], plain, strict=True)]
        print(
            f"{name}: {statistics.median(times[1:]):.2f} s, over the layers alone "
            f"{statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]"
        )


if __name__ == "__main__":
    main()
