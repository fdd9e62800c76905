"""Settings that a run takes over: of the run it continues, or of the adapter it starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cqa.config import key_of, resolve
from cqa.errors import ConfigError, DataError
from cqa.files import read_json
from cqa.run_folder import RUN
from cqa.train.config import TrainConfig


def taken_over(cls: type[TrainConfig], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that those given imply.

    Args:
        cls: The config that the settings are of.
        given: What the user gave, `resume` beside the settings.

    Raises:
        ConfigError: `resume` was given without all that a new run needs, and there is no run.
        DataError: run.json is damaged.
        ModelError: The adapter to start from is missing or malformed.
    """
    if given.get("resume") and given.get("out"):
        held = _of_run(cls, Path(given["out"]), given)
        if held is not None:
            return held
    if adapter := given.get("from_") or given.get("from"):
        from cqa.train.start import start_settings  # imports torch

        return start_settings(Path(adapter))
    return {}


def _of_run(cls: type[TrainConfig], out: Path, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the settings of the run to resume; None where there is no run yet."""
    path = out / RUN
    if not path.exists():
        for f in dataclasses.fields(cls):
            if f.default is dataclasses.MISSING and f.name not in given:
                raise ConfigError(
                    f"expected a run to resume, got no {RUN}", where=str(out),
                    hint=f"to start one, name --{key_of(f.name)}; without a run --resume does that",
                )  # fmt: skip
        return None
    settings = read_json(path).get("settings")
    if not isinstance(settings, dict):
        raise DataError("expected `settings`, got none", where=str(path))
    try:
        resolve(cls, settings)
    except ConfigError as error:
        raise DataError(error.message, where=str(path), hint=error.hint) from None
    return settings
