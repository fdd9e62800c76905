"""What `train --dry-run` shows: the plan, a sample of every kind with its labels, what it takes."""

from __future__ import annotations

from dataclasses import dataclass

from cqa.data.samples import EncodedSample
from cqa.errors import ResourceError
from cqa.model.load import dtype_name, pick_device, pick_dtype
from cqa.model.memory import free_bytes, size_text
from cqa.schema.record import Record
from cqa.text import counted, duration
from cqa.train.examples import Example
from cqa.train.memory import estimate_plan, largest_pass
from cqa.train.passes import n_labels, n_tokens
from cqa.train.placebo import PLACEBO_TEXT
from cqa.train.plan import Plan
from cqa.train.rate import Rate, measure_rate
from cqa.train.schedule import warmup_steps
from cqa.train.start import check_start

MOST_SHOWN = 12  # kinds of samples


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBytes(Record):
    """Parts of the peak that the largest pass is estimated to need."""

    weights: int
    adapter: int
    activations: int
    workspace: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSample(Record):
    """The first sample of its kind as token ids, and which of them are learned."""

    id: str
    format: str
    turns: tuple[str, ...]  # who speaks
    n: int  # samples of its kind
    ids: tuple[int, ...]
    learned: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanDescription(Record):
    """A plan as `--json` prints it; token counts are of all samples, once."""

    format: str
    placebo: bool
    n_train: int
    n_validation: int
    too_long_ids: tuple[str, ...]
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    tokens_per_epoch: int
    labels_per_epoch: int
    longest_sample_tokens: int
    longest_pass_tokens: int
    scaling: float
    device: str
    dtype: str
    n_ranks: int  # processes over which the base is spread; memory is of one of them
    memory_bytes: MemoryBytes
    free_memory_bytes: int
    rate: Rate | None  # None where memory does not hold a step, or the base is spread
    examples: tuple[ShownSample, ...]


def describe_plan(plan: Plan, n_ranks: int = 1) -> PlanDescription:
    """Describe a plan, with the memory and the time that it needs where it would run.

    A step is taken for that, and thrown away; none where the base is to be spread over ranks, since
    all of them would have to take it.

    Raises:
        CqaError: The run would end in the same.
    """
    check_start(plan)
    config = plan.config
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    largest = largest_pass(plan)
    memory = estimate_plan(plan, largest, device, dtype, n_ranks)
    return PlanDescription(
        format=", ".join(plan.formats),
        placebo=config.placebo,
        n_train=len(plan.train),
        n_validation=len(plan.validation),
        too_long_ids=plan.affected_ids,
        steps_per_epoch=plan.steps_per_epoch,
        total_steps=plan.total_steps,
        warmup_steps=warmup_steps(plan.total_steps, config.warmup_ratio),
        tokens_per_epoch=n_tokens(plan.train),
        labels_per_epoch=n_labels(plan.train),
        longest_sample_tokens=max(len(sample.ids) for sample in plan.train),
        longest_pass_tokens=n_tokens(largest),
        scaling=plan.spec.scaling,
        device=device.type,
        dtype=dtype_name(dtype),
        n_ranks=n_ranks,
        memory_bytes=MemoryBytes(
            weights=memory.weights_bytes,
            adapter=memory.adapter_bytes,
            activations=memory.activations_bytes,
            workspace=memory.workspace_bytes,
            total=memory.total_bytes,
        ),
        free_memory_bytes=free_bytes(device),
        rate=_rate(plan) if n_ranks == 1 else None,
        examples=tuple(
            ShownSample(
                id=example.sample.id,
                format=example.format,
                turns=example.turns,
                n=example.n,
                ids=example.sample.ids,
                learned=example.sample.loss_mask,
            )
            for example in plan.examples
        ),
    )


def _rate(plan: Plan) -> Rate | None:
    try:
        return measure_rate(plan)
    except ResourceError:  # the line of the memory says it
        return None


def plan_text(plan: Plan, described: PlanDescription) -> str:
    """Return the plan as text; learned parts of the samples stand between ⟦ and ⟧."""
    d, memory = described, described.memory_bytes
    spread = f", the base spread over {d.n_ranks} processes" if d.n_ranks > 1 else ""
    lines = [
        f"samples    {d.n_train} to train on, {d.n_validation} held out, {d.format}",
        f"steps      {d.total_steps} ({d.steps_per_epoch} an epoch, {d.warmup_steps} of warm-up)",
        f"tokens     {d.tokens_per_epoch:,} an epoch, {d.labels_per_epoch:,} learned; "
        f"longest sample {d.longest_sample_tokens:,}, longest pass {d.longest_pass_tokens:,}",
        f"adapter    rank {plan.spec.rank}, scaling {d.scaling:.3f}, "
        f"on {','.join(plan.spec.targets)}",
        f"compute    {d.dtype} on {d.device}" + spread,
        f"memory     {size_text(memory.total)} estimated: "
        f"weights {size_text(memory.weights)}, adapter {size_text(memory.adapter)}, "
        f"activations {size_text(memory.activations)}, "
        f"logits or gradients {size_text(memory.workspace)}; "
        f"{size_text(d.free_memory_bytes)} free",
        f"time       {_time_text(d)}",
    ]
    if d.placebo:
        lines.append(f"placebo    {PLACEBO_TEXT}")
    if d.too_long_ids:
        lines.append(f"too long   {plan.config.too_long}: {', '.join(d.too_long_ids)}")
    lines += [f"note       {text}" for text in plan.notes]
    for example in plan.examples[:MOST_SHOWN]:
        lines += ["", _title(plan, example), marked_text(plan, example.sample)]
    if more := plan.examples[MOST_SHOWN:]:
        named = ", ".join(f"`{example.sample.id}`" for example in more[:MOST_SHOWN])
        lines += ["", f"{counted(len(more), 'other kind')} of samples, the first of them: {named}"]
    return "\n".join(lines)


def _time_text(described: PlanDescription) -> str:
    rate = described.rate
    if described.n_ranks > 1:
        return "not measured: a step would be of all processes"
    if rate is None:
        return "not measured: memory does not hold a step"
    held_out = f", the held-out samples {rate.eval_s:.2f} s" if rate.eval_s is not None else ""
    return (
        f"{duration(rate.total_s)}, loading left out: here a step of {rate.step_tokens:,} tokens "
        f"took {rate.step_s:.2f} s ({rate.step_tokens / rate.step_s:,.0f} tokens/s){held_out}"
    )


def _title(plan: Plan, example: Example) -> str:
    """Say of what kind a sample is, and how many are."""
    n = len(plan.train) + len(plan.validation)
    of_all = f"{example.n} of {n} samples" if n > 1 else "the only sample"
    return f"`{example.sample.id}`, {example.format} of {', '.join(example.turns)} ({of_all}):"


def marked_text(plan: Plan, sample: EncodedSample) -> str:
    """Return a sample's text with its learned runs between ⟦ and ⟧."""
    pieces: list[str] = []
    run: list[int] = []
    flags = [*sample.loss_mask, not sample.loss_mask[-1]]
    ids = [*sample.ids, 0]
    previous = flags[0]
    for token, flag in zip(ids, flags, strict=True):
        if flag != previous:
            decode = plan.tokenizer.decode_following if pieces else plan.tokenizer.decode
            text = decode(run)
            pieces.append(f"⟦{text}⟧" if previous else text)
            run, previous = [], flag
        run.append(token)
    return "".join(pieces)
