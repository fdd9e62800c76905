"""From probes to effects, findings and the table of layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from cqa.claims.effects import Measured, described, effects, few, why_untested
from cqa.claims.probe.auc import auc, shares
from cqa.claims.probe.probing import Probed, first_layer, layers_after
from cqa.claims.probe.row import POSITIONS, ProbedLayer
from cqa.schema.claims import Effect, Part
from cqa.schema.result import Interval
from cqa.stats.clusters import Values, source_numbers
from cqa.text import counted

ByModel = Mapping[str | None, Probed]
Changes = Mapping[str, Values]
_ROUNDING = 1e-12
_AT = {"mean": "mean of tokens", "last": "last token"}


def probe_effects(found: ByModel, changes: Changes, sources: Sequence[str | None]) -> list[Effect]:
    """Return what is said of each model: AUC, its null controls, and what exceeds them.

    Args:
        found: The probes of every model, the base (None) first.
        changes: Of each adapter what `exchanged` returns.
        sources: Of the items.
    """
    said = [effect for adapter in found for effect in _described(adapter, found[adapter])]
    said += _excess(found, sources)
    beyond = effects(_beyond(found), [""] * len(sources), sources)
    said += [replace(effect, ci95=_possible(effect.ci95)) for effect in beyond]
    if changes:
        said += _change(changes, sources)
    return said


def layer_table(found: ByModel, changes: Changes) -> Iterator[ProbedLayer]:
    """Yield every layer of every model."""
    width = _width(np.array([table[:, 1:] for table in changes.values()])) if changes else 0.0
    for adapter, p in found.items():
        low, high = np.quantile(p.null, [0.025, 0.975], axis=1)
        for k in range(len(p.auc)):
            change = float(changes[adapter][k, 0]) if adapter is not None else None
            yield ProbedLayer(
                adapter=adapter, layer=k // len(POSITIONS), position=POSITIONS[k % len(POSITIONS)],
                auc=float(p.auc[k]), null_mean=float(p.null[k].mean()),
                null95=(float(low[k]), float(high[k])), control_auc=float(p.control[k].mean()),
                change=change,
                change_ci95=_possible(None if change is None else (change - width, change + width)),
            )  # fmt: skip


def _described(adapter: str | None, p: Probed) -> Iterator[Effect]:
    best, n = int(layers_after(p.auc).argmax()), p.odds.shape[1]
    top = float(layers_after(p.auc)[best])
    control = float(layers_after(p.control).max(axis=0).mean())
    said: tuple[tuple[str, str, Part, float], ...] = (
        ("auc", f"AUC of the best layer ({_place(best)})", "effect", top),
        ("chosen", "AUC, layer chosen inside the folds", "effect", auc(p.chosen)),
        ("null", "AUC of the best layer, labels swapped", "null", float(_top_null(p).mean())),
        ("words", "AUC of the embeddings", "null", float(first_layer(p.auc).max())),
        ("text", "AUC of a probe of length, bytes and S", "null", auc(p.text)),
        ("s_alone", "AUC of S alone", "null", auc(p.s_alone)),
        ("control", "AUC of the best layer, labels by first token", "null", control),
        ("selectivity", "AUC − that of labels by first token", "excess", top - control),
    )
    for name, label, part, value in said:
        yield described(name, label, adapter, value, n, part=part)


def _excess(found: ByModel, sources: Sequence[str | None]) -> Iterator[Effect]:
    """Yield the best layer's AUC minus what swapped labels come to, and its p.

    Every swapping has its own best layer of its own probes, and the best of all models: p is
    corrected for having looked at all of them.
    """
    null = np.array([_top_null(p) for p in found.values()])
    for adapter, p in found.items():
        top = float(layers_after(p.auc).max())
        yield _permuted(
            Effect(
                name="excess", label="AUC of the best layer − labels swapped", part="excess",
                adapter=adapter, group=None, value=top - float(_top_null(p).mean()), ci95=None,
                p=_p(null.max(axis=0) >= top - _ROUNDING),
                p_against=_p(null.min(axis=0) <= top + _ROUNDING),
                n=len(sources), n_sources=int(source_numbers(sources).max()) + 1,
            )
        )  # fmt: skip


def _beyond(found: ByModel) -> list[Measured]:
    """Return by how much the layer that is chosen inside the folds exceeds the baselines.

    Of each baseline's two forms the better one counts.
    """
    text = {a: max(p.text, p.s_alone, key=auc) for a, p in found.items()}
    words = {a: max(first_layer(p.odds), key=auc) for a, p in found.items()}
    return [
        Measured(name, f"AUC − that of {what}", "excess",
                 {a: shares(p.chosen) - shares(lesser[a]) for a, p in found.items()})
        for name, what, lesser in (
            ("beyond_text", "length, bytes and S", text), ("beyond_words", "the embeddings", words),
        )
    ]  # fmt: skip


def _change(changes: Changes, sources: Sequence[str | None]) -> Iterator[Effect]:
    """Yield how much each adapter moves the mean of all layers' AUC from the base's, and its p."""
    moved = {adapter: layers_after(table).mean(axis=0) for adapter, table in changes.items()}
    null = np.array([values[1:] for values in moved.values()])
    width = _width(null)
    for adapter, values in moved.items():
        yield _permuted(
            Effect(
                name="change", label="adapter − base of AUC, mean of layers", part="change",
                adapter=adapter, group=None, value=float(values[0]),
                ci95=_possible((values[0] - width, values[0] + width)),
                p=_p(null.max(axis=0) >= values[0] - _ROUNDING),
                p_against=_p(null.min(axis=0) <= values[0] + _ROUNDING),
                n=len(sources), n_sources=int(source_numbers(sources).max()) + 1,
            )
        )  # fmt: skip


def _width(null: Values) -> float:
    """Return what 95 % of exchanges stay within at all places: (…, B)."""
    return float(np.quantile(np.abs(null).reshape(-1, null.shape[-1]).max(axis=0), 0.95))


def _permuted(effect: Effect) -> Effect:
    """Return an effect without p where too few sources can be swapped."""
    n_sources = effect.n_sources or 0
    if not few(n_sources):
        return effect
    return replace(effect, p=None, p_against=None, untested=why_untested(n_sources))


def _top_null(p: Probed) -> Values:
    """Return the best layer's AUC of each swapping: (B,)."""
    top: Values = layers_after(p.null).max(axis=0)
    return top


def _p(reached: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> float:
    """Return the share of labellings that reach the true one's, which is one of them."""
    return (1 + int(reached.sum())) / (1 + len(reached))


def _possible(ci95: Interval | None) -> Interval | None:
    """Return an interval of a difference of AUCs, which is at most 1."""
    return None if ci95 is None else (max(ci95[0], -1.0), min(ci95[1], 1.0))


def _place(k: int) -> str:
    """Name a state after the embeddings."""
    layer, position = divmod(k, len(POSITIONS))
    return f"layer {layer + 1}, {_AT[POSITIONS[position]]}"


def dimensions_note(n_items: int, n_dimensions: int) -> str:
    """Say what a probe of few items in many dimensions can tell."""
    return (
        f"{counted(n_items, 'item')} against {n_dimensions:,} numbers of a state: so few can be "
        "told apart by chance, so that only the difference to the null control counts."
        if n_items < n_dimensions
        else f"{counted(n_items, 'item')}, {n_dimensions:,} numbers of a state."
    )
