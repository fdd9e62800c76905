"""The run folder: every epoch's adapter, the state to resume from, and the log.

Everything random follows from seed and step (kernels/philox.py), so the state is the optimizer's
buffers and a step number. Folders and files appear complete or not at all, in this order: log,
adapter, state; so a state never says more than what is there. A thread writes the last two, from a
copy (background.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from cqa.config import describe
from cqa.errors import ConfigError, DataError, ModelError, NumericsError
from cqa.files import (
    AppendedFile,
    flush,
    inside,
    new_file,
    new_folder,
    write_json,
)
from cqa.identity import code_digest, versions
from cqa.kernels.adamw import AdamState
from cqa.model.adapter import write_adapter
from cqa.model.checkpoint import opened
from cqa.model.conversion import read_conversion
from cqa.model.load import dtype_name
from cqa.model.lora import TrainableLora
from cqa.model.origin import Origin, write_origin
from cqa.run_folder import INIT, LOG, RUN, STATE, epoch_of, read_run
from cqa.schema.events import Eval, LogLine
from cqa.schema.provenance import FROM, PLACEBO
from cqa.schema.record import Record
from cqa.schema.run import RunRecord
from cqa.train.card import tokenizer_files, write_beside
from cqa.train.plan import Plan
from cqa.train.same_run import FREE, OTHER_RUN, check_same_run, resume_command
from cqa.train.snapshot import BUFFERS, Snapshot
from cqa.train.start import Start

NO_RECIPE = FREE | {"seed", "dev", "model", "data", "columns", "template", "from"}  # digests tell
CODE = (  # what decides an adapter
    "train", "ranks.py", "data/samples.py", "data/lengths.py", "data/turns.py",
)  # fmt: skip
CHECK = "check"  # in the metadata of a state: a digest of the rest of it
DIGESTS = ("model_digest", "tokenizer_digest", "data_digest")


def open_run(plan: Plan, *, resume: bool) -> int:
    """Prepare the run folder; return the last complete step (0 when the run starts anew).

    Raises:
        ConfigError: The folder already holds a run and `resume` was not asked for, or holds one
            with other settings, or files that a new run would replace.
        DataError: The run was made of other data, or its state is not its own.
    """
    out = plan.config.out
    if not inside(out, RUN).exists():
        _refuse_without_run(out)
        return 0
    if not resume:
        raise ConfigError(
            "expected a new folder, got one that already holds a run", where=str(out),
            hint="name another --out, or continue it with", command=resume_command(out),
        )  # fmt: skip
    held = read_run(out)
    check_same_run(held, plan)
    return saved_step(out, held, plan.total_steps)


def _refuse_without_run(out: Path) -> None:
    """Refuse a folder of adapters whose run.json is gone: nothing says what they are of."""
    held = [out / INIT, out / LOG, out / STATE, *sorted(out.glob("epoch-*"))]
    for path in held:
        if os.path.lexists(path):
            raise ConfigError(
                f"expected a new folder or a run, got one with `{path.name}` and no {RUN}",
                where=str(out),
                hint="nothing is replaced that this run did not make; name another --out",
            )


def check_same_model(plan: Plan, model_digest: str, dtype: torch.dtype) -> None:
    """Refuse to resume on a base model, tokenizer, template or dtype that has changed.

    Raises:
        ModelError: A digest is not the one that the run began with.
        ConfigError: `--dtype auto` now means another dtype.
    """
    held = read_run(plan.config.out)
    for key, digest in _identity(plan, model_digest).items():
        if getattr(held, key) != digest:
            what = key.removesuffix("_digest")
            raise ModelError(
                f"expected the {what} of the run to resume, got other bytes",
                where=str(plan.folder),
                hint=OTHER_RUN,
            )
    if held.dtype != dtype_name(dtype):
        raise ConfigError(
            f"expected the dtype of the run to resume, got {dtype_name(dtype)} instead of "
            f"{held.dtype}",
            where=str(plan.config.out),
            hint=OTHER_RUN,
        )


def _identity(plan: Plan, model_digest: str) -> dict[str, Any]:
    """What a run is made of."""
    template = plan.tokenizer.chat_template
    return {
        "model_digest": model_digest,
        "tokenizer_digest": plan.tokenizer.digest,
        "template_digest": None if template is None else _sha256(template),
        "data_digest": plan.data_digest,
    }


def _environment(lora: TrainableLora, n_ranks: int) -> dict[str, Any]:
    """What a run is made with: it may change on resume, and the last digits with it."""
    on_cuda = lora.decoder.device.type == "cuda"
    return {
        "backend": lora.decoder.backend,
        "device": torch.cuda.get_device_name() if on_cuda else platform.machine(),
        "n_threads": torch.get_num_threads(),
        "n_ranks": n_ranks,
        "versions": versions(),
        "code_digest": code_digest(*CODE),
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_run(
    plan: Plan,
    *,
    model_digest: str,
    lora: TrainableLora,
    start: Start | None = None,
    n_ranks: int = 1,
) -> None:
    """Write run.json: what was asked, what was resolved, and what identifies the inputs."""
    run = RunRecord(
        settings=describe(plan.config),
        format=", ".join(plan.formats),
        n_train=len(plan.train),
        n_validation=len(plan.validation),
        validation_ids=tuple(sample.id for sample in plan.validation),
        too_long_ids=tuple(plan.affected_ids),
        steps_per_epoch=plan.steps_per_epoch,
        total_steps=plan.total_steps,
        n_parameters=lora.n_params,
        scaling=plan.spec.scaling,
        dtype=dtype_name(lora.decoder.dtype),
        **_identity(plan, model_digest),
        **_environment(lora, n_ranks),
        conversion=read_conversion(plan.folder),
        from_=start.record if start else None,
    )
    write_json(plan.config.out / RUN, run.to_json())


def note_resume(plan: Plan, lora: TrainableLora, step: int, n_ranks: int = 1) -> list[str]:
    """Add to run.json what a run is resumed with; return what of it differs from the start."""
    held = read_run(plan.config.out)
    now = _environment(lora, n_ranks)
    changed = [key for key in now if now[key] != getattr(held, key)]
    if changed:
        resumed = (*held.resumed, {"after_step": step, **now})
        write_json(plan.config.out / RUN, replace(held, resumed=resumed).to_json())
    return changed


def save_epoch(plan: Plan, held: Snapshot, name: str, eval_loss: Eval | None = None) -> None:
    """Write an adapter folder (`init`, `epoch-01` …) in PEFT's format, with tokenizer and card.

    Args:
        plan: The run.
        held: The adapter as it is to be written.
        name: The folder's name.
        eval_loss: The held-out loss after that epoch, for the card.
    """
    with new_folder(inside(plan.config.out, name)) as folder:
        write_adapter(folder, held.spec, held.weights, plan.config.model, plan.config.dropout)
        run = read_run(plan.config.out)
        write_origin(folder, _origin(plan, name, run))
        write_beside(folder, plan, run, epoch_of(name) or 0, eval_loss)


def _origin(plan: Plan, name: str, held: RunRecord) -> Origin:
    """Return what one adapter of the run was made of; of placebos, that they are."""
    made_of: Origin = {key: getattr(held, key) for key in (*DIGESTS, "template_digest")}
    if held.from_ is not None:
        made_of[FROM] = held.from_.adapter_digest
    recipe = {key: v for key, v in held.settings.items() if key not in NO_RECIPE}
    made_of |= {
        "recipe_digest": _sha256(json.dumps([recipe, made_of, held.dtype], sort_keys=True)),
        "seed": str(plan.config.seed),
        "epoch": str(epoch_of(name) or 0),
        "code_digest": code_digest(*CODE),
    }
    if plan.config.placebo:
        made_of[PLACEBO] = f"responses dealt by seed {plan.config.seed}"
    return made_of


def saved_step(out: Path, held: RunRecord, total_steps: int) -> int:
    """Return the step of the last complete state, 0 where there is none.

    Raises:
        DataError: The state is damaged, or that of another run.
    """
    path = inside(out, STATE)
    if not path.exists():
        return 0
    try:
        with opened(path) as file:
            said = file.metadata() or {}
    except ModelError as error:
        raise DataError(
            error.message, where=error.where, hint="without this file --resume starts from step 1"
        ) from error
    step = said.get("step", "")
    if said.get(CHECK) != _check_of(said):
        raise DataError(
            "expected the state as it was written, got another step or other digests in it",
            where=str(path),
            hint="without this file --resume starts from step 1",
        )
    own = all(said.get(key) == getattr(held, key) for key in DIGESTS)
    if not own or not (step.isdecimal() and 1 <= int(step) <= total_steps):
        raise DataError("expected the state of this run, got that of another", where=str(path))
    return int(step)


def _check_of(metadata: dict[str, str]) -> str:
    """Return a digest of what a state says of itself: no other step is taken for its own."""
    said = {key: value for key, value in metadata.items() if key != CHECK}
    return _sha256(json.dumps(said, sort_keys=True))


def save_state(plan: Plan, held: Snapshot, step: int) -> None:
    """Write what a resumed run needs: one file, replaced in one step, after the log's lines."""
    out = plan.config.out
    run = read_run(out)
    metadata = {"step": str(step), **{key: getattr(run, key) for key in DIGESTS}}
    metadata[CHECK] = _check_of(metadata)
    flush(out / LOG)
    with new_file(inside(out, STATE)) as path:
        save_file(held.tensors, path, metadata=metadata)


def load_state(plan: Plan, lora: TrainableLora) -> None:
    """Restore the optimizer's buffers, and with them the adapter.

    Raises:
        DataError: The state does not fit this run.
    """
    path = plan.config.out / STATE
    state: AdamState = lora.state
    with opened(path) as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name in BUFFERS:
        target, tensor = getattr(state, name), held.get(name)
        if tensor is None or tensor.shape != target.shape or tensor.dtype != target.dtype:
            raise DataError(f"expected {target.numel()} numbers in {name}", where=str(path))
        if not bool(tensor.isfinite().all()):
            raise NumericsError(
                f"expected finite numbers in the adapter's {name}, got others; the state is "
                "damaged",
                hint="a lower --lr, or a --max-grad-norm",
            )
        target.copy_(tensor)
    lora.after_step()


def room_for(plan: Plan, lora: TrainableLora, step: int, kept: range) -> int:
    """Return the bytes that the rest of a run will write: adapters, and a state beside the old."""
    adapter_bytes = 4 * lora.n_params  # fp32
    beside_bytes = sum(path.stat().st_size for path in tokenizer_files(plan.folder))
    state_bytes = 3 * adapter_bytes  # parameters and two moments
    n_adapters = sum(epoch * plan.steps_per_epoch > step for epoch in kept)
    n_states = 1  # a state is complete before the one it replaces goes
    if step == 0:
        n_adapters, n_states = n_adapters + 1, 2  # `init`, and the first state
    return n_adapters * (adapter_bytes + beside_bytes) + n_states * state_bytes


class Log:
    """log.jsonl, written a line at a time; a resumed run cuts what came after its state."""

    def __init__(self, folder: Path, last_step: int, steps_per_epoch: int) -> None:
        """Open the log for appending after `last_step`.

        Raises:
            DataError: A step up to there is missing.
        """
        self._file = AppendedFile(inside(folder, LOG))
        n_bytes, n_lines, n_steps = 0, 0, 0
        for line in self._file.path.read_bytes().splitlines(keepends=True):
            held = _held(line)
            if not last_step or held is None or held.reach(steps_per_epoch) > last_step:
                break
            n_bytes, n_lines = n_bytes + len(line), n_lines + 1
            n_steps += held.event == "step"
        if n_steps != last_step:
            self._file.close()
            raise DataError(
                f"expected the log of steps 1 to {last_step}, got {n_steps} of them",
                where=f"{self._file.path}:{n_lines + 1}",
                hint="a run is not continued without its log; train anew into another --out",
            )
        self._file.cut(n_bytes)

    def write(self, event: LogLine) -> None:
        """Append one event."""
        line = json.dumps(event.to_json(), ensure_ascii=False, allow_nan=False)
        self._file.append(line.encode() + b"\n")

    def close(self) -> None:
        """Flush to disk and close."""
        self._file.sync()
        self._file.close()


@dataclass(frozen=True, slots=True)
class _HeldLine(Record):
    """What of a line says when it was written."""

    event: str
    step: int | None
    epoch: int | None

    def reach(self, steps_per_epoch: int) -> float:
        """The step after which it was written; infinite where it does not say."""
        if self.step is not None:
            return self.step
        return math.inf if self.epoch is None else self.epoch * steps_per_epoch


def _held(line: bytes) -> _HeldLine | None:
    """Read a line; return None where it is torn or damaged."""
    try:
        return _HeldLine.from_json(json.loads(line), "") if line.endswith(b"\n") else None
    except (ValueError, RecursionError, DataError):
        return None
