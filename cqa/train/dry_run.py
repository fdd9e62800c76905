"""What `train --dry-run` shows: the plan, the first sample with its labels, the memory."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from cqa.data.samples import EncodedSample
from cqa.model.load import dtype_name, pick_device, pick_dtype
from cqa.model.memory import free_bytes, size_text
from cqa.schema.record import Record
from cqa.train.memory import estimate_plan, largest_pass
from cqa.train.passes import n_labels, n_tokens
from cqa.train.placebo import PLACEBO_TEXT
from cqa.train.plan import Plan
from cqa.train.schedule import warmup_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBytes(Record):
    """Parts of the peak that the largest pass is estimated to need."""

    weights: int
    adapter: int
    activations: int
    workspace: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstSample(Record):
    """A sample as token ids, and which of them are learned."""

    id: str
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
    memory_bytes: MemoryBytes
    free_memory_bytes: int
    first_sample: FirstSample


def describe_plan(plan: Plan) -> PlanDescription:
    """Describe a plan, with the memory that it needs where it would run."""
    config = plan.config
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    largest = largest_pass(plan)
    memory = estimate_plan(plan, largest, device, dtype)
    first = plan.train[0]
    return PlanDescription(
        format=plan.format,
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
        memory_bytes=MemoryBytes(
            weights=memory.weights_bytes,
            adapter=memory.adapter_bytes,
            activations=memory.activations_bytes,
            workspace=memory.workspace_bytes,
            total=memory.total_bytes,
        ),
        free_memory_bytes=free_bytes(device),
        first_sample=FirstSample(id=first.id, ids=first.ids, learned=first.loss_mask),
    )


def plan_text(plan: Plan, described: PlanDescription) -> str:
    """Return the plan as text; learned parts of the first sample stand between ⟦ and ⟧."""
    d, memory = described, described.memory_bytes
    lines = [
        f"samples    {d.n_train} to train on, {d.n_validation} held out, {d.format}",
        f"steps      {d.total_steps} ({d.steps_per_epoch} an epoch, {d.warmup_steps} of warm-up)",
        f"tokens     {d.tokens_per_epoch:,} an epoch, {d.labels_per_epoch:,} learned; "
        f"longest sample {d.longest_sample_tokens:,}, longest pass {d.longest_pass_tokens:,}",
        f"adapter    rank {plan.spec.rank}, scaling {d.scaling:.3f}, "
        f"on {','.join(plan.spec.targets)}",
        f"compute    {d.dtype} on {d.device}",
        f"memory     {size_text(memory.total)} estimated: "
        f"weights {size_text(memory.weights)}, adapter {size_text(memory.adapter)}, "
        f"activations {size_text(memory.activations)}, "
        f"logits or gradients {size_text(memory.workspace)}; "
        f"{size_text(d.free_memory_bytes)} free",
    ]
    if d.placebo:
        lines.append(f"placebo    {PLACEBO_TEXT}")
    if d.too_long_ids:
        lines.append(f"too long   {plan.config.too_long}: {', '.join(d.too_long_ids)}")
    lines += [f"note       {text}" for text in plan.notes]
    first, most = plan.train[0], max(plan.train, key=_n_answers)
    lines += ["", f"first sample, `{first.id}`:", marked_text(plan, first)]
    if _n_answers(most) > _n_answers(first):
        lines += ["", f"most learned parts, `{most.id}`:", marked_text(plan, most)]
    return "\n".join(lines)


def _n_answers(sample: EncodedSample) -> int:
    """Count the runs of learned tokens."""
    mask = (False, *sample.loss_mask)
    return sum(after and not before for before, after in pairwise(mask))


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
