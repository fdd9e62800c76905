"""Training and scoring killed at random moments, again and again: what is left is compared.

    make soak                          a hundred kills, and 200,000 rows
    python tests/soak.py --seed 7      others

Each job is run once without a break. Then it is started, killed after a random time (SIGKILL, now
and then SIGTERM or SIGINT) and started again in the same folder, until it gets to its end; what it
leaves must be what the unbroken job left, to the bit. Then a new folder, until all kills are spent.
Last, many very short items are scored and reported, a quarter of them first: what the rest adds to
the most memory that each process had must be a few bytes a row.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from faults import leftovers, run_contents, scores_contents
from helpers import tiny_model, write_lines

from cqa.errors import CqaError
from cqa.report.config import ReportConfig
from cqa.report.write import write_report
from cqa.score.config import ScoreConfig
from cqa.score.run import score
from cqa.train.config import TrainConfig
from cqa.train.loop import train

WORDS = ["the", "lamp", "was", "lit", "and", "she", "waited", "by", "the", "door", "a", "day"]
Job = Callable[[Path], object]


class Jobs:
    """A training run of four epochs, and the scoring of its epochs."""

    def __init__(self, folder: Path) -> None:
        """Name the places of model and data; `make` fills them."""
        self.folder = folder
        self.run = folder / "run"

    def make(self) -> None:
        """Write model and data."""
        rng = random.Random(0)

        def words(n: int) -> str:
            return "".join(f" {word}" for word in rng.choices(WORDS, k=n))

        tiny_model(self.folder / "model")
        samples = [{"id": f"s{i}", "prompt": words(9), "response": words(6)} for i in range(24)]
        write_lines(self.folder / "train.jsonl", samples)
        pairs = [
            {"id": f"p{i}", "context": words(12), "good": words(5), "bad": f"{words(4)} {i}"}
            for i in range(40)
        ]
        write_lines(self.folder / "pairs.jsonl", pairs)

    def train(self, out: Path) -> None:
        """Train, or go on training."""
        config = TrainConfig(
            model=str(self.folder / "model"), data=(self.folder / "train.jsonl",), out=out,
            epochs=4, rank=4, lr=1e-2, validation="0.1", seed=5, device="cpu",
        )  # fmt: skip
        train(config, resume=True)

    def score(self, out: Path) -> None:
        """Score, or go on scoring."""
        config = ScoreConfig(
            model=str(self.folder / "model"), pairs=(self.folder / "pairs.jsonl",), run=(self.run,),
            out=out, batch_tokens=100, device="cpu",
        )  # fmt: skip
        score(config)


def start(job: Job, out: Path) -> int:
    """Start a job in a process of its own; return its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        job(out)
        os._exit(0)
    except CqaError as error:
        if error.exit_code < 128:
            traceback.print_exc()
        os._exit(error.exit_code)
    except KeyboardInterrupt:
        os._exit(130)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def end_of(child: int) -> int:
    """Wait for a process; return its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def soak(n_kills: int, seed: int, folder: Path) -> Counter[str]:
    """Kill both jobs in turn; return what was done and how it ended.

    Raises:
        AssertionError: A job ended in a way of its own, or left something else than unbroken.
    """
    assert transformers.AutoTokenizer  # loaded once, here: every process that is forked has it
    jobs, done = Jobs(folder), Counter[str]()
    assert end_of(start(lambda _: jobs.make(), folder)) == 0
    kinds: list[tuple[str, Job, Callable[[Path], object], Path]] = [
        ("training", jobs.train, run_contents, jobs.run),
        ("scoring", jobs.score, scores_contents, folder / "scores"),
    ]
    whole, seconds = {}, {}
    for name, job, contents, out in kinds:
        began = time.perf_counter()
        assert end_of(start(job, out)) == 0, f"{name} did not end by itself"
        seconds[name], whole[name] = time.perf_counter() - began, contents(out)
    rng = random.Random(seed)
    while done.total() - done["unbroken ends"] < n_kills:
        for name, job, contents, _ in kinds:
            out = folder / f"{name}-{done.total()}"
            budget = n_kills - (done.total() - done["unbroken ends"])
            _kill_until_it_ends(name, job, out, rng, seconds[name], budget, done)
            assert contents(out) == whole[name], f"{out} differs from the unbroken {name}"
            assert not leftovers(out), leftovers(out)
            shutil.rmtree(out)
    return done


def _kill_until_it_ends(
    name: str,
    job: Job,
    out: Path,
    rng: random.Random,
    seconds: float,
    budget: int,
    done: Counter[str],
) -> None:
    """Start a job again and again, killing it at most `budget` times."""
    for _ in range(budget):
        child = start(job, out)
        time.sleep(rng.uniform(0, seconds))
        signum = rng.choice([signal.SIGKILL] * 4 + [signal.SIGTERM, signal.SIGINT])
        os.kill(child, signum)
        code = end_of(child)
        if code == 0:  # it was faster
            done["unbroken ends"] += 1
            return
        allowed = {-signum, 128 + signum}
        assert code in allowed, f"{name} ended with {code} after {signum.name}"
        done[f"{name} {signum.name}"] += 1
    assert end_of(start(job, out)) == 0
    done["unbroken ends"] += 1


# Beyond what a quarter of the rows takes: columns, ids and sources; of a report also the lines of
# its largest table.
MOST_BYTES_A_ROW = {"scoring": 600, "reporting": 1500}


def rows_soak(n_rows: int, folder: Path) -> dict[str, float]:
    """Score and report many rows; return by how many bytes a row each process grew.

    Args:
        n_rows: Half under the base, half under an adapter; a quarter of them is done first.
        folder: An empty folder.
    """
    assert transformers.AutoTokenizer  # loaded once, here
    jobs = Jobs(folder)
    assert end_of(start(lambda _: jobs.make(), folder)) == 0
    assert end_of(start(jobs.train, jobs.run)) == 0
    peaks: dict[str, list[int]] = {"scoring": [], "reporting": []}
    for n_items in (n_rows // 8, n_rows // 2):
        pairs = folder / f"pairs-{n_items}.jsonl"
        with pairs.open("w") as file:
            file.writelines(
                f'{{"context": "the", "good": " lamp {k}", "bad": " door {k}"}}\n'
                for k in range(n_items)
            )
        config = ScoreConfig(
            model=str(folder / "model"), pairs=(pairs,), run=(jobs.run,), epochs=(4,),
            out=folder / f"scores-{n_items}", device="cpu",
        )  # fmt: skip
        report = ReportConfig(out=folder / f"report-{n_items}")
        peaks["scoring"].append(_peak_bytes(lambda _, c=config: score(c), folder))
        peaks["reporting"].append(
            _peak_bytes(lambda _, c=config, r=report: write_report(c.out, r), folder)
        )
    return {name: (most - few) / (n_rows * 3 / 4) for name, (few, most) in peaks.items()}


def _peak_bytes(job: Job, folder: Path) -> int:
    """Run a job in a process of its own; return the most memory that it had."""
    _, status, used = os.wait4(start(job, folder), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return used.ru_maxrss * 1024


def main() -> None:
    """Soak, and say what was done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="cqa-soak-") as folder:
        done = soak(arguments.kills, arguments.seed, Path(folder))
    for name, count in sorted(done.items()):
        print(f"{count:>5}  {name}")
    print(
        f"seed {arguments.seed}, {time.perf_counter() - began:.0f} s: every job that was killed "
        "and started again left the same bits as one that was not"
    )
    if not arguments.rows:
        return
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="cqa-soak-") as folder:
        grown = rows_soak(arguments.rows, Path(folder))
    for name, n_bytes in grown.items():
        print(
            f"{name} {arguments.rows:,} rows: {n_bytes:,.0f} bytes a row beyond a quarter of them"
        )
        assert n_bytes <= MOST_BYTES_A_ROW[name], f"more than {MOST_BYTES_A_ROW[name]}"
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
