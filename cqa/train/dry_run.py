"""What `train --dry-run` shows: the plan, the first sample with its labels, the memory."""

from __future__ import annotations

from typing import Any

from cqa.model.load import dtype_name, pick_device, pick_dtype
from cqa.train.memory import estimate_memory
from cqa.train.plan import Plan, split_passes
from cqa.train.schedule import warmup_steps


def describe_plan(plan: Plan) -> dict[str, Any]:
    """Return the plan as data; token counts are of all samples, once."""
    config = plan.config
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    lengths = [len(sample.ids) for sample in plan.train]
    longest = max(
        sum(len(sample.ids) for sample in part)
        for step in range(1, plan.total_steps + 1)
        for part in split_passes(plan.window(step), config.pass_tokens)
    )
    memory = estimate_memory(
        plan.shape,
        plan.spec,
        rows=longest,
        dtype=dtype,
        recompute=config.recompute,
        masks=config.dropout > 0,
    )
    first = plan.train[0]
    return {
        "format": plan.format,
        "n_train": len(plan.train),
        "n_validation": len(plan.validation),
        "too_long_ids": list(plan.touched),
        "steps_per_epoch": plan.steps_per_epoch,
        "total_steps": plan.total_steps,
        "warmup_steps": warmup_steps(plan.total_steps, config.warmup_ratio),
        "tokens_per_epoch": sum(lengths),
        "labels_per_epoch": sum(sample.n_labels for sample in plan.train),
        "longest_sample_tokens": max(lengths),
        "longest_pass_tokens": longest,
        "scaling": plan.spec.scaling,
        "device": device.type,
        "dtype": dtype_name(dtype),
        "memory_bytes": {
            "weights": memory.weights_bytes,
            "adapter": memory.adapter_bytes,
            "activations": memory.activations_bytes,
            "logits": memory.logits_bytes,
            "total": memory.total_bytes,
        },
        "first_sample": {
            "id": first.id,
            "ids": list(first.ids),
            "learned": list(first.learned),
        },
    }


def plan_text(plan: Plan, described: dict[str, Any]) -> str:
    """Return the plan as text; learned parts of the first sample stand between ⟦ and ⟧."""
    d, memory = described, described["memory_bytes"]
    touched = ", ".join(d["too_long_ids"])
    lines = [
        f"samples    {d['n_train']} to train on, {d['n_validation']} held out, {d['format']}",
        f"steps      {d['total_steps']} ({d['steps_per_epoch']} an epoch, "
        f"{d['warmup_steps']} of warm-up)",
        f"tokens     {d['tokens_per_epoch']:,} an epoch, {d['labels_per_epoch']:,} learned; "
        f"longest sample {d['longest_sample_tokens']:,}, longest pass {d['longest_pass_tokens']:,}",
        f"adapter    rank {plan.spec.rank}, scaling {d['scaling']:.3f}, "
        f"on {','.join(plan.spec.targets)}",
        f"compute    {d['dtype']} on {d['device']}",
        f"memory     {_size(memory['total'])} estimated: weights {_size(memory['weights'])}, "
        f"adapter {_size(memory['adapter'])}, activations {_size(memory['activations'])}, "
        f"logits {_size(memory['logits'])}",
    ]
    if touched:
        lines.append(f"too long   {plan.config.too_long}: {touched}")
    return "\n".join([*lines, "", f"first sample, `{d['first_sample']['id']}`:", marked_text(plan)])


def marked_text(plan: Plan) -> str:
    """Return the first sample's text with its learned runs between ⟦ and ⟧."""
    sample = plan.train[0]
    pieces: list[str] = []
    run: list[int] = []
    flags = [*sample.learned, not sample.learned[-1]]
    ids = [*sample.ids, 0]
    previous = flags[0]
    for token, flag in zip(ids, flags, strict=True):
        if flag != previous:
            text = plan.tokenizer.decode(run)
            pieces.append(f"⟦{text}⟧" if previous else text)
            run, previous = [], flag
        run.append(token)
    return "".join(pieces)


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"
