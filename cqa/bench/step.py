"""The step level: one accumulation window, from its tokens to updated weights."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cqa.bench.config import BenchConfig, Window
from cqa.bench.counts import pass_flops
from cqa.bench.device import Ceilings, Peak
from cqa.bench.timing import Stopwatch, Timing
from cqa.bench.trace import launch_gaps
from cqa.data.samples import EncodedSample
from cqa.kernels.adamw import adam_rates, adamw_step, gradient_norm
from cqa.kernels.embed import Noise
from cqa.kernels.philox import Dropout
from cqa.kernels.token_logprobs import token_logprobs
from cqa.layout import pack_documents
from cqa.model.decoder import Decoder
from cqa.model.lora import LoraSpec, TrainableLora
from cqa.train.config import TrainConfig
from cqa.train.graphs import Graphs
from cqa.train.loop import take_step
from cqa.train.memory import estimate_memory, size_of

PHASES = ("forward", "head", "backward", "optimizer")
Result = dict[str, Any]


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


def random_plan(samples: list[EncodedSample], **settings: Any) -> Any:
    """Return what of a plan a step asks for: the same window over and over."""
    config = TrainConfig(model="", data=None, out=None, **settings)  # type: ignore[arg-type]
    return SimpleNamespace(
        config=config,
        window=lambda _: samples,
        learning_rate=lambda _: 1e-5,
        epoch_of=lambda _: 1,
    )


def measure_step(
    decoder: Decoder, spec: LoraSpec, window: Window, config: BenchConfig, ceilings: Ceilings
) -> Result:
    """Time steps over a window; return speed, MFU, memory, and where the time goes.

    MFU is the operations that the result needs, per second, over the rate of a large product in
    this run.
    """
    samples = random_samples(window, decoder.config.vocab_size)
    plan = random_plan(
        samples,
        dropout=config.dropout,
        recompute=config.recompute,
        cuda_graphs=config.cuda_graphs,
    )
    lora = TrainableLora(decoder, spec, 0)
    graphs = Graphs.of(lora, plan.config) if config.cuda_graphs else None
    steps = iter(range(1, 10**9))
    peak = Peak(decoder.device)
    timing = Stopwatch(decoder.device).measure(
        {"step": lambda: take_step(plan, lora, next(steps), graphs=graphs)},
        seconds=config.seconds,
        rounds=config.steps,
    )["step"]
    batch = pack_documents([(sample.ids, sample.learned) for sample in samples])
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
    return {
        "window": str(window),
        "n_tokens": batch.n_rows,
        "n_labels": batch.n_targets,
        "time": asdict(timing),
        "tokens_per_s": batch.n_rows / timing.median_s,
        "flops": {**asdict(flops), "total": flops.total},
        "flops_per_s": rate,
        "mfu": rate / ceilings.gemm_flops_per_s,
        "peak_bytes": peak.total_bytes(),
        "estimated_bytes": estimate.total_bytes,
        "phases_s": measure_phases(lora, plan, Stopwatch(decoder.device), config.seconds),
        "gaps": launch_gaps(
            lambda: take_step(plan, lora, next(steps), graphs=graphs), decoder.device
        ),
    }


def measure_phases(
    lora: TrainableLora, plan: Any, watch: Stopwatch, seconds: float
) -> dict[str, float]:
    """Return the median time of each part of a step.

    It is the loop's own step with a wait after each part, so the sum can be more than a step takes.
    """
    times: dict[str, list[float]] = {name: [] for name in PHASES}
    spent, step = 0.0, 0
    while step < 3 or (spent < seconds and step < 100):
        step += 1
        parts = _phases(lora, plan, step)
        for name in PHASES:
            times[name].append(watch(lambda parts=parts: next(parts)))  # type: ignore[misc]
            spent += times[name][-1]
    return {name: Timing.of(values[1:]).median_s for name, values in times.items()}


def _phases(lora: TrainableLora, plan: Any, step: int) -> Any:
    """Do a step, stopping after each part of it."""
    config, decoder = plan.config, lora.decoder
    samples = plan.window(step)
    batch = pack_documents([(s.ids, s.learned) for s in samples]).to(decoder.device)
    rows = torch.arange(batch.n_rows, device=decoder.device)
    dropout = Dropout(config.dropout, config.seed, step, rows) if config.dropout else None
    noise = Noise(config.neftune_alpha, config.seed, step, rows, batch.lengths)
    hidden: Tensor = decoder.hidden(batch, dropout=dropout, noise=noise, recompute=config.recompute)
    yield "forward"
    logp = token_logprobs(hidden, decoder.head, batch.target, backend=decoder.backend)
    loss = -logp.sum() / batch.n_targets
    yield "head"
    loss.backward()
    yield "backward"
    rates = adam_rates(lr=1e-5, step=step, weight_decay=0.0, device=decoder.device)
    norm = gradient_norm(lora.state.grad, backend=decoder.backend)
    limit = config.max_grad_norm
    adamw_step(lora.state, rates, norm=norm, max_norm=limit, backend=decoder.backend)
    lora.after_step()
    yield "optimizer"
