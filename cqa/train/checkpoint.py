"""The run folder: every epoch's adapter, the state to resume from, and the log.

Everything random follows from seed and step (kernels/philox.py), so the state is the optimizer's
buffers and a step number. Folders appear complete or not at all.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from cqa.config import describe
from cqa.errors import ConfigError, DataError, ModelError
from cqa.files import new_file, new_folder, read_json, reported, write_json
from cqa.identity import versions
from cqa.kernels.adamw import AdamState
from cqa.model.checkpoint import opened
from cqa.model.load import dtype_name
from cqa.model.lora import TrainableLora, write_adapter
from cqa.train.plan import Plan

RUN, LOG, STATE = "run.json", "log.jsonl", "state.safetensors"
_FREE = {"out", "device", "pass-tokens", "recompute"}  # may differ when a run is resumed


def open_run(plan: Plan, *, resume: bool) -> int:
    """Prepare the run folder; return the last complete step (0 when the run starts anew).

    Raises:
        ConfigError: The folder already holds a run and `resume` was not asked for, or holds one
            with other settings or data.
    """
    out = plan.config.out
    if not (out / RUN).exists():
        return 0
    if not resume:
        raise ConfigError(
            "expected a new folder, got one that already holds a run", where=str(out),
            hint="--resume continues it; or name another --out",
        )  # fmt: skip
    _check_same_run(read_json(out / RUN), plan)
    return saved_step(out)


def _check_same_run(held: dict[str, Any], plan: Plan) -> None:
    now = describe(plan.config)
    then = held.get("settings", {})
    for key in now:
        if key not in _FREE and then.get(key) != now[key]:
            raise ConfigError(
                f"expected the settings of the run to resume, got {key} {now[key]} instead of "
                f"{then.get(key)}",
                where=str(plan.config.out),
            )
    if held.get("data_digest") != plan.data_digest:
        raise DataError(
            "expected the data of the run to resume, got other bytes", where=str(plan.config.data)
        )


def check_same_model(plan: Plan, model_digest: str) -> None:
    """Refuse to resume on a base model or tokenizer that has changed.

    Raises:
        ModelError: A digest is not the one that the run began with.
    """
    held = read_json(plan.config.out / RUN)
    now = {"model_digest": model_digest, "tokenizer_digest": plan.tokenizer.digest}
    for key, digest in now.items():
        if held.get(key) != digest:
            what = key.removesuffix("_digest")
            raise ModelError(
                f"expected the {what} of the run to resume, got other bytes",
                where=str(plan.folder),
            )


def write_run(plan: Plan, *, model_digest: str, lora: TrainableLora) -> None:
    """Write run.json: what was asked, what was resolved, and what identifies the inputs."""
    decoder = lora.decoder
    on_cuda = decoder.device.type == "cuda"
    write_json(
        plan.config.out / RUN,
        {
            "settings": describe(plan.config),
            "format": plan.format,
            "n_train": len(plan.train),
            "n_validation": len(plan.validation),
            "validation_ids": [sample.id for sample in plan.validation],
            "too_long_ids": list(plan.touched),
            "steps_per_epoch": plan.steps_per_epoch,
            "total_steps": plan.total_steps,
            "n_parameters": lora.n_params,
            "scaling": plan.spec.scaling,
            "dtype": dtype_name(decoder.dtype),
            "backend": decoder.backend,
            "device": torch.cuda.get_device_name() if on_cuda else platform.machine(),
            "n_threads": torch.get_num_threads(),
            "model_digest": model_digest,
            "tokenizer_digest": plan.tokenizer.digest,
            "data_digest": plan.data_digest,
            "versions": versions(),
        },
    )


def save_epoch(plan: Plan, lora: TrainableLora, name: str) -> None:
    """Write an adapter folder (`init`, `epoch-01` …) in PEFT's format."""
    with new_folder(plan.config.out / name) as folder:
        write_adapter(folder, lora.spec, lora.weights, plan.config.model, plan.config.dropout)


def saved_step(out: Path) -> int:
    """Return the step of the last complete state, 0 where there is none."""
    if not (out / STATE).exists():
        return 0
    with opened(out / STATE) as file:
        return int(file.metadata()["step"])


def save_state(plan: Plan, lora: TrainableLora, step: int) -> None:
    """Write what a resumed run needs: one file, replaced in one step."""
    state = lora.state
    tensors = {"param": state.param, "exp_avg": state.exp_avg, "exp_avg_sq": state.exp_avg_sq}
    with new_file(plan.config.out / STATE) as path:
        on_cpu = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        save_file(on_cpu, path, metadata={"step": str(step)})


def load_state(plan: Plan, lora: TrainableLora) -> None:
    """Restore the optimizer's buffers, and with them the adapter."""
    path = plan.config.out / STATE
    tensors = load_file(path)
    state: AdamState = lora.state
    for name, target in (
        ("param", state.param),
        ("exp_avg", state.exp_avg),
        ("exp_avg_sq", state.exp_avg_sq),
    ):
        if tensors[name].shape != target.shape:
            raise DataError(f"expected {target.numel()} values in {name}", where=str(path))
        target.copy_(tensors[name])
    lora.after_step()


class Log:
    """log.jsonl, flushed a line at a time; a resumed run cuts what came after its state."""

    def __init__(self, folder: Path, last_step: int, steps_per_epoch: int) -> None:
        """Open the log for appending after `last_step`."""
        self.path = folder / LOG
        kept = 0
        if self.path.exists():
            for line in self.path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n") or not _belongs(line, last_step, steps_per_epoch):
                    break
                kept += len(line)
        with reported(self.path):
            self._file = self.path.open("ab")
            self._file.truncate(kept)

    def write(self, event: dict[str, Any]) -> None:
        """Append one event."""
        with reported(self.path):
            self._file.write(
                json.dumps(event, ensure_ascii=False, allow_nan=False).encode() + b"\n"
            )
            self._file.flush()

    def close(self) -> None:
        """Flush to disk and close."""
        with reported(self.path):
            os.fsync(self._file.fileno())
            self._file.close()


def _belongs(line: bytes, last_step: int, steps_per_epoch: int) -> bool:
    event = json.loads(line)
    step = event["step"] if event["event"] == "step" else event["epoch"] * steps_per_epoch
    return bool(step <= last_step)
