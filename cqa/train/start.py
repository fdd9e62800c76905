"""A run that starts from an adapter: its weights alone, with rank, scaling and targets as they are.

Optimizer, schedule and the order of samples begin anew, so this is no continuation of the run that
the adapter comes from: the same number of further epochs gives other weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cqa.config import key_of
from cqa.errors import ConfigError, ModelError
from cqa.model.adapter import AdapterFile, adapter_folder, open_adapter, read_adapter
from cqa.model.adapter_files import adapter_digest
from cqa.model.load import BaseModel
from cqa.model.lora import TrainableLora
from cqa.model.origin import Origin, check_origin, read_origin
from cqa.schema.run import StartedFrom
from cqa.train.plan import Plan

KEPT = ("rank", "alpha", "rslora", "targets")  # settings that are the adapter's own


@dataclass(frozen=True, slots=True)
class Start:
    """The adapter that a run starts from, as run.json names it."""

    folder: Path
    digest: str
    origin: Origin | None  # what it says of its own training

    @property
    def record(self) -> StartedFrom:
        """What run.json holds of it."""
        return StartedFrom(adapter_digest=self.digest, origin=self.origin)


def start_settings(folder: Path) -> dict[str, Any]:
    """Return the settings that a run which starts from an adapter takes from it.

    Raises:
        ModelError: It is missing or malformed.
    """
    spec = open_adapter(adapter_folder(folder)).spec
    return {key_of(name): getattr(spec, name) for name in KEPT}


def check_start(plan: Plan) -> Path | None:
    """Return the folder of the adapter that a run starts from, None where it starts from none.

    Raises:
        ModelError: The adapter is missing or malformed, or has not one rank and scaling in every
            layer.
        ConfigError: The run has settings that are not the adapter's.
    """
    if plan.config.from_ is None:
        return None
    folder = adapter_folder(plan.config.from_)
    found = open_adapter(folder)
    for name in KEPT:
        held, asked = getattr(found.spec, name), getattr(plan.spec, name)
        if held != asked:
            raise ConfigError(
                f"expected {key_of(name)} {_shown(held)}, as the adapter to start from has it, "
                f"got: {_shown(asked)}",
                where=str(folder),
                hint=f"leave --{key_of(name)} out: it is taken from the adapter",
            )
    _require_even(found, plan)
    return folder


def _require_even(found: AdapterFile, plan: Plan) -> None:
    """Refuse what training has no place for: layers left out, ranks and scalings of their own."""
    config, spec = found.config, found.spec
    for layer in range(plan.shape.n_layers):
        for target in spec.targets:
            if (layer, target) not in found.pairs:
                raise ModelError(
                    f"expected an adapter of every layer to start from, got none of {target} in "
                    f"layer {layer}",
                    where=str(found.path),
                )
    uneven = config.rank_pattern or config.alpha_pattern
    if uneven:
        raise ModelError(
            f"expected an adapter of one rank and one alpha to start from, got patterns of them: "
            f"{', '.join(uneven):.80}",
            where=str(found.path),
        )


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def load_start(plan: Plan, base: BaseModel, folder: Path, lora: TrainableLora) -> Start:
    """Put an adapter's weights in the place of the fresh ones.

    Raises:
        ModelError: It was trained on another base or tokenizer, or does not fit this one.
    """
    origin = read_origin(folder)
    check_origin(
        folder,
        model_digest=base.digest,
        tokenizer_digest=plan.tokenizer.digest,
        hint="a run starts from an adapter of its own base",
    )
    digest = adapter_digest(folder)
    lora.load(read_adapter(folder, base.decoder).weights)
    return Start(folder, digest, origin)


def start_text(start: Start) -> str:
    """Say where a run starts."""
    return f"starts from the adapter {start.folder} ({start.digest[:12]}): its weights alone"
