"""The training loop, top to bottom."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Protocol

from cqa.config import input_paths
from cqa.errors import ConfigError, NumericsError
from cqa.files import check_room
from cqa.interrupt import Interrupt, continued_by
from cqa.model.decoder import Decoder
from cqa.model.load import BaseModel, dtype_name, open_model, pick_device, pick_dtype
from cqa.model.lora import TrainableLora
from cqa.model.memory import reported as memory_reported
from cqa.model.spread import HINT as SPREAD_HINT
from cqa.output_folder import check_output, filled
from cqa.ranks import ALONE, Ranks, require_several
from cqa.run_folder import INIT, epoch_name, missing_epochs
from cqa.schema.events import (
    Dev,
    Eval,
    Finished,
    LogLine,
    Memory,
    Note,
    Step,
    TrainEvent,
    TrainStart,
)
from cqa.schema.record import Record
from cqa.train.background import Checkpoints
from cqa.train.checkpoint import (
    Log,
    check_same_model,
    load_state,
    note_resume,
    open_run,
    room_for,
    write_run,
)
from cqa.train.config import TrainConfig
from cqa.train.eval_loss import evaluate
from cqa.train.graphs import Graphs
from cqa.train.memory import check_memory
from cqa.train.passes import (
    HINT,
    PassLimit,
    StepConfig,
)
from cqa.train.placebo import PLACEBO_TEXT
from cqa.train.plan import Plan, make_plan
from cqa.train.same_run import resume_command
from cqa.train.start import Start, check_start, load_start, start_text
from cqa.train.step import take_step


class Callback(Protocol):
    """What looks at the model during training; what it returns is logged and selects nothing."""

    def begin(self, decoder: Decoder) -> None:
        """Take the model before the first step: its adapter is zero, so it is the base."""

    def after_epoch(self, decoder: Decoder, epoch: int) -> Iterable[Dev]:
        """Return the events to log after an epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult(Record):
    """A finished run, as `--json` prints it."""

    run: str  # its folder
    total_steps: int
    epochs: tuple[str, ...]  # the adapter folders in order


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    base: BaseModel | None = None,
    only_epoch: int | None = None,
    callback: Callback | None = None,
    ranks: Ranks = ALONE,
    shard_base: bool = False,
    on_event: Callable[[TrainEvent], None] = lambda _: None,
) -> TrainResult:
    """Train a LoRA; keep every epoch's adapter, and log loss and eval_loss.

    Args:
        config: The settings.
        resume: Continue the run in `config.out` from its last complete state.
        base: `config.model` if it is loaded already, with room for the adapter; its device and
            dtype then count.
        only_epoch: Stop after this epoch of the schedule, and keep its adapter alone.
        callback: Looks at the model after each epoch, on rank 0; where the base is spread, on all.
        ranks: The processes that share the run, of which rank 0 writes.
        shard_base: Whether the base's weights are spread over them.
        on_event: Called with what the run says, every logged event included.

    Raises:
        CqaError: Anything that the user can mend; see cqa.errors.
    """
    _check_ranks(config, ranks, shard_base)
    if ranks.leads:
        check_output(config.out, "run", input_paths(config))
    plan = make_plan(config)
    epochs = (
        range(1, config.epochs + 1) if only_epoch is None else range(only_epoch, only_epoch + 1)
    )
    with (
        continued_by(resume_command(config.out)),
        Interrupt() as interrupt,
        filled(config.out, "run") if ranks.leads else nullcontext(),
        memory_reported("training", SPREAD_HINT if shard_base else HINT),
    ):
        last_step = ranks.from_first(open_run(plan, resume=resume) if ranks.leads else 0)
        ranks.require_same("data", plan.data_digest)
        from_folder = check_start(plan) if ranks.leads and not last_step else None
        _tell_plan(plan, epochs, last_step, on_event)
        if last_step == epochs[-1] * plan.steps_per_epoch:
            on_event(Finished(step=last_step))
            return _result(plan, epochs)
        base = _base_of(plan, base, ranks if shard_base else ALONE, on_event)
        ranks.require_same("base model", base.digest)
        lora = TrainableLora(base.decoder, plan.spec, config.seed)
        run = _Run(plan, lora, last_step, epochs, ranks, callback, interrupt)
        if ranks.leads:
            _lead(run, base, from_folder, on_event, keeps_init=only_epoch is None)
        else:
            _follow(run)
    return _result(plan, epochs)


def _check_ranks(config: TrainConfig, ranks: Ranks, shard_base: bool) -> None:
    """Refuse what several processes cannot do, or one alone."""
    if ranks.count > 1 and config.cuda_graphs:
        raise ConfigError(
            "expected one process with --cuda-graphs, which replay whole global batches, got "
            f"{ranks.count} ranks", hint="--no-cuda-graphs",
        )  # fmt: skip
    if shard_base:
        require_several(ranks.count)


def _tell_plan(
    plan: Plan, epochs: range, last_step: int, on_event: Callable[[TrainEvent], None]
) -> None:
    """Say what was left out of the data, and which adapters of earlier epochs are gone."""
    for text in plan.notes:
        on_event(Note(text=text))
    complete = [epoch for epoch in epochs if epoch * plan.steps_per_epoch <= last_step]
    for epoch in missing_epochs(plan.config.out, complete):
        on_event(Note(text=f"{epoch_name(epoch)} is not there any more"))


def _base_of(
    plan: Plan, base: BaseModel | None, held_by: Ranks, on_event: Callable[[TrainEvent], None]
) -> BaseModel:
    """Return the base, loaded here unless it is; refuse first what memory has no room for."""
    config = plan.config
    device = pick_device(config.device) if base is None else base.decoder.device
    dtype = pick_dtype(config.dtype, device) if base is None else base.decoder.dtype
    loaded = base is not None
    if warning := check_memory(plan, device, dtype, loaded=loaded, n_ranks=held_by.count):
        on_event(Note(text=warning))
    return base or open_model(
        plan.folder, config.device, config.dtype, rank_columns=plan.spec.rank_columns(),
        ranks=held_by,
    )  # fmt: skip


def _follow(run: _Run) -> None:
    """Take part in the steps of a run that rank 0 writes and tells."""
    if run.callback is not None:
        run.callback.begin(run.lora.decoder)
    for _ in _steps(run, None):
        pass


def _lead(
    run: _Run,
    base: BaseModel,
    from_folder: Path | None,
    on_event: Callable[[TrainEvent], None],
    *,
    keeps_init: bool,
) -> None:
    """Open the run's folder, anew or where it stopped; take the steps, write and tell them."""
    plan, lora, last_step = run.plan, run.lora, run.last_step
    check_room(plan.config.out, room_for(plan, lora, last_step, run.kept))
    if last_step:
        check_same_model(plan, base.digest, base.decoder.dtype)
    if run.callback is not None:
        run.callback.begin(base.decoder)
    start = None
    if last_step:
        load_state(plan, lora)
    else:
        start = None if from_folder is None else load_start(plan, base, from_folder, lora)
        write_run(plan, model_digest=base.digest, lora=lora, start=start, n_ranks=run.ranks.count)
    with (
        Checkpoints(plan, lora) as keep,
        closing(Log(plan.config.out, last_step, plan.steps_per_epoch)) as log,
    ):
        if not last_step and keeps_init:
            keep.take()
            keep.adapter(INIT)
        if last_step:
            _tell_changes(note_resume(plan, lora, last_step, run.ranks.count), on_event)
        on_event(_start_event(plan, lora, last_step))
        notes = () if last_step else _first_notes(plan, start)
        for event in chain(notes, _steps(run, keep)):
            log.write(event)
            on_event(event)


def _first_notes(plan: Plan, start: Start | None) -> Iterator[Note]:
    """Yield what the log says before anything else."""
    if plan.config.placebo:
        yield Note(step=0, text=f"placebo: {PLACEBO_TEXT}")
    if start is not None:
        yield Note(step=0, text=start_text(start))


def _tell_changes(changed: list[str], on_event: Callable[[TrainEvent], None]) -> None:
    if changed:
        text = f"resumed with other {', '.join(changed)}; the last digits may differ (see run.json)"
        on_event(Note(text=text))


@dataclass(frozen=True, slots=True)
class _Run:
    """What the steps of a run share."""

    plan: Plan
    lora: TrainableLora
    last_step: int  # before the first that is taken now
    kept: range  # epochs whose adapters are kept
    ranks: Ranks
    callback: Callback | None
    interrupt: Interrupt


def _steps(run: _Run, keep: Checkpoints | None) -> Iterator[LogLine]:
    """Run the remaining steps, yielding their events; state is saved after each epoch.

    Where it was stopped, or after the last step, all is on disk.
    """
    plan, lora, ranks = run.plan, run.lora, run.ranks
    config = plan.config
    limit = PassLimit(config.pass_tokens, may_split=lora.decoder.spread is None)
    graphs = Graphs.of(lora, StepConfig.of(config)) if config.cuda_graphs else None
    told = limit.tokens
    _begin_alike(lora, ranks)
    if not run.last_step and plan.validation:
        yield evaluate(plan, lora.decoder, 0, limit, ranks)
    end = run.kept[-1] * plan.steps_per_epoch
    for step in range(run.last_step + 1, end + 1):
        yield _step(run, step, limit, graphs)
        eval_loss = None
        if plan.ends_epoch(step) and plan.validation:
            yield (eval_loss := evaluate(plan, lora.decoder, step, limit, ranks))
        if graphs is not None and graphs.ran_out:
            graphs = None
            text = "memory ran out while a CUDA graph was recorded; going on without --cuda-graphs"
            yield Note(step=step, text=text)
        if limit.tokens < told:
            told = limit.tokens
            yield Memory(step=step, pass_tokens=told)
        if plan.ends_epoch(step):
            yield from _end_epoch(run, step, eval_loss, keep)
        if keep is not None and step == end:
            keep.wait()
        run.interrupt.requested = ranks.largest(run.interrupt.requested or 0) or None
        if run.interrupt.requested:
            _stop(run, step, keep)


def _end_epoch(
    run: _Run, step: int, eval_loss: Eval | None, keep: Checkpoints | None
) -> Iterator[LogLine]:
    """Keep an epoch's adapter and state, and let the callback look at the model."""
    _require_alike(run.lora, run.ranks, step)
    epoch = run.plan.epoch_of(step)
    if keep is not None:
        keep.take()
        if epoch in run.kept:
            keep.adapter(epoch_name(epoch), eval_loss)
    if run.callback is not None:
        for event in run.callback.after_epoch(run.lora.decoder, epoch):
            yield replace(event, step=step)
    if keep is not None:
        keep.state(step)


def _stop(run: _Run, step: int, keep: Checkpoints | None) -> None:
    """End the run after a step, for a signal, with its state on disk."""
    if keep is not None:
        if not run.plan.ends_epoch(step):
            keep.take()
            keep.state(step)
        keep.wait()
    run.interrupt.stop(f"stopped after step {step}")


def _begin_alike(lora: TrainableLora, ranks: Ranks) -> None:
    """Give all ranks what rank 0 begins with."""
    if ranks.count > 1:
        for values in (lora.state.param, lora.state.exp_avg, lora.state.exp_avg_sq):
            ranks.take_over(values)
        lora.after_step()


def _require_alike(lora: TrainableLora, ranks: Ranks, step: int) -> None:
    """Check that all ranks have the same bits after the same steps.

    Raises:
        NumericsError: They have not.
    """
    if ranks.count == 1:
        return
    held = hashlib.sha256(lora.state.param.detach().cpu().numpy().tobytes()).hexdigest()
    if ranks.from_first(held) != held:
        raise NumericsError(
            f"expected the same adapter on every rank after step {step}, got another on rank "
            f"{ranks.rank}",
            hint="ranks have to be of one kind of machine; the epochs before are intact",
        )


def _step(run: _Run, step: int, limit: PassLimit, graphs: Graphs | None) -> Step:
    """Take one step of the plan; return its event."""
    plan = run.plan
    samples, lr = plan.global_batch(step), plan.learning_rate(step)
    took = take_step(
        run.lora, samples, StepConfig.of(plan.config), step=step, lr=lr, limit=limit, graphs=graphs,
        ranks=run.ranks,
    )  # fmt: skip
    return Step(
        step=step,
        epoch=plan.epoch_of(step),
        loss_nats=took.loss_nats,
        lr=lr,
        grad_norm=took.grad_norm,
        sample_ids=tuple(sample.id for sample in samples),
        n_tokens=took.n_tokens,
        n_labels=took.n_labels,
        step_s=round(took.seconds, 6),
        tokens_per_s=round(took.n_tokens / took.seconds, 1),
    )


def _result(plan: Plan, epochs: range) -> TrainResult:
    gone = missing_epochs(plan.config.out, epochs)
    return TrainResult(
        run=str(plan.config.out),
        total_steps=plan.total_steps,
        epochs=tuple(epoch_name(epoch) for epoch in epochs if epoch not in gone),
    )


def _start_event(plan: Plan, lora: TrainableLora, last_step: int) -> TrainStart:
    return TrainStart(
        step=last_step,
        total_steps=plan.total_steps,
        steps_per_epoch=plan.steps_per_epoch,
        n_train=len(plan.train),
        n_validation=len(plan.validation),
        n_parameters=lora.n_params,
        device=str(lora.decoder.device),
        dtype=dtype_name(lora.decoder.dtype),
    )
