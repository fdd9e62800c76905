"""Time of greedy texts under our decoder and under transformers' generate.

    python bench/sample_ratio.py MODEL --prompts 1

Prompts are random ids of one length, in fp32 on one thread of a CPU; each program draws them all
together once to warm up and then --repeats times, in turn. Prints milliseconds of processor time a
step, which is a token of every text, their ratio, and how many texts have the same tokens.
"""

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from cqa.model.load import load_model
from cqa.score.sampling import sample


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--context", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    decoder = load_model(args.model, device=torch.device("cpu"), dtype=torch.float32).decoder
    theirs = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    draw = random.Random(0)
    ids = range(3, decoder.config.vocab_size)
    prompts = [tuple(draw.choices(ids, k=args.context)) for _ in range(args.prompts)]

    def by_ours() -> list[tuple[int, ...]]:
        drawn = sample(decoder, prompts, n_samples=1, max_tokens=args.tokens, temperature=0.0)
        return [one.token_ids for (one,) in drawn]

    def by_theirs() -> list[tuple[int, ...]]:
        given = torch.tensor(prompts)
        found = theirs.generate(
            given, attention_mask=torch.ones_like(given), do_sample=False, eos_token_id=None,
            pad_token_id=0, max_new_tokens=args.tokens,
        )  # fmt: skip
        return [tuple(row) for row in found[:, args.context :].tolist()]

    programs: dict[str, Callable[[], list[tuple[int, ...]]]] = {"cqa": by_ours, "hf": by_theirs}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    texts = {}
    for repeat in range(args.repeats + 1):
        for name, program in programs.items():
            started = time.process_time()
            texts[name] = program()
            if repeat:
                seconds[name].append(time.process_time() - started)
    best = {name: min(times) for name, times in seconds.items()}
    for name, times in seconds.items():
        steps = [round(1e3 * t / args.tokens, 1) for t in times]
        print(f"{name}: best {1e3 * best[name] / args.tokens:.1f} ms a step, all {steps}")
    same = sum(a == b for a, b in zip(*texts.values(), strict=True))
    print(
        f"ratio hf / cqa: {best['hf'] / best['cqa']:.2f}; the same texts: {same} of {len(prompts)}"
    )


if __name__ == "__main__":
    main()
