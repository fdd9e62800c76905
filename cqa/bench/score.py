"""The score level: contexts and options of given lengths, under a base and its adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from cqa.assets import DEMO
from cqa.bench.config import BenchConfig, Job
from cqa.bench.counts import pass_flops
from cqa.bench.device import Ceilings, Peak
from cqa.bench.results import MeasuredJob
from cqa.bench.shapes import random_adapter
from cqa.bench.timing import Stopwatch
from cqa.data.items import Item
from cqa.data.tokenizer import Encoded, Ids, Tokenizer
from cqa.layout import pack_trees
from cqa.model.checkpoint import locate
from cqa.model.decoder import Decoder
from cqa.model.lora import Adapter, LoraSpec, adapted_members, attach
from cqa.score.decoder_engine import run_prefix_batch
from cqa.score.prefix_batch import EncodedItem, passes
from cqa.score.scorer import scored_passes


def null_tokenizer(model: str | None = None) -> Tokenizer:
    """Return a tokenizer for what stands for no context: the model's, or any where it has none."""
    return Tokenizer(DEMO / "model" if model is None else locate(model))


def random_items(job: Job, vocabulary: int) -> list[EncodedItem]:
    """Draw a job's items: contexts and options of random tokens."""
    rng = np.random.default_rng(0)

    def ids(n: int) -> Ids:
        return tuple(rng.integers(0, vocabulary, n).tolist())

    items = []
    for number in range(job.items):
        context = ids(job.context)
        options = [
            Encoded(context, ids(job.option), False, (0,) * job.option) for _ in range(job.options)
        ]
        kind = "options" if job.options > 1 else "continuation"
        item = Item(str(number), kind, "", ("",) * job.options, None, {})  # type: ignore[arg-type]
        items.append(EncodedItem(item, tuple(options)))
    return items


def make_adapter(decoder: Decoder, spec: LoraSpec, seed: int) -> Adapter:
    """Draw an adapter on the decoder's device."""
    weights = {}
    for projection in decoder.projections():
        k = projection.columns.features
        widths = {m.name: m.width for m in projection.members}
        for name in adapted_members(projection, spec):
            shapes = ((spec.rank, k), (widths[name], spec.rank))
            key = (projection.layer, name)
            weights[key] = random_adapter(*key, shapes, decoder.device, seed)
    return Adapter(spec, weights)


def measure_job(
    decoder: Decoder,
    spec: LoraSpec,
    job: Job,
    config: BenchConfig,
    ceilings: Ceilings,
) -> MeasuredJob:
    """Time a scoring job, adapters swapped in place; return speed, MFU and memory.

    Adapters lie ready on the device: reading files is not timed.
    """
    tokenizer = null_tokenizer(config.model)
    batch_tokens = config.batch_tokens or decoder.pass_rows
    items = random_items(job, decoder.config.vocab_size)
    adapters = [make_adapter(decoder, spec, seed) for seed in range(1, job.models)]
    run = _runner(decoder, items, tokenizer, batch_tokens, adapters)
    run()  # what is allocated once
    peak = Peak(decoder.device)
    timing = Stopwatch(decoder.device).measure(
        {"job": run}, seconds=config.seconds, warm_ups=0, least=3
    )["job"]
    extra = peak.extra_bytes()
    decoder.detach_adapter()
    fed = scored = base_flops = adapted_flops = 0
    for _, prefixes in passes(items, tokenizer, batch_tokens):
        batch, _ = pack_trees(prefixes.trees())
        fed += batch.n_rows
        scored += batch.n_targets
        base_flops += pass_flops(decoder.config, batch, 0, training=False).total
        adapted_flops += pass_flops(decoder.config, batch, spec.rank, training=False).total
    flops = base_flops + len(adapters) * adapted_flops
    rate = flops / timing.median_s
    return MeasuredJob(
        job=str(job),
        n_models=job.models,
        tokens_fed=fed * job.models,
        tokens_scored=scored * job.models,
        time=timing,
        tokens_per_s=fed * job.models / timing.median_s,
        items_per_s=job.items * job.models / timing.median_s,
        flops=flops,
        flops_per_s=rate,
        mfu=rate / ceilings.gemm_flops_per_s,
        peak_bytes=peak.total_bytes(),
        extra_bytes=extra,
        all_logits_bytes=4 * (job.context + job.options * job.option) * decoder.config.vocab_size,
    )


def _runner(
    decoder: Decoder,
    items: Sequence[EncodedItem],
    tokenizer: Tokenizer,
    batch_tokens: int,
    adapters: Sequence[Adapter],
) -> Callable[[], None]:
    score = partial(run_prefix_batch, decoder)

    def run() -> None:
        decoder.detach_adapter()
        for adapter in (None, *adapters):
            if adapter is not None:
                attach(decoder, adapter)
            for _ in scored_passes(score, items, tokenizer, batch_tokens):
                pass

    return run
