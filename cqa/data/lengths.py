"""Training samples that are longer than a limit: refused, left out, or their prompts cut."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from cqa.data.samples import EncodedSample, Sample, encode_sample
from cqa.data.tokenizer import Tokenizer
from cqa.errors import DataError

TooLong = Literal["refuse", "drop", "truncate"]


def encode_samples(
    samples: Iterable[Sample],
    tokenizer: Tokenizer,
    max_tokens: int,
    policy: TooLong,
    *,
    whole_text: bool = False,
) -> tuple[list[EncodedSample], list[str]]:
    """Encode samples, and apply the policy to those that are too long.

    A text that is too long whatever its tokens are is not encoded; where it is to be cut, the end
    of its prompt is.

    Args:
        samples: The samples.
        tokenizer: Tokenizer of the base model, with its template.
        max_tokens: The longest sample that is learned as it is.
        policy: See `fit_lengths`.
        whole_text: Learn the prompt too.

    Returns:
        The samples that stay, and the ids of those that the policy affected.

    Raises:
        DataError: See `encode_sample` and `fit_lengths`.
    """
    fitting: list[EncodedSample] = []
    affected_ids: list[str] = []
    for sample in samples:
        counted = sample.turns
        if policy == "truncate":  # what cannot be cut
            counted = tuple(turn for turn in sample.turns if turn.learned)
        at_least = sum(tokenizer.at_least_tokens(turn.text) for turn in counted)
        if at_least > max_tokens:
            if policy != "drop":
                raise _too_long(sample, max_tokens, f"at least {at_least}", policy)
            affected_ids.append(sample.id)
            continue
        most = max_tokens if policy == "truncate" else None
        encoded = encode_sample(sample, tokenizer, whole_text=whole_text, most_prompt_tokens=most)
        kept, cut = fit_lengths([encoded], max_tokens, policy)
        fitting += kept
        affected_ids += cut
    return fitting, affected_ids


def _too_long(
    sample: Sample | EncodedSample, max_tokens: int, got: str, policy: TooLong
) -> DataError:
    hint = (
        "--too-long truncate cuts the prompt alone, and what is learned is too long without one; "
        "--too-long drop leaves such samples out"
        if policy == "truncate"
        else "--too-long drop leaves such samples out, --too-long truncate cuts prompts at the "
        "start; nothing is ever cut without being asked for"
    )
    return DataError(
        f"expected at most {max_tokens} tokens, got {got} in `{sample.id}`",
        where=sample.where,
        hint=hint,
    )


def fit_lengths(
    samples: list[EncodedSample], max_tokens: int, policy: TooLong
) -> tuple[list[EncodedSample], list[str]]:
    """Apply the policy for over-long samples; return those that stay, and the ids affected.

    `truncate` cuts the start of the prompt, after BOS, and keeps all from the first answer on.

    Raises:
        DataError: A sample is too long and the policy is `refuse`, or it cannot be cut enough.
    """
    fitting: list[EncodedSample] = []
    affected = []
    for sample in samples:
        excess = len(sample.ids) - max_tokens
        if excess <= 0:
            fitting.append(sample)
            continue
        affected.append(sample.id)
        room = sample.prompt.stop - sample.prompt.start
        if policy == "refuse" or (policy == "truncate" and excess >= room):
            cut = f", {room} of them of the prompt," if policy == "truncate" else ""
            raise _too_long(sample, max_tokens, f"{len(sample.ids)}{cut}", policy)
        if policy == "truncate":
            fitting.append(_cut(sample, excess))
    return fitting, affected


def _cut(sample: EncodedSample, excess: int) -> EncodedSample:
    """Leave out `excess` tokens at the start of the prompt."""
    start, stop = sample.prompt.start, sample.prompt.start + excess
    return replace(
        sample,
        ids=sample.ids[:start] + sample.ids[stop:],
        loss_mask=sample.loss_mask[:start] + sample.loss_mask[stop:],
        prompt=slice(start, sample.prompt.stop - excess),
    )
