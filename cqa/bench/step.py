"""The step level: one global batch, from its tokens to updated weights."""

from __future__ import annotations

import time
from itertools import count
from typing import get_args

import numpy as np
import torch

from cqa.bench.config import BenchConfig, Window
from cqa.bench.counts import pass_flops
from cqa.bench.device import Ceilings, Peak
from cqa.bench.results import MeasuredStep, StepFlops
from cqa.bench.timing import Stopwatch, Timing
from cqa.bench.trace import launch_gaps
from cqa.data.samples import EncodedSample
from cqa.layout import pack_documents
from cqa.model.decoder import Decoder
from cqa.model.lora import LoraSpec, TrainableLora
from cqa.train.graphs import Graphs
from cqa.train.memory import estimate_memory, size_of
from cqa.train.passes import Phase, StepConfig
from cqa.train.step import take_step

LEARNING_RATE = 1e-5


def random_samples(window: Window, vocabulary: int) -> list[EncodedSample]:
    """Draw the samples of a window: random tokens, the response learned."""
    rng = np.random.default_rng(0)
    return [
        EncodedSample(
            str(i),
            tuple(rng.integers(0, vocabulary, prompt + response).tolist()),
            (False,) * prompt + (True,) * response,
            slice(0, 0),
            "",
        )
        for i, (prompt, response) in enumerate(window.samples)
    ]


def measure_step(
    decoder: Decoder, spec: LoraSpec, window: Window, config: BenchConfig, ceilings: Ceilings
) -> MeasuredStep:
    """Time steps over a window; return speed, MFU, memory, and where the time goes.

    MFU is the operations that the result needs, per second, over the rate of a large product in
    this run.
    """
    samples = random_samples(window, decoder.config.vocab_size)
    settings = StepConfig(dropout=config.dropout, recompute=config.recompute)
    lora = TrainableLora(decoder, spec, 0)
    graphs = Graphs.of(lora, settings) if config.cuda_graphs else None
    numbers = count(1)

    def step() -> None:
        take_step(lora, samples, settings, step=next(numbers), lr=LEARNING_RATE, graphs=graphs)

    peak = Peak(decoder.device)
    timing = Stopwatch(decoder.device).measure(
        {"step": step}, seconds=config.seconds, rounds=config.steps
    )["step"]
    batch = pack_documents([(sample.ids, sample.loss_mask) for sample in samples])
    flops = pass_flops(decoder.config, batch, spec.rank, training=True)
    estimate = estimate_memory(
        decoder.config,
        spec,
        size_of(samples),
        dtype=decoder.dtype,
        device=decoder.device,
        recompute=config.recompute,
        dropout=config.dropout > 0,
    )
    rate = flops.total / timing.median_s
    return MeasuredStep(
        window=str(window),
        n_tokens=batch.n_rows,
        n_labels=batch.n_targets,
        time=timing,
        tokens_per_s=batch.n_rows / timing.median_s,
        flops=StepFlops(flops, flops.total),
        flops_per_s=rate,
        mfu=rate / ceilings.gemm_flops_per_s,
        peak_bytes=peak.total_bytes(),
        estimated_bytes=estimate.total_bytes,
        phases_s=measure_phases(lora, samples, settings, config.seconds),
        gaps=launch_gaps(step, decoder.device),
    )


def measure_phases(
    lora: TrainableLora, samples: list[EncodedSample], settings: StepConfig, seconds: float
) -> dict[str, float]:
    """Return the median time of each phase of a step without graphs.

    After each phase the host waits for the device, so the sum can be more than a step takes.
    """
    watch = PhaseWatch(lora.decoder.device)
    steps: list[dict[str, float]] = []
    spent = 0.0
    while len(steps) < 3 or (spent < seconds and len(steps) < 100):
        watch.start()
        take_step(lora, samples, settings, step=len(steps) + 1, lr=LEARNING_RATE, on_phase=watch)
        steps.append(watch.seconds)
        spent += sum(watch.seconds.values())
    return {
        name: Timing.of([took[name] for took in steps[1:]]).median_s for name in get_args(Phase)
    }


class PhaseWatch:
    """Adds up the time of each phase of a step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self) -> None:
        """Begin a step."""
        self.seconds: dict[str, float] = dict.fromkeys(get_args(Phase), 0.0)
        self._last = time.perf_counter()

    def __call__(self, phase: Phase) -> None:
        """End a phase, once the device has done it."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now
