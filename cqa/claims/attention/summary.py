"""Rows of the study of attention to its result: means over heads, and every head for itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

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
    "mass": "mass",
    "content": "mass past the first",
    "contribution": "contribution",
    "mass_ratio": "log ratio, nats",
    "content_ratio": "log ratio past the first, nats",
}
FINDINGS = (  # names, and the measures that they are of
    ("attends", "content_excess"),
    ("contributes", "contribution_excess"),
    ("a head attends", "content_head"),
    ("a head contributes", "contribution_head"),
    ("changed", "contribution_change"),
    ("a head changed", "contribution_head_change"),
)
PANELS = (  # what has one scale together, long names in the left column
    ("mass", "mass_other", "content", "content_other"),
    ("mass_excess", "content_excess"),
    (
        "mass_ratio", "mass_ratio_other", "mass_ratio_excess",
        "content_ratio", "content_ratio_other", "content_ratio_excess",
    ),
    ("contribution", "contribution_other", "contribution_excess"),
    ("mass_head", "content_head", "contribution_head"),
    ("mass_change", "content_change", "contribution_change"),
    ("mass_head_change", "content_head_change", "contribution_head_change"),
)  # fmt: skip
SharesByModel = Mapping[str | None, npt.NDArray[np.float32]]  # (n_items, *AttentionRow.shape)


def summarised(rows: RowsByModel[AttentionRow]) -> AttentionResult:
    """Test own minus other, as means over all heads, and head by head.

    Args:
        rows: Of every model, the base (None) first.
    """
    base = rows[None]
    groups, sources = [r.group for r in base], [r.source_id for r in base]
    shares = {a: np.stack([row.shares() for row in held]) for a, held in rows.items()}
    means = effects(_measured(rows, shares), groups, sources)
    tables, largest = _heads(shares, sources)
    placed = [replace(effect, label=f"{effect.label} ({place})") for effect, place in largest]
    return AttentionResult(
        study=NAME, claim=CLAIM, null_control=NULL, caution=CAUTION, n_items=len(base),
        n_tokens=sum(r.n_fed for r in base), 
        effects=(*means, *(effect for effect, _ in largest)), panels=PANELS,
        findings=tuple(f for name, of in FINDINGS for f in findings(name, [*means, *placed], of)),
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
            found.append(change_of(excess, f"{name}_change", f"change of {label}"))
    return found


def _heads(
    shares: SharesByModel, sources: Sequence[str | None]
) -> tuple[list[HeadTable], list[tuple[Effect, str]]]:
    tables: list[HeadTable] = []
    largest: list[tuple[Effect, str]] = []
    for k, name in enumerate(SHARE_NAMES):
        label = LABELS[name]
        excess = {a: np.subtract(v[:, 0, ..., k], v[:, 1, ..., k], dtype=np.float64)
                  for a, v in shares.items()}  # fmt: skip
        of_excess = head_tests(f"{name}_head", f"{label}, own − other", "excess", excess, sources)
        of_change = head_tests(
            f"{name}_head_change", f"change of {label}", "change", changes(excess), sources
        )
        for found_tables, found in (of_excess, of_change):
            tables += found_tables
            largest += found
    return tables, largest


def _notes(rows: RowsByModel[AttentionRow]) -> tuple[str, ...]:
    base = rows[None]
    n_heads = base[0].n_layers * base[0].n_heads
    apart = np.mean([abs(own - other) for own, other in (row.n_y for row in base)])
    found = [
        "All numbers are of what y has of a row's attention; past the first is without the "
        "sequence's first token; a change is an adapter's own − other minus the base's.",
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
