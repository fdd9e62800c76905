"""Score rows to the paper's statistics: one entry per group and adapter (Tables 1 and 2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from cqa.schema.provenance import Provenance
from cqa.schema.row_forms import Block
from cqa.schema.rows import CHOOSERS, ItemRow
from cqa.schema.summary import (
    DatedCounts,
    GroupResults,
    Stratum,
    StratumCounts,
    Summary,
)
from cqa.stats.blocks import pair_columns, text_scores
from cqa.stats.columns import Facts, ItemScores
from cqa.stats.compare import base_group, compare_items
from cqa.stats.config import AnalysisConfig
from cqa.stats.continuations import TextScore, compare_texts, text_score
from cqa.stats.items import VARIANTS, item_score
from cqa.stats.roles import choose_roles
from cqa.stats.strata import STRATA, read_cutoff, stratum
from cqa.stats.verdict import judge

T = TypeVar("T")
ByModel = dict[str | None, ItemScores]


class Scores:
    """Rows sorted by kind, group and adapter; ids join a base row with an adapter's."""

    def __init__(
        self,
        rows: Iterable[ItemRow | Block] = (),
        copies: Collection[str] = (),
        order: Sequence[str | None] = (),
    ) -> None:
        """Read rows; where an id comes twice under one model, the last line counts.

        Args:
            rows: The rows of one base and its adapters.
            copies: Ids of items that are another's texts again, and are not counted.
            order: Names of the models in the order to keep them in; by default that of the rows.
        """
        self.copies = copies
        self.n_copies: Counter[str] = Counter()  # by group
        self.items: dict[str, ByModel] = {}
        self.texts: dict[str, dict[str | None, dict[str, TextScore]]] = {}
        self.choosers: ByModel = {}  # items that choose an adapter and are not reported
        self.facts = Facts()
        self.groups: dict[str, None] = {}  # of all kinds, in the order of the base
        for found in rows:
            if isinstance(found, ItemRow):
                self._add(found)
            else:
                self._add_block(found)
        self._settle()
        if order:
            self.choosers = _sorted(self.choosers, order)
            self.items = {group: _sorted(models, order) for group, models in self.items.items()}
            self.texts = {group: _sorted(models, order) for group, models in self.texts.items()}

    def _add(self, row: ItemRow) -> None:
        if row.id in self.copies:
            self.n_copies[row.group] += row.adapter is None
            return
        if row.adapter is None:
            self.groups.setdefault(row.group)
        if row.kind == "continuation":
            self._texts_of(row.group, row.adapter)[row.id] = text_score(row)
        else:
            scores = self._items_of(row.group, row.adapter)
            scores.add(self.facts.number(row), item_score(row))

    def _add_block(self, block: Block) -> None:
        once: Block | None = block
        if self.copies:
            once = block.only(lambda rows: (name not in self.copies for name in rows.names("id")))
        if self.copies and block.adapter is None:
            ids = (
                pair
                for rows in block.parts
                for pair in zip(rows.names("id"), rows.names("group"), strict=True)
            )
            self.n_copies.update(group for name, group in ids if name in self.copies)
        if block.adapter is None and once is not None:
            self.groups |= dict.fromkeys(once.in_order(lambda rows: rows.names("group")))
        for rows in once.parts if once else ():
            groups = np.array(rows.names("group"), dtype=object)
            if rows.form.n_options == 1:
                for group, name, score in zip(
                    groups, rows.names("id"), text_scores(rows), strict=True
                ):
                    self._texts_of(group, block.adapter)[name] = score
                continue
            numbers = self.facts.number_block(rows, is_base=block.adapter is None)
            columns = pair_columns(rows)
            for group in dict.fromkeys(groups):
                own = groups == group
                scores = self._items_of(group, block.adapter)
                scores.extend(numbers[own], {name: held[own] for name, held in columns.items()})

    def _items_of(self, group: str, adapter: str | None) -> ItemScores:
        models = self.choosers if group == CHOOSERS else self.items.setdefault(group, {})
        if adapter not in models:
            models[adapter] = ItemScores(self.facts.numbers)
        return models[adapter]

    def _texts_of(self, group: str, adapter: str | None) -> dict[str, TextScore]:
        return self.texts.setdefault(group, {}).setdefault(adapter, {})

    def _settle(self) -> None:
        """Put the items of every model into the order of the base."""
        groups = [*self.items.values(), self.choosers]
        first = [models[None].first_met() for models in groups if None in models]
        moved = None
        if any(np.any(np.diff(numbers) < 0) for numbers in first):
            numbers = np.concatenate([*first, np.arange(len(self.facts))])
            _, once = np.unique(numbers, return_index=True)
            order = numbers[np.sort(once)].astype(np.int32)
            self.facts.reorder(order)
            moved = np.argsort(order).astype(np.int32)
        del first  # views of what is about to be taken over
        for models in groups:
            for scores in models.values():
                scores.settle(moved)
                if None in models:
                    scores.share_rows(models[None])

    def n_items(self, name: str | None) -> int:
        """Return how many items and continuations were scored under a model."""
        items = (*self.items.values(), self.choosers)
        return sum(len(models[name]) for models in items if name in models) + sum(
            len(models[name]) for models in self.texts.values() if name in models
        )

    def part(self, keep: Callable[[str | None], bool]) -> Scores:
        """Return the scores of the items whose `published_at` is to be kept."""
        found = Scores()
        found.facts, found.groups = self.facts, self.groups
        for group, models in self.items.items():
            kept = {name: scores.take(self._kept(scores, keep)) for name, scores in models.items()}
            for scores in kept.values():
                scores.share_rows(kept[None])
            if kept[None]:
                found.items[group] = kept
        for group, text_models in self.texts.items():
            texts = {
                name: {i: s for i, s in by_id.items() if keep(s.published_at)}
                for name, by_id in text_models.items()
            }
            if texts[None]:
                found.texts[group] = texts
        return found

    def _kept(
        self, scores: ItemScores, keep: Callable[[str | None], bool]
    ) -> npt.NDArray[np.bool_]:
        return np.array(
            [keep(date) for date in self.facts.labels("published_at", scores.rows)], dtype=bool
        )

    def dates(self) -> list[str | None]:
        """Return `published_at` of every item and continuation."""
        found = [
            d
            for models in self.items.values()
            for d in self.facts.labels("published_at", models[None].rows)
        ]
        texts = [models[None].values() for models in self.texts.values()]
        return found + [score.published_at for scores in texts for score in scores]


def _sorted(models: Mapping[str | None, T], order: Sequence[str | None]) -> dict[str | None, T]:
    return {name: models[name] for name in order if name in models}


def summarise(
    scores: Scores,
    config: AnalysisConfig | None = None,
    *,
    made: Mapping[str, Provenance] | None = None,
) -> Summary:
    """Return the statistics: every group under the base and under every adapter.

    Args:
        scores: The rows of one base and its adapters.
        config: What the statistics leave to the reader; by default nothing is fixed.
        made: What the adapters say of their training.

    Raises:
        ConfigError: A group that `config` names is not there.
    """
    config = config or AnalysisConfig()
    roles = choose_roles(scores.items, config)
    judged = judge(scores.items, scores.texts, scores.facts, roles, config, made, scores.choosers)
    return Summary(
        unit="nats",
        variants=VARIANTS,
        results=_group_results(scores, config.margin),
        verdict=judged.verdict,
        highlighted=judged.highlighted,
        families=judged.families,
        selection=judged.choices,
        interaction=judged.interactions,
        seeds=judged.seeds,
        cutoff=config.cutoff,
        n_by_date=_count_dates(scores, config.cutoff),
        strata=_strata(scores, config),
        n_copies=dict(scores.n_copies),
        roles=roles,
        candidates=judged.candidates,
    )


def _group_results(scores: Scores, margin_nats: float | None) -> GroupResults:
    """Return the results of all items or of some."""
    return GroupResults(
        base={
            group: base_group(models[None], scores.facts) for group, models in scores.items.items()
        },
        groups={
            group: {
                name: compare_items(models[None], by_id, scores.facts, margin_nats)
                for name, by_id in models.items()
                if name is not None
            }
            for group, models in scores.items.items()
        },
        continuations={
            group: {
                name or "base": compare_texts(models[None], by_id) for name, by_id in models.items()
            }
            for group, models in scores.texts.items()
        },
    )


def _count_dates(scores: Scores, cutoff: str | None) -> DatedCounts | StratumCounts:
    """Return how many items lie where; without a cutoff only how many have a date."""
    dates = scores.dates()
    if cutoff is None:
        dated = sum(d is not None for d in dates)
        return DatedCounts(dated, len(dates) - dated)
    day = read_cutoff(cutoff)
    found = [stratum(d, day) for d in dates]
    return StratumCounts(*(found.count(name) for name in STRATA))


def _strata(scores: Scores, config: AnalysisConfig) -> dict[Stratum, GroupResults]:
    if config.cutoff is None:
        return {}
    day = read_cutoff(config.cutoff)

    def only(name: Stratum) -> GroupResults:
        return _group_results(scores.part(lambda d: stratum(d, day) == name), config.margin)

    return {name: only(name) for name in STRATA}
