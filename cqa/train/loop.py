"""The training loop, top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from cqa.data.samples import EncodedSample
from cqa.errors import NumericsError
from cqa.files import check_room, locked, refuse_held
from cqa.interrupt import Interrupt
from cqa.kernels.adamw import adam_rates, adamw_step, gradient_norm
from cqa.kernels.embed import Noise
from cqa.kernels.philox import Dropout
from cqa.kernels.token_logprobs import token_logprobs
from cqa.layout import PackedBatch, pack_documents
from cqa.model.decoder import Decoder
from cqa.model.load import BaseModel, dtype_name, open_model, pick_device, pick_dtype
from cqa.model.lora import TrainableLora
from cqa.model.memory import reported as memory_reported
from cqa.train.checkpoint import (
    Log,
    check_same_model,
    epoch_name,
    load_state,
    missing_epochs,
    note_resume,
    open_run,
    room_for,
    save_epoch,
    save_state,
    write_run,
)
from cqa.train.config import TrainConfig
from cqa.train.graphs import Graphs
from cqa.train.memory import check_memory
from cqa.train.passes import HINT, PassLimit
from cqa.train.plan import Plan, make_plan, split_passes

Event = dict[str, Any]


class Monitor(Protocol):
    """What looks at the model during training; what it returns is logged and selects nothing."""

    def begin(self, decoder: Decoder) -> None:
        """Take the model before the first step: its adapter is zero, so it is the base."""

    def after_epoch(self, decoder: Decoder, epoch: int) -> Iterable[Event]:
        """Return the events to log after an epoch, each with "event" and "epoch"."""


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    base: BaseModel | None = None,
    only_epoch: int | None = None,
    monitor: Monitor | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> Event:
    """Train a LoRA; keep every epoch's adapter, and log loss and eval_loss.

    Args:
        config: The settings.
        resume: Continue the run in `config.out` from its last complete state.
        base: `config.model` if it is loaded already, with room for the adapter; its device and
            dtype then count.
        only_epoch: Stop after this epoch of the schedule, and keep its adapter alone.
        monitor: Looks at the model after each epoch.
        on_event: Called with every logged event, and first with {"event": "start", …}.

    Returns:
        {"run", "total_steps", "epochs": the adapter folders in order}.

    Raises:
        CqaError: Anything that the user can mend; see cqa.errors.
    """
    refuse_held(config.out)
    plan = make_plan(config)
    epochs = (
        range(1, config.epochs + 1) if only_epoch is None else range(only_epoch, only_epoch + 1)
    )
    with locked(config.out), Interrupt() as interrupt, memory_reported("training", HINT):
        last_step = open_run(plan, resume=resume)
        for name in missing_epochs(plan, last_step, epochs):
            on_event({"event": "note", "text": f"{name} is not there any more"})
        if last_step == epochs[-1] * plan.steps_per_epoch:
            on_event({"event": "finished", "step": last_step})
            return _result(plan, epochs)
        device = pick_device(config.device) if base is None else base.decoder.device
        dtype = pick_dtype(config.dtype, device) if base is None else base.decoder.dtype
        if warning := check_memory(plan, device, dtype, loaded=base is not None):
            on_event({"event": "note", "text": warning})
        if base is None:
            columns = plan.spec.rank_columns()
            base = open_model(plan.folder, config.device, config.dtype, rank_columns=columns)
        lora = TrainableLora(base.decoder, plan.spec, config.seed)
        check_room(config.out, room_for(plan, lora, last_step, epochs))
        if last_step:
            check_same_model(plan, base.digest, base.decoder.dtype)
        if monitor is not None:
            monitor.begin(base.decoder)
        if last_step:
            load_state(plan, lora)
        else:
            write_run(plan, model_digest=base.digest, lora=lora)
            if only_epoch is None:
                save_epoch(plan, lora, "init")
        log = Log(config.out, last_step, plan.steps_per_epoch)
        try:
            if last_step:
                _tell_changes(note_resume(plan, lora, last_step), on_event)
            on_event(_start_event(plan, lora, last_step))
            for event in _steps(plan, lora, last_step, epochs, monitor, interrupt):
                log.write(event)
                on_event(event)
        finally:
            log.close()
    return _result(plan, epochs)


def _tell_changes(changed: list[str], on_event: Callable[[Event], None]) -> None:
    if changed:
        text = f"resumed with other {', '.join(changed)}; the last digits may differ (see run.json)"
        on_event({"event": "note", "text": text})


def _steps(
    plan: Plan,
    lora: TrainableLora,
    last_step: int,
    kept: range,
    monitor: Monitor | None,
    interrupt: Interrupt,
) -> Iterator[Event]:
    """Run the remaining steps, yielding their events; state is saved after each epoch."""
    config = plan.config
    limit = PassLimit(config.pass_tokens)
    graphs = Graphs.of(lora, config) if config.cuda_graphs else None
    told = limit.tokens
    for step in range(last_step + 1, kept[-1] * plan.steps_per_epoch + 1):
        epoch = plan.epoch_of(step)
        yield take_step(plan, lora, step, limit, graphs)
        if plan.ends_epoch(step) and plan.validation:
            yield evaluate(plan, lora.decoder, epoch, limit)
        if limit.tokens < told:
            told = limit.tokens
            yield {"event": "memory", "step": step, "pass_tokens": told}
        if plan.ends_epoch(step):
            if epoch in kept:
                save_epoch(plan, lora, epoch_name(epoch))
            if monitor is not None:
                yield from monitor.after_epoch(lora.decoder, epoch)
            save_state(plan, lora, step)
        if interrupt.requested:
            if not plan.ends_epoch(step):
                save_state(plan, lora, step)
            interrupt.stop(f"stopped after step {step}; continue with --resume --out {config.out}")


def take_step(
    plan: Plan,
    lora: TrainableLora,
    step: int,
    limit: PassLimit | None = None,
    graphs: Graphs | None = None,
) -> Event:
    """Take one optimizer step over one accumulation window; return its log event."""
    config, backend = plan.config, lora.decoder.backend
    limit = limit or PassLimit(config.pass_tokens)
    started = time.perf_counter()
    window = plan.window(step)
    n_labels = sum(sample.n_labels for sample in window)
    loss = limit.run(
        window,
        lambda parts: backward_passes(plan, lora.decoder, parts, step, n_labels, graphs),
        undo=lora.state.grad.zero_,
    )
    lr, device = plan.learning_rate(step), lora.decoder.device
    rates = adam_rates(lr=lr, step=step, weight_decay=config.weight_decay, device=device)
    norm = gradient_norm(lora.state.grad, backend=backend)
    checked = norm.where(loss.isfinite(), torch.nan)  # no step is taken unless both are finite
    adamw_step(lora.state, rates, norm=checked, max_norm=config.max_grad_norm, backend=backend)
    lora.after_step()
    loss_nats, grad_norm = float(loss), float(norm)  # here the host waits for the device
    if not math.isfinite(loss_nats) or not math.isfinite(grad_norm):
        raise NumericsError(
            f"expected a finite loss and gradient at step {step}, got {loss_nats} and {grad_norm} "
            f"for samples {', '.join(sample.id for sample in window)}",
            hint="a lower --lr, or look at these samples; the last complete state is intact",
        )
    n_tokens = sum(len(sample.ids) for sample in window)
    seconds = time.perf_counter() - started
    return {
        "event": "step",
        "step": step,
        "epoch": plan.epoch_of(step),
        "loss_nats": loss_nats,
        "lr": lr,
        "grad_norm": grad_norm,
        "sample_ids": [sample.id for sample in window],
        "n_tokens": n_tokens,
        "n_labels": n_labels,
        "step_s": round(seconds, 6),
        "tokens_per_s": round(n_tokens / seconds, 1),
    }


def backward_window(
    plan: Plan, decoder: Decoder, window: Sequence[EncodedSample], step: int, n_labels: int
) -> float:
    """Add the window's gradient to the flat buffer; return the mean loss in nats per token."""
    parts = split_passes(list(window), plan.config.pass_tokens)
    return float(backward_passes(plan, decoder, parts, step, n_labels))


def backward_passes(
    plan: Plan,
    decoder: Decoder,
    parts: Sequence[Sequence[EncodedSample]],
    step: int,
    n_labels: int,
    graphs: Graphs | None = None,
) -> Tensor:
    """Add the gradient of a window's passes to the flat buffer; return the window's mean loss.

    The loss is summed over the whole window and divided once, so neither the split into
    micro-batches nor into passes changes it. It stays on the device, shape (), fp64.
    """
    if graphs is not None and len(parts) == 1:
        return graphs.run(parts[0], step, n_labels)
    config = plan.config
    loss = torch.zeros((), dtype=torch.float64, device=decoder.device)
    first_row = 0
    for part in parts:
        batch = _packed(part, decoder)
        rows = torch.arange(first_row, first_row + batch.n_rows, device=decoder.device)
        hidden = decoder.hidden(
            batch,
            dropout=Dropout(config.dropout, config.seed, step, rows) if config.dropout else None,
            noise=_noise(plan, batch, step, rows),
            recompute=config.recompute,
        )
        logp = token_logprobs(hidden, decoder.head, batch.target, backend=decoder.backend)
        part_loss = -logp.sum() / n_labels
        part_loss.backward()
        loss += part_loss.detach()
        first_row += batch.n_rows
    return loss


def _noise(plan: Plan, batch: PackedBatch, step: int, rows: Tensor) -> Noise | None:
    alpha = plan.config.neftune_alpha
    return Noise(alpha, plan.config.seed, step, rows, batch.lengths) if alpha else None


def _packed(samples: Sequence[EncodedSample], decoder: Decoder) -> PackedBatch:
    return pack_documents([(s.ids, s.learned) for s in samples]).to(decoder.device)


@torch.no_grad()
def evaluate(plan: Plan, decoder: Decoder, epoch: int, limit: PassLimit | None = None) -> Event:
    """Return the mean loss over the learned validation tokens: a diagnostic, selecting nothing."""
    limit = limit or PassLimit(plan.config.pass_tokens)
    started = time.perf_counter()
    n_labels = sum(sample.n_labels for sample in plan.validation)
    loss = limit.run(plan.validation, lambda parts: _loss_of(parts, decoder, epoch)) / n_labels
    return {
        "event": "eval",
        "epoch": epoch,
        "eval_loss_nats": loss,
        "n_labels": n_labels,
        "eval_s": round(time.perf_counter() - started, 6),
    }


def _loss_of(parts: Sequence[Sequence[EncodedSample]], decoder: Decoder, epoch: int) -> float:
    """Return the summed loss of some passes, nats."""
    total = 0.0
    for part in parts:
        batch = _packed(part, decoder)
        hidden = decoder.hidden(batch)
        logp = token_logprobs(hidden, decoder.head, batch.target, backend=decoder.backend)
        loss = -float(logp.double().sum())
        if not math.isfinite(loss):
            raise NumericsError(
                f"expected a finite eval_loss after epoch {epoch}, got {loss} for samples "
                f"{', '.join(sample.id for sample in part)}",
                hint="the epochs before it are intact",
            )
        total += loss
    return total


def _result(plan: Plan, epochs: range) -> Event:
    gone = missing_epochs(plan, plan.total_steps, epochs)
    folders = [epoch_name(epoch) for epoch in epochs]
    return {
        "run": str(plan.config.out),
        "total_steps": plan.total_steps,
        "epochs": [name for name in folders if name not in gone],
    }


def _start_event(plan: Plan, lora: TrainableLora, last_step: int) -> Event:
    return {
        "event": "start",
        "step": last_step,
        "total_steps": plan.total_steps,
        "steps_per_epoch": plan.steps_per_epoch,
        "n_train": len(plan.train),
        "n_validation": len(plan.validation),
        "n_parameters": lora.n_params,
        "device": str(lora.decoder.device),
        "dtype": dtype_name(lora.decoder.dtype),
    }
