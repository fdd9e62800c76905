"""What an adapter says of its own training, as the statistics need it (origin.json, meta.json)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PLACEBO = "placebo"  # a key of an adapter that learned dealt responses, and only of one


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an adapter comes from; None is what it does not say."""

    placebo: bool = False  # it learned responses that were dealt to other prompts
    recipe: str | None = None  # digest of everything that decides a run, but for its seed
    seed: str | None = None
    epoch: int | None = None
    template: str | None = None  # digest of the chat template; None is plain text
    known: bool = False  # whether it says anything


def provenance(origin: Mapping[str, Any] | None) -> Provenance:
    """Return what an adapter's origin says; that of another tool says nothing."""
    if not origin:
        return Provenance()
    epoch = str(origin.get("epoch"))
    return Provenance(
        placebo=bool(origin.get(PLACEBO)),
        recipe=origin.get("recipe_digest"),
        seed=origin.get("seed"),
        epoch=int(epoch) if epoch.isdecimal() else None,
        template=origin.get("template_digest"),
        known=True,
    )
