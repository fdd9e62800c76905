"""Time and memory of `cqa-fast score` by the number of pairs: the table in docs/scale.md.

    python bench/growth.py --pairs 1000 10000 100000

Scores short pairs (14 tokens an item with both nulls) under the embedded demo model, statistics
included, a process for each number; prints processor time, which other work beside it changes
little, and the most resident memory.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from cqa.assets import DEMO

WORDS = ("door", "lamp", "road", "hand", "night", "rain", "stone", "river", "glass", "table")
ROOT = Path(__file__).parent.parent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[1000, 10_000, 100_000])
    args = parser.parse_args()
    print("| pairs | processor time | the most memory |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for n in args.pairs:
            pairs = write_pairs(Path(folder) / f"{n}.jsonl", n)
            seconds, n_bytes = took(pairs, Path(folder) / f"scores-{n}")
            print(f"| {n:,} | {seconds:.1f} s | {n_bytes / 1e6:.0f} MB |", flush=True)


def write_pairs(path: Path, n: int) -> Path:
    """Write n pairs of one token each after two, a source for every four."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for k in range(n):
            context, good, bad = draw.sample(WORDS, 3)
            file.write(
                f'{{"id": "p{k}", "group": "literary", "source_id": "s{k // 4}", '
                f'"context": "the {context} {k}", "good": " {good}", "bad": " {bad}"}}\n'
            )
    return path


def took(pairs: Path, out: Path) -> tuple[float, int]:
    """Return processor seconds and the most resident bytes of scoring some pairs."""
    words = ["score", "--model", DEMO / "model", "--pairs", pairs, "--out", out, "--device", "cpu"]
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "cli")))
    process = subprocess.Popen(
        [sys.executable, "-m", "cqa_fast", *map(str, words)],
        env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, process.returncode
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
