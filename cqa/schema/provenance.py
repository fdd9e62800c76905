"""What an adapter says of its own training, as the statistics need it (origin.json, meta.json)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cqa.schema.meta import ScoredModel

FROM = "from_digest"  # a key of an adapter whose run began with another one, whose digest it is
PLACEBO = "placebo"  # a key of an adapter that learned dealt responses, and only of one


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an adapter comes from; None is what it does not say."""

    placebo: bool = False  # it learned responses that were dealt to other prompts
    recipe: str | None = None  # digest of everything that decides a run, but for its seed
    seed: str | None = None
    epoch: int | None = None
    data: str | None = None  # digest of the samples' files
    template: str | None = None  # digest of the chat template; None is plain text
    started_from: str | None = None  # digest of the adapter that its run began with
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
        data=origin.get("data_digest"),
        template=origin.get("template_digest"),
        started_from=origin.get(FROM),
        known=True,
    )


def trained_with_other_template(models: Iterable[ScoredModel]) -> list[str]:
    """Name the adapters that say they were trained with another template than they are scored with.

    Args:
        models: What was scored; each has the template's text, and an origin its digest.
    """
    other = []
    for model in models:
        text, made = model.template, provenance(model.adapter_origin)
        scored = None if text is None else hashlib.sha256(text.encode()).hexdigest()
        if model.adapter is not None and made.known and made.template != scored:
            other.append(model.adapter)
    return other
