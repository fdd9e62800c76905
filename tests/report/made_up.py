"""Reports on changes that are made up."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from synthetic import digest_of, key_of, make_meta, records

from cqa.family import Family, FamilyItems
from cqa.report.caveats import caveats
from cqa.report.focus import Focus, make_focus
from cqa.report.source import Source
from cqa.schema.meta import Meta, ScoreSettings
from cqa.schema.provenance import Provenance
from cqa.schema.rows import ItemRow, ItemText
from cqa.schema.summary import ScoreSummary
from cqa.stats.config import AnalysisConfig
from cqa.stats.summary import Scores, summarise

Changes = dict[str, dict[str, Sequence[float]]]  # adapter, group: ddI of every item, nats


@dataclass(slots=True)
class HeldFamily(Family):
    """A family of texts and rows in memory; a folder holds those of a real one."""

    held_texts: dict[str, ItemText] = field(default_factory=dict)  # by id
    held_rows: list[ItemRow] = field(default_factory=list)

    def texts(self, ids: Collection[str] | None = None) -> Iterator[ItemText]:
        return (text for text in self.held_texts.values() if ids is None or text.id in ids)

    def rows_again(
        self, names: Sequence[str | None], ids: Collection[str] | None = None
    ) -> Iterator[ItemRow]:
        rows = (row for name in names for row in self.held_rows if row.adapter == name)
        return (row for row in rows if ids is None or row.id in ids)


def spread(mean: float, n: int = 20, sd: float = 1.0) -> np.ndarray:
    """Return n values of a given mean and standard deviation, none of them alike."""
    values = np.random.default_rng(0).permutation(np.linspace(-1, 1, n) ** 3)
    return (values - values.mean()) / values.std(ddof=1) * sd + mean


def focus_of(changes: Changes, *, prior: float = 0.0, **facts) -> Focus:
    """Return a focus on pairs whose dI changes as told; `prior` is about each item's d_prior."""
    rows, items = [], {}
    sizes = {group: len(v) for models in changes.values() for group, v in models.items()}
    for group, n in sizes.items():
        for k in range(n):
            item_id = f"{group}-{k}"
            items[item_id] = ItemText(
                id=item_id, item_key="", kind="pair", context=f"c {item_id}", options=("g", "b"),
                answer=0, lang="en",
            )  # fmt: skip
            base = float(5 * np.sin(7 * k + 1))
            for adapter in (None, *changes):
                moved = 0.0 if adapter is None else float(changes[adapter][group][k])
                shift = 0.0 if adapter is None or not prior else prior + 0.1 * float(np.sin(3 * k))
                rows.append(_row(item_id, group, adapter, base + moved + shift, shift, facts))
    meta = Meta.from_json(make_meta([None, *changes], []), "made up")
    names = {key_of(name): name for name in (None, *changes)}
    digests = {name: digest_of(name) for name in changes}
    made = dict.fromkeys(changes, Provenance())
    held = list(records(rows))
    kept = FamilyItems()
    for text in items.values():
        kept.add(text)
    family = HeldFamily(
        Path("scores"), meta, names, digests, made, kept, {},
        held_texts=items, held_rows=held,
    )  # fmt: skip
    source = Source(
        family, ScoreSettings.from_json(meta.settings, "made up"), Scores(held),
        Counter(row.adapter for row in held), list(changes), facts.get("run"),
    )  # fmt: skip
    named = ("cutoff", "primary", "control")
    config = AnalysisConfig(**{name: facts[name] for name in named if name in facts})
    return make_focus(source, summarise(source.scores, config))


def _row(item_id, group, adapter, given, null, facts):
    lengths = facts.get("tokens", (10, 10))
    number = int(item_id.rpartition("-")[2])
    options = [
        {
            "role": role,
            "logp_given_context_nats": -50 + (given if good else 0.0),
            "logp_null_nats": -50 + (null if good else 0.0),
            "logp_null2_nats": -50 + (null if good else 0.0),
            "pmi_nats": given - null if good else 0.0,
            "entropy_given_context_nats": 30.0,
            "entropy_null_nats": 30.0,
            "n_tokens": length, "n_bytes": length, "n_chars": length,
            "boundary_merge": facts.get("merge", False),
        }
        for role, length, good in (("good", lengths[0], True), ("bad", lengths[1], False))
    ]  # fmt: skip
    sources = facts.get("sources")
    return {
        "id": item_id, "group": group, "domain": None, "lang": "en", "kind": "pair", "answer": 0,
        "source_id": f"book-{number % sources}" if sources else None,
        "published_at": facts.get("dates", [None])[number % len(facts.get("dates", [None]))],
        "adapter": adapter, "model_key": key_of(adapter), "item_key": "", "options": options,
        "delta_i_nats": given - null,
    }  # fmt: skip


def with_primary(focus: Focus, **changed) -> Focus:
    """Return a focus whose primary group under the highlighted adapter has other results."""
    models = focus.summary.groups[focus.primary]
    models[focus.highlighted] = replace(models[focus.highlighted], **changed)
    return focus


def scored(focus: Focus) -> ScoreSummary:
    return ScoreSummary(focus.summary, "d", "i", {}, {}, {}, ())


PLAIN = {"literary": spread(0.5, 60), "factual": spread(0.0, 60)}


def said(focus: Focus, words: str) -> list[str]:
    return [text for text in caveats(focus) if words in text]
