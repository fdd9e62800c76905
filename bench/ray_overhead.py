"""What `score --ray` costs beside the plain loop, beyond its start.

    python bench/ray_overhead.py --pairs 10000 --repeats 3

Scores short pairs under the embedded demo model in one process, and on a local Ray of one actor, in
turn; each in a process of its own, one thread each. The start is what the same takes with 8 pairs:
imports, the model, Ray itself. Prints the medians of what is left, by the clock and in processor
time (of this process and of the actor, without Ray's own servers), and their ratios.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from growth import ROOT, write_pairs

from cqa.assets import DEMO

WAYS = ("plain", "ray")
FEW = 8


def main() -> None:
    """Measure and print, or do one of the runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # way, file, folder
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(one(*args.one)))
        return
    with tempfile.TemporaryDirectory() as folder:
        files = {n: write_pairs(Path(folder) / f"{n}.jsonl", n) for n in (FEW, args.pairs)}
        left: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for k in range(args.repeats):
            for way in WAYS:
                few, many = (
                    run(way, files[n], Path(folder) / f"{way}-{n}-{k}") for n in (FEW, args.pairs)
                )
                left[way].append({name: many[name] - few[name] for name in many})
                print(k, way, {name: round(v, 2) for name, v in left[way][-1].items()}, flush=True)
    for name in ("clock", "processor"):
        plain, ray = (statistics.median(v[name] for v in left[way]) for way in WAYS)
        ratios = [b[name] / a[name] for a, b in zip(*left.values(), strict=True)]
        print(
            f"{name}: plain {plain:.1f} s, ray {ray:.1f} s, ratio of each turn "
            f"{statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]"
        )


def run(way: str, pairs: Path, out: Path) -> dict[str, float]:
    """Return the seconds of one run in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", way, str(pairs), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
             "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def one(way: str, pairs: str, out: str) -> dict[str, float]:
    """Score a file, and return the seconds that it took."""
    started, actors = time.perf_counter(), Actors()
    from cqa.score.config import ScoreConfig
    from cqa.score.on_ray import score_on_ray
    from cqa.score.run import score

    settings = {"model": str(DEMO / "model"), "pairs": (Path(pairs),), "device": "cpu"}
    if way == "plain":
        score(ScoreConfig(out=Path(out), **settings))
    else:
        with actors:
            score_on_ray(ScoreConfig(out=Path(out), ray="local", ray_actors=1, **settings))
    return {
        "clock": time.perf_counter() - started,
        "processor": time.process_time() + sum(actors.seconds.values()),
    }


class Actors:
    """While entered, looks at the processor time of Ray's actors of this process."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        tick = os.sysconf("SC_CLK_TCK")
        while not self._stop.wait(0.1):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    name = (process / "cmdline").read_bytes()
                    if not name.startswith(b"ray::Worker") or not self._ours(process):
                        continue
                    fields = (process / "stat").read_text().rpartition(") ")[2].split()
                    self.seconds[process.name] = (int(fields[11]) + int(fields[12])) / tick
                except OSError:  # it has ended
                    continue

    def _ours(self, process: Path) -> bool:
        """Whether a process descends from this one."""
        while (parent := (process / "stat").read_text().rpartition(") ")[2].split()[1]) != "0":
            if parent == str(os.getpid()):
                return True
            process = Path("/proc") / parent
        return False


if __name__ == "__main__":
    main()
