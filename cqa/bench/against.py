"""Ours against other programs: compared first, then timed interleaved, each in a process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from cqa.bench.config import BenchConfig, Job, Window
from cqa.bench.peer_process import PeerError, PeerProcess
from cqa.bench.results import ComparedPeer, Errors, Line, ScorePeer, StepPeer, Unmeasured
from cqa.bench.score import null_tokenizer, random_items
from cqa.bench.shapes import BenchModel
from cqa.bench.step import random_samples
from cqa.bench.timing import compare_interleaved
from cqa.kernels.backend import fastest
from cqa.layout import pack_trees
from cqa.model.block_rows import pass_rows
from cqa.score.prefix_batch import passes

BATCH_SIZE = 8  # of padded peers
# relative, of losses, gradient norms and sums of log-probabilities
AGREEMENT = {torch.float32: 2e-4, torch.bfloat16: 5e-2}


@dataclass(frozen=True, slots=True)
class Peer:
    """Another program, how it is set, and what it needs."""

    name: str
    program: str
    needs: tuple[str, ...]
    settings: dict[str, Any]
    only: str | None = None  # the one device it runs on


STEP_PEERS = (
    Peer("transformers + PEFT", "transformers_peft", ("transformers", "peft"), {}),
    Peer(
        "transformers + PEFT, recompute", "transformers_peft", ("transformers", "peft"),
        {"recompute": True},
    ),
    Peer(
        "Liger + PEFT", "transformers_peft", ("transformers", "peft", "liger_kernel"),
        {"liger": True}, "cuda",
    ),
    Peer(
        "Liger + PEFT, recompute", "transformers_peft", ("transformers", "peft", "liger_kernel"),
        {"liger": True, "recompute": True}, "cuda",
    ),
    Peer("Unsloth", "unsloth_sft", ("unsloth",), {}, "cuda"),
)  # fmt: skip
SCORE_PEERS = (
    Peer("lm-eval HF", "lm_eval_hf", ("lm_eval", "transformers"), {}),
    Peer("transformers", "transformers_score", ("transformers", "peft"), {}),
)


def compare_steps(
    bench_model: BenchModel, window: Window, config: BenchConfig, *, folder: str | None
) -> Iterator[Line]:
    """Yield each trainer's step against ours; `folder` is a checkpoint for those that need one."""
    samples = random_samples(window, bench_model.config.vocab_size)
    told = bench_model.settings() | {
        "window": [(sample.ids, sample.loss_mask) for sample in samples],
        "folder": folder,
    }
    recompute = {"recompute": config.recompute}
    for peer in STEP_PEERS:
        problem = _missing(peer, bench_model.device)
        if peer.name == "Unsloth" and not problem and folder is None:
            problem = "it loads from a folder only: give --model"
        line = StepPeer(peer.name, str(window), peer.settings)
        if problem:
            yield Unmeasured(line, problem)
            continue
        yield _compare(
            line,
            ("ours_train", told | recompute),
            (peer.program, told | peer.settings),
            ("transformers_peft", told),
            check={"dropout": 0.0},
            arguments={"dropout": 0.05},
            rounds=_rounds(config.seconds),
            agreement=AGREEMENT[bench_model.dtype],
        )


def compare_scores(bench_model: BenchModel, job: Job, config: BenchConfig) -> Iterator[Line]:
    """Yield each scorer on a job's items, after their context and after one null, against ours."""
    items, tokenizer = (
        random_items(job, bench_model.config.vocab_size),
        null_tokenizer(bench_model.model),
    )
    pairs = [
        pair
        for item in items
        for option in item.options
        for pair in (
            (option.context_ids, option.option_ids),
            (tokenizer.null_ids, option.option_ids),
        )
    ]
    device, hidden_size = bench_model.torch_device, bench_model.config.hidden_size
    backend = bench_model.backend or fastest(device, bench_model.dtype)
    budget = config.batch_tokens or pass_rows(backend, device, hidden_size)
    fed = sum(
        pack_trees(prefixes.trees())[0].n_rows for _, prefixes in passes(items, tokenizer, budget)
    )
    told = bench_model.settings() | {
        "pairs": pairs, "batch_tokens": budget, "batch_size": BATCH_SIZE
    }  # fmt: skip
    for peer in SCORE_PEERS:
        line = ScorePeer(peer.name, str(job), tokens_fed=fed, batch_size=BATCH_SIZE)
        if problem := _missing(peer, bench_model.device):
            yield Unmeasured(line, problem)
            continue
        yield _compare(
            line,
            ("ours_score", told),
            (peer.program, told),
            ("transformers_score", told),
            check={},
            arguments={},
            rounds=_rounds(config.seconds),
            agreement=AGREEMENT[bench_model.dtype],
        )


def _rounds(seconds: float) -> int:
    return max(5, min(30, round(5 * seconds)))


def _missing(peer: Peer, device: str) -> str | None:
    """Say why a peer cannot take part, if so."""
    if peer.only not in (None, device):
        return f"it runs on {peer.only} only"
    for package in peer.needs:
        try:
            version(package)
        except PackageNotFoundError:
            return f"{package} is not installed"
    return None


def _compare(
    line: StepPeer | ScorePeer,
    ours: tuple[str, dict[str, Any]],
    peer: tuple[str, dict[str, Any]],
    referee: tuple[str, dict[str, Any]],
    *,
    check: dict[str, Any],
    arguments: dict[str, Any],
    rounds: int,
    agreement: float,
) -> ComparedPeer | Unmeasured:
    """Start both, compare what they answer, then time them interleaved.

    Args:
        line: What is compared.
        ours: Our program and what it is told.
        peer: The other.
        referee: The program that answers the same in float64, if it has to.
        check: Arguments under which both answer the same.
        arguments: Those that are timed.
        rounds: How often.
        agreement: How far the answers may differ before float64 is asked, relative.
    """
    try:
        with ExitStack() as stack:
            first = stack.enter_context(PeerProcess(*ours))
            second = stack.enter_context(PeerProcess(*peer))
            answers = first(**check).value, second(**check).value
            difference, errors = _difference(*answers), None
            if not difference <= agreement:
                if ours[1]["dtype"] != "float32":
                    problem = f"results differ by {difference:.1e}, over {agreement:.0e}"
                    return Unmeasured(line, problem)
                errors = _errors(*answers, referee, check)
                if not errors.accepted(agreement):
                    problem = (
                        f"results differ by {difference:.1e}, over {agreement:.0e}; float64 is "
                        f"{errors.ours:.1e} from ours, {errors.peer:.1e} from the peer's"
                    )
                    return Unmeasured(line, problem)
            first(**arguments), second(**arguments)
            compared = compare_interleaved(
                partial(first, **arguments), partial(second, **arguments), rounds
            )
            return ComparedPeer(
                line,
                difference=difference,
                comparison=compared,
                ours_peak_bytes=first.peak_bytes,
                peer_peak_bytes=second.peak_bytes,
                errors=errors,
            )
    except PeerError as error:
        return Unmeasured(line, _last_words(str(error)))


def _errors(
    ours: list[float],
    theirs: list[float],
    referee: tuple[str, dict[str, Any]],
    check: dict[str, Any],
) -> Errors:
    """Return how far two answers are from that of float64."""
    program, told = referee
    with PeerProcess(program, told | {"dtype": "float64"}) as exact:
        truth = exact(**check).value
    return Errors(_difference(ours, truth), _difference(theirs, truth))


def _difference(ours: list[float], theirs: list[float]) -> float:
    """Return the largest relative difference; NaN where a value is."""
    a, b = (torch.tensor(values, dtype=torch.float64) for values in (ours, theirs))
    return float(((a - b).abs() / b.abs().clamp(min=1)).max())


def _last_words(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "it ended without a word"
