"""Time of lm-eval requests under CqaLM and under lm-eval's own Hugging Face backend.

    python bench/lm_eval_ratio.py MODEL --items 20

Pairs of a context and two continuations, of random ids; each backend is asked the same once to warm
up and then --repeats times, in turn. Prints seconds and their ratio. For a quiet machine.
"""

import argparse
import random
import time

from lm_eval.models.huggingface import HFLM

from cqa.bridges.lm_eval import CqaLM


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--context", type=int, default=400)
    parser.add_argument("--continuation", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    ours = CqaLM(args.model)
    device = str(ours.model.decoder.device)
    dtype = "bfloat16" if device.startswith("cuda") else "float32"
    theirs = HFLM(pretrained=args.model, device=device, dtype=dtype, batch_size=args.batch_size)
    draw = random.Random(0)
    asked = []
    for k in range(args.items):
        context = draw.choices(range(3, ours.tokenizer.vocab_size), k=args.context)
        for _ in range(2):
            following = draw.choices(range(3, ours.tokenizer.vocab_size), k=args.continuation)
            asked.append(((str(k), ""), context, following))
    seconds: dict[str, list[float]] = {"cqa": [], "hf": []}
    for repeat in range(args.repeats + 1):
        for name, model in (("cqa", ours), ("hf", theirs)):
            started = time.perf_counter()
            found = model._loglikelihood_tokens(asked, disable_tqdm=True)
            if repeat:
                seconds[name].append(time.perf_counter() - started)
            assert len(found) == len(asked)
    best = {name: min(times) for name, times in seconds.items()}
    for name, times in seconds.items():
        print(f"{name}: best {best[name]:.3f} s, all {[round(t, 3) for t in times]}")
    print(f"ratio hf / cqa: {best['hf'] / best['cqa']:.2f}")


if __name__ == "__main__":
    main()
