"""A run is resumed as what it began as; what may not change is refused, with what to do instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cqa.config import command_line, describe, flag_words, given_settings, key_of
from cqa.errors import ConfigError, DataError
from cqa.run_folder import epoch_name, missing_epochs
from cqa.schema.run import RunRecord
from cqa.text import listed
from cqa.train.config import TrainConfig, share_of
from cqa.train.plan import Plan
from cqa.train.start import KEPT

# what may differ when a run is resumed
FREE = {"out", "device", "pass-tokens", "recompute", "cuda-graphs", "tensorboard", "shard-base"}
OTHER_RUN = (
    "every step follows from what a run began with; another one is trained into another --out"
)


def resume_command(out: Path) -> str:
    """Spell the command that continues a run."""
    return command_line(TrainConfig, "train", {"resume": True, "out": str(out)})


def check_same_run(held: RunRecord, plan: Plan) -> None:
    """Refuse to resume a run with other settings or data than it began with.

    Args:
        held: The run.
        plan: What it is to be resumed with.

    Raises:
        ConfigError: A setting is another.
        DataError: The data has other bytes.
    """
    now, then = describe(plan.config), held.settings
    for key in now:
        if (
            key in FREE
            or then.get(key) == now[key]
            or _told_by_digest(key, then.get(key), now[key])
        ):
            continue
        hint, command = OTHER_RUN, None
        if key == "epochs" and (command := _longer(plan, int(then[key]))):
            hint = (
                "the learning rate of every step follows from the number of epochs; more of them "
                "are a new run, which may start from an adapter of this one"
            )
        raise ConfigError(
            f"expected the run to resume {_spelt(key, then.get(key))}, got {_spelt(key, now[key])}",
            where=str(plan.config.out),
            hint=hint,
            command=command,
        )
    if held.data_digest != plan.data_digest:
        raise DataError(
            "expected the data of the run to resume, got other bytes",
            where=listed(plan.config.data),
            hint=OTHER_RUN,
        )


def _longer(plan: Plan, n_epochs: int) -> str | None:
    """Spell the command that goes on from a run's last adapter; None where there is none."""
    config = plan.config
    last = max(
        set(range(1, n_epochs + 1)) - set(missing_epochs(config.out, range(1, n_epochs + 1))),
        default=0,
    )
    if not 0 < last < config.epochs:
        return None
    settings = given_settings(config)
    for name in KEPT:
        settings.pop(key_of(name), None)
    settings |= {"from": str(config.out / epoch_name(last)), "epochs": config.epochs - last}
    settings["out"] = f"{config.out}-longer"
    return command_line(type(config), "train", settings)


def _spelt(key: str, value: Any) -> str:
    words = flag_words(key, value)
    return f"with {' '.join(words)}" if words else f"without --{key}"


def _told_by_digest(key: str, then: Any, now: Any) -> bool:
    """Whether a setting names files, then as now, whose digest tells whether they are the same."""
    if key in ("model", "data"):
        return True
    if key == "template":
        return not {then, now} & {"plain", "chat"}
    return key == "validation" and share_of(str(then)) is share_of(now) is None
