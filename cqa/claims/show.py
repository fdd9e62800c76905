"""A study's outcome as text for a terminal."""

from __future__ import annotations

from cqa.schema.claims import StudyResult
from cqa.text import aligned, counted, interval, named, p_value, signed


def study_text(result: StudyResult) -> str:
    """Return claim, findings, effects and what they cannot show."""
    lines = [f"{result.claim}; {counted(result.n_items, 'item')}", f"null: {result.null_control}"]
    for f in result.findings:
        lines.append(f"{f.mark:9}  {named(f.adapter or 'base')}  {f.name}: {f.reason}")
    rows = [
        (
            e.label,
            named(e.adapter or "base"),
            signed(e.value, 3),
            interval(e.ci95, 3),
            "n/a" if e.p is None else p_value(e.p),
            str(e.n),
        )
        for e in result.effects
        if e.group is None
    ]
    lines += ["", aligned(("measure", "model", "mean", "95 % CI", "p", "n"), rows), ""]
    lines += [*result.notes, result.caution]
    return "\n".join(lines)
