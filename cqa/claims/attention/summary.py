"""Rows of the study of attention to its result: means over heads, and every head for itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from cqa.claims.attention.figure import MOST_PANELS
from cqa.claims.attention.heads import AttentionResult, HeadTable, changes, head_tests
from cqa.claims.attention.rows import AttentionRow
from cqa.claims.claim import RowsByModel
from cqa.claims.effects import Measured, change_of, effects, findings
from cqa.schema.claims import Effect
from cqa.text import counted

NAME = "attention"
CLAIM = "The tokens of an option attend to its own context y"
NULL = "the same option after y of another item, of near length"
CAUTION = (
    "Attention is where a layer looks, and a contribution what it adds there; neither says what "
    "later layers make of it. An option that repeats words of its context draws attention to them "
    "whatever they mean."
)
SHARE_NAMES = ("mass", "content", "contribution")  # in the order of SHARES
RATIO_NAMES = ("mass_ratio", "content_ratio")
LABELS = {
    "mass": "mass on y",
    "content": "mass on y without the first token",
    "contribution": "contribution of y",
    "mass_ratio": "ln of mass over uniform, nats",
    "content_ratio": "ln of mass over uniform without the first, nats",
}
FINDINGS = (  # names, and the measures that they are of
    ("attends", "content_excess"),
    ("contributes", "contribution_excess"),
    ("a head attends", "content_head"),
    ("a head contributes", "contribution_head"),
    ("changed", "contribution_change"),
    ("a head changed", "contribution_head_change"),
)
SharesByModel = Mapping[str | None, npt.NDArray[np.float32]]  # (n_items, *AttentionRow.shape)


def summarised(rows: RowsByModel[AttentionRow]) -> AttentionResult:
    """Test own minus other, as means over all heads, and head by head.

    Args:
        rows: Of every model, the base (None) first.
    """
    base = rows[None]
    groups, sources = [r.group for r in base], [r.source_id for r in base]
    shares = {a: np.stack([row.shares() for row in held]) for a, held in rows.items()}
    found = effects(_measured(rows, shares), groups, sources)
    tables, largest = _heads(shares, sources)
    found += largest
    return AttentionResult(
        study=NAME, claim=CLAIM, null_control=NULL, caution=CAUTION, n_items=len(base),
        n_tokens=sum(r.n_fed for r in base), effects=tuple(found),
        findings=tuple(f for name, of in FINDINGS for f in findings(name, found, of)),
        notes=_notes(rows), heads=tuple(tables),
    )  # fmt: skip


def _measured(rows: RowsByModel[AttentionRow], shares: SharesByModel) -> list[Measured]:
    """Return of each measure own, other, their difference and its change, a number an item."""
    found = []
    by_model = {
        adapter: np.concatenate(
            [
                shares[adapter].mean((2, 3), dtype=np.float64),
                np.array([row.log_ratio_nats for row in held]),
            ],
            axis=2,
        )
        for adapter, held in rows.items()
    }
    for k, name in enumerate((*SHARE_NAMES, *RATIO_NAMES)):
        label = LABELS[name]
        own, other = ({a: v[:, form, k] for a, v in by_model.items()} for form in (0, 1))
        excess = Measured(
            f"{name}_excess", f"{label}, own − other", "excess",
            {a: own[a] - other[a] for a in by_model},
        )  # fmt: skip
        found += [
            Measured(name, f"{label}, own", "effect", own),
            Measured(f"{name}_other", f"{label}, other", "null", other),
            excess,
        ]
        if name in SHARE_NAMES:
            label = f"adapter − base of {label}, own − other"
            found.append(change_of(excess, f"{name}_change", label))
    return found


def _heads(
    shares: SharesByModel, sources: Sequence[str | None]
) -> tuple[list[HeadTable], list[Effect]]:
    tables: list[HeadTable] = []
    largest: list[Effect] = []
    for k, name in enumerate(SHARE_NAMES):
        label = LABELS[name]
        excess = {a: np.subtract(v[:, 0, ..., k], v[:, 1, ..., k], dtype=np.float64)
                  for a, v in shares.items()}  # fmt: skip
        of_excess = head_tests(f"{name}_head", f"{label}, own − other", "excess", excess, sources)
        of_change = head_tests(
            f"{name}_head_change", f"adapter − base of {label}, own − other", "change",
            changes(excess), sources,
        )  # fmt: skip
        for found_tables, found in (of_excess, of_change):
            tables += found_tables
            largest += found
    return tables, largest


def _notes(rows: RowsByModel[AttentionRow]) -> tuple[str, ...]:
    base = rows[None]
    n_heads = base[0].n_layers * base[0].n_heads
    apart = np.mean([abs(own - other) for own, other in (row.n_y for row in base)])
    found = [
        f"Another's y has {apart:.1f} tokens more or less than an item's own, in the mean.",
        f"p of a head is corrected for all {counted(n_heads, 'head')} of every model; layers and "
        "heads count from 0.",
    ]
    n_beyond = sum(min(row.in_sight) < 1 for row in base)
    if n_beyond:
        found.append(
            f"Of {counted(n_beyond, 'item')} y is partly beyond the window of some layers, where "
            "it counts as unattended."
        )
    n_left = len(rows) - MOST_PANELS
    if n_left > 0:
        found.append(f"The figure leaves {counted(n_left, 'adapter')} out.")
    return tuple(found)
