"""Prompts to ids, and sampled ids to texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cqa.data.jsonl import check_text
from cqa.data.tokenizer import Ids, Tokenizer
from cqa.errors import DataError, ModelError
from cqa.reading import read_object
from cqa.score.sampling import Sample, Stop

GENERATION = "generation_config.json"  # of a model folder
_ANSWER = "Yes."  # any that brings no thoughts: the prompt is what precedes such a one


@dataclass(frozen=True, slots=True)
class Generated:
    """A text that was drawn after a prompt, and its tokens."""

    text: str  # without the end token
    token_ids: Ids  # with the end token, if it came to one
    logp_nats: tuple[float, ...]  # ln P of each token under the model, as scoring gives it
    entropy_nats: tuple[float, ...]  # of the model's law at each token
    rank: tuple[int, ...]  # 0 is the model's most probable token
    varentropy_nats2: tuple[float, ...]  # variance of ln P under the model's law at each token
    stop: Stop  # an end token, the most tokens asked for, or the model's positions


def prompt_ids(text: str, tokenizer: Tokenizer, max_positions: int, where: str) -> Ids:
    """Encode a prompt as scoring encodes a context, through the tokenizer's template.

    Raises:
        DataError: It is empty, leaves no position for a token after it, holds a control token, or
            has no tokens that decode to it.
    """
    if not text:
        raise DataError("expected a prompt, got an empty text", where=where)
    check_text(text, "prompt", where)
    if (at_least := tokenizer.at_least_tokens(text)) >= max_positions:
        raise _too_long(max_positions, f"at least {at_least}", where)
    tokenizer.refuse_special(text, where)
    context = tokenizer.render_context(text, _ANSWER, where)
    ids = tokenizer.encode_context(context)
    tokenizer.check_round_trip(context, ids, where)
    if len(ids) >= max_positions:
        raise _too_long(max_positions, f"{len(ids)}", where)
    return ids


def _too_long(max_positions: int, got: str, where: str) -> DataError:
    return DataError(
        f"expected a prompt of fewer tokens than the model's {max_positions} positions, got {got}",
        where=where,
        hint="shorten the prompt; nothing is ever cut",
    )


def end_ids(folder: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """Return the tokens that end a text: the tokenizer's, and those of generation_config.json.

    Raises:
        ModelError: The file cannot be read, or names no token ids.
    """
    path = folder / GENERATION
    settings = read_object(path, ModelError) or {}
    named = settings.get("eos_token_id")
    several = named if isinstance(named, list) else [] if named is None else [named]
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in several):
        raise ModelError(
            f"expected `eos_token_id` to be token ids, got: {named!r:.80}", where=str(path)
        )
    own = tokenizer.hf.eos_token_id
    return frozenset((*several, tokenizer.end_id, *([] if own is None else [int(own)])))


def generated(drawn: Sample, tokenizer: Tokenizer) -> Generated:
    """Decode a sample."""
    ids = drawn.token_ids[:-1] if drawn.stop == "end" else drawn.token_ids
    return Generated(
        text=tokenizer.decode_following(ids),
        token_ids=drawn.token_ids,
        logp_nats=drawn.logp_nats,
        entropy_nats=drawn.entropy_nats,
        rank=drawn.rank,
        varentropy_nats2=drawn.varentropy_nats2,
        stop=drawn.stop,
    )
