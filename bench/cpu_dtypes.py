"""Memory and time of bf16 weights on a CPU beside fp32, on the same numbers, interleaved.

    python bench/cpu_dtypes.py qwen2.5-7b --layers 2 --rounds 5

Each dtype has a process of its own. Sizes are GB of resident memory, times medians of seconds: by
the clock, and of both cores' work, which other jobs on the machine change less.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cqa.bench.shapes import CONFIGS, BenchModel, random_weight
from cqa.kernels.philox import Dropout
from cqa.kernels.token_logprobs import token_logprobs, token_stats
from cqa.layout import Tree, pack_documents, pack_trees
from cqa.model.decoder import Decoder
from cqa.model.load import destinations
from cqa.model.lora import TrainableLora

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WORK = ("score 64", "score 520", "train 720")  # and the rows of each


def resident_gb(key: str) -> float:
    """Return this process's resident memory now (VmRSS) or at its highest (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(key))


def build(shape: str, layers: int, dtype: torch.dtype) -> TrainableLora:
    """Return a model of random weights that bf16 holds exactly, and an adapter of rank 32."""
    model = BenchModel(shape, None, 32, "cpu", dtype)
    config = replace(model.config, n_layers=layers, windows=model.config.windows[:layers])
    cpu = torch.device("cpu")
    decoder = Decoder(config, rank_columns=model.spec.rank_columns(), dtype=dtype, device=cpu)
    for name, (sizes, put) in destinations(decoder).items():
        put(random_weight(name, sizes, torch.bfloat16, cpu))
    return TrainableLora(decoder, model.spec, seed=0)


def work_of(lora: TrainableLora) -> dict[str, Callable[[], float]]:
    """Return what is timed: scores of few and of many rows, and a training window."""
    decoder, draw = lora.decoder, random.Random(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(draw.choices(range(decoder.config.vocab_size), k=n))

    def score(context: int, option: int) -> Callable[[], float]:
        batch, _ = pack_trees([Tree(ids(context), (ids(option), ids(option)))])

        def run() -> float:
            hidden = decoder.hidden_for_scoring(batch)
            stats = token_stats(hidden, decoder.head, batch.target, backend=decoder.backend)
            return float(stats.logp.sum())

        return run

    samples = [
        (ids(n), [False] * (n - labels) + [True] * labels) for n, labels in ((300, 200), (420, 260))
    ]
    batch = pack_documents(samples)
    dropout = Dropout(0.05, 1, 1, torch.arange(batch.n_rows))

    def train() -> float:
        hidden = decoder.hidden(batch, dropout=dropout)
        logp = token_logprobs(hidden, decoder.head, batch.target, backend=decoder.backend)
        loss = -logp.mean()
        loss.backward()
        return float(loss.detach())

    return dict(zip(WORK, (score(40, 12), score(400, 60), train), strict=True))


def serve(shape: str, layers: int, dtype: str) -> None:
    """Do what is asked, a line each, and answer with what it took."""
    before = resident_gb("VmRSS")
    work = work_of(build(shape, layers, DTYPES[dtype]))
    print(json.dumps({"before": before, "loaded": resident_gb("VmRSS")}), flush=True)
    for line in sys.stdin:
        clock, cores = time.perf_counter(), time.process_time()
        value = work[line.strip()]()
        print(
            json.dumps({
                "value": value,
                "s": time.perf_counter() - clock,
                "core_s": time.process_time() - cores,
                "peak": resident_gb("VmHWM"),
            }),
            flush=True,
        )  # fmt: skip


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=CONFIGS)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", nargs="+", choices=WORK, default=WORK)
    parser.add_argument("--serve", choices=DTYPES)
    given = parser.parse_args()
    if given.serve:
        serve(given.shape, given.layers, given.serve)
    else:
        compare(given.shape, given.layers, given.rounds, given.work)


def compare(shape: str, layers: int, rounds: int, work: list[str]) -> None:
    """Start a process for each dtype, and let them take turns."""
    command = [sys.executable, __file__, shape, "--layers", str(layers), "--serve"]
    processes = {
        name: subprocess.Popen(
            [*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in DTYPES
    }

    def ask(name: str, what: str = "") -> dict[str, Any]:
        process = processes[name]
        assert process.stdin is not None
        assert process.stdout is not None
        if what:
            process.stdin.write(what + "\n")
            process.stdin.flush()
        return json.loads(process.stdout.readline())  # type: ignore[no-any-return]

    for name in DTYPES:
        print(name, ask(name), flush=True)
    for what in work:
        taken: dict[str, list[dict[str, Any]]] = {name: [] for name in DTYPES}
        for turn in range(rounds + 1):  # the first warms up
            for name in sorted(DTYPES, reverse=turn % 2 == 1):
                taken[name].append(ask(name, what))
        assert len({row["value"] for rows in taken.values() for row in rows}) == 1
        for name, rows in taken.items():
            middle = {
                key: statistics.median(row[key] for row in rows[1:]) for key in ("s", "core_s")
            }
            shown = {key: round(value, 3) for key, value in middle.items()}
            print(what, name, shown, "peak", round(rows[-1]["peak"], 2), flush=True)
    for process in processes.values():
        process.communicate()


if __name__ == "__main__":
    main()
