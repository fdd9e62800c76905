"""Every head's excess and change, tested as one family of all heads of all models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cqa.claims.effects import Measured, tested
from cqa.schema.claims import Effect, Part, StudyResult
from cqa.schema.record import Record
from cqa.stats.clusters import Values

ByModel = Mapping[str | None, Values]  # of items, layers and heads; the base (None) first
Table = tuple[tuple[float, ...], ...]
OpenTable = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadTable(Record):
    """A measure of every head under one model: layers, and in each its heads."""

    name: str
    label: str
    part: Part
    adapter: str | None
    values: Table  # means over items
    p: OpenTable  # one-sided, corrected for all heads of all models
    p_against: OpenTable


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionResult(StudyResult):
    """study.json of the study of attention."""

    heads: tuple[HeadTable, ...]


def head_tests(
    name: str, label: str, part: Part, values: ByModel, sources: Sequence[str | None]
) -> tuple[list[HeadTable], list[tuple[Effect, str]]]:
    """Test a measure of every head under every model (max-T over all of them).

    Args:
        name: Of the measure.
        label: In words.
        part: What it is: `excess` or `change`.
        values: (n_items, n_layers, n_heads) under each model.
        sources: The source of each item.

    Returns:
        A table of every model; and of each the effect at the top head, that of the largest t, and
        which head that is.
    """
    columns: dict[str | None, Values] = {
        f"{m}.{k}": column
        for m, held in enumerate(values.values())
        for k, column in enumerate(held.reshape(len(held), -1).T)
    }
    found = tested(Measured(name, label, part, columns), columns, sources, None)
    tables, largest = [], []
    for adapter, held in values.items():
        n_heads = held.shape[2]
        of_model = [next(found) for _ in range(held.shape[1] * n_heads)]
        tables.append(_table(of_model, n_heads, name, label, part, adapter))
        k = max(range(len(of_model)), key=lambda k: _standing(of_model[k]))
        effect = replace(of_model[k], label=f"{label}, top head", adapter=adapter)
        largest.append((effect, f"layer {k // n_heads}, head {k % n_heads}"))
    return tables, largest


def _standing(effect: Effect) -> float:
    """Return what orders heads as their t does: intervals of a family are equally many errors."""
    if effect.ci95 is None or effect.value is None:
        return -np.inf
    return effect.value / (effect.ci95[1] - effect.ci95[0])


def _table(
    found: Sequence[Effect], n_heads: int, name: str, label: str, part: Part, adapter: str | None
) -> HeadTable:
    layers = [found[first : first + n_heads] for first in range(0, len(found), n_heads)]
    return HeadTable(
        name=name, label=label, part=part, adapter=adapter,
        values=tuple(tuple(e.value or 0.0 for e in layer) for layer in layers),
        p=tuple(tuple(e.p for e in layer) for layer in layers),
        p_against=tuple(tuple(e.p_against for e in layer) for layer in layers),
    )  # fmt: skip


def changes(values: ByModel) -> ByModel:
    """Return each adapter's numbers minus the base's, item by item."""
    return {a: held - values[None] for a, held in values.items() if a is not None}


def below(table: OpenTable, level: float) -> Iterator[tuple[int, int]]:
    """Yield layer and head of every p below a level."""
    for layer, row in enumerate(table):
        for head, p in enumerate(row):
            if p is not None and p < level:
                yield layer, head


def as_array(table: Table) -> npt.NDArray[np.float64]:
    """Return a table as an array, (n_layers, n_heads)."""
    return np.asarray(table, dtype=np.float64)
