"""True continuations under the base and under an adapter: the paper's Table 2."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cqa.schema.comparison import TextChange, TextComparison
from cqa.schema.result import PairedChange
from cqa.schema.rows import ItemRow
from cqa.stats.change import paired_change
from cqa.stats.information import BIT


@dataclass(frozen=True, slots=True)
class TextScore:
    """What the statistics need of one continuation under one model."""

    logp_nats: float
    entropy_nats: float | None  # summed over the tokens, given the context; None: not given
    n_tokens: int
    n_bytes: int
    domain: str | None
    source_id: str | None
    published_at: str | None
    lang: str | None = None
    boundary_mismatch: bool = False


def text_score(row: ItemRow) -> TextScore:
    """Reduce a row of scores.jsonl to what the statistics need."""
    option = row.options[0]
    return TextScore(
        option.logp_given_context_nats,
        option.entropy_given_context_nats,
        option.n_tokens,
        option.n_bytes,
        row.domain,
        row.source_id,
        row.published_at,
        row.lang,
        option.boundary_mismatch,
    )


def compare_texts(
    base: Mapping[str, TextScore], adapted: Mapping[str, TextScore]
) -> TextComparison:
    """Return Table 2's rows of a group: of all its texts, of each domain and of each language."""
    ids = [item_id for item_id in base if item_id in adapted]
    domains = sorted({d for i in ids if (d := base[i].domain) is not None})
    languages = sorted({name for i in ids if (name := base[i].lang) is not None})
    whole = _change(base, adapted, ids)
    return TextComparison(
        n=whole.n,
        per_token_nats=whole.per_token_nats,
        per_token_bits=whole.per_token_bits,
        per_byte_bits=whole.per_byte_bits,
        entropy_per_token_nats=whole.entropy_per_token_nats,
        domains={
            domain: _change(base, adapted, [i for i in ids if base[i].domain == domain])
            for domain in domains
        },
        languages={
            name: _change(base, adapted, [i for i in ids if base[i].lang == name])
            for name in (languages if len(languages) > 1 else ())
        },
    )


def _change(
    base: Mapping[str, TextScore], adapted: Mapping[str, TextScore], ids: list[str]
) -> TextChange:
    """Return the log-probability per token and per byte, before and after, and its change."""

    def both(value: Callable[[TextScore], float]) -> tuple[list[float], list[float]]:
        return [value(base[i]) for i in ids], [value(adapted[i]) for i in ids]

    return TextChange(
        n=len(ids),
        per_token_nats=paired_change(*both(lambda s: s.logp_nats / s.n_tokens)),
        per_token_bits=paired_change(*both(lambda s: s.logp_nats / s.n_tokens / BIT)),
        per_byte_bits=paired_change(*both(lambda s: s.logp_nats / s.n_bytes / BIT)),
        entropy_per_token_nats=_entropy([base[i] for i in ids], [adapted[i] for i in ids]),
    )


def _entropy(before: Sequence[TextScore], after: Sequence[TextScore]) -> PairedChange | None:
    """Return the change of the entropy per token; None where a text has none."""
    was, now = (
        [s.entropy_nats / s.n_tokens for s in scores if s.entropy_nats is not None]
        for scores in (before, after)
    )
    return paired_change(was, now) if len(was) == len(now) == len(before) else None
