"""What `generate --out` writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cqa.schema.record import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedRow(Record):
    """One text that was drawn after a prompt: a line of the file."""

    id: str  # of the prompt
    prompt: str
    sample: int  # number of the text among those of the prompt, from 1
    text: str  # without the end token
    stop: Literal["end", "max_tokens", "positions"]
    token_ids: tuple[int, ...]  # with the end token, if it came to one
    logp_nats: tuple[float, ...]  # ln P of each token under the model, as scoring gives it
    entropy_nats: tuple[float, ...]  # of the model's law at each token
    rank: tuple[int, ...]  # of each token, 0 is the model's most probable one
    varentropy_nats2: tuple[float, ...]  # variance of ln P under the model's law at each token
