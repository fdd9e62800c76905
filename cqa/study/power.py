"""How many items a study needs: a pilot or assumptions in, sizes for 80 % power out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cqa.errors import ConfigError, DataError
from cqa.report.source import read_source
from cqa.schema.written import Result
from cqa.stats.clusters import Values, source_numbers
from cqa.stats.config import AnalysisConfig
from cqa.stats.findings import Changes
from cqa.stats.power import RUNS, Design, Needed, intraclass, items_needed
from cqa.stats.roles import choose_roles
from cqa.stats.summary import summarise
from cqa.stats.verdict import changes_of
from cqa.study.config import PowerConfig
from cqa.text import aligned

RHO = 0.5  # correlation of the changes under two adapters, where no pilot says it
FEWEST = 3  # items of a pilot
QUESTIONS = {
    "change": "ddI of the primary group above 0",
    "selective": "primary group above the control",
    "control_small": "control within d_z of 0.2",
}


@dataclass(frozen=True, slots=True)
class PowerPlan(Result):
    """What was assumed, and how many items of each group every question needs."""

    assumptions: tuple[str, ...]
    design: Design
    needed: tuple[Needed, ...]


@dataclass(frozen=True, slots=True)
class _Pilot:
    effect: float
    sd: float
    icc: float
    items_per_source: int
    n_adapters: int
    rho: float
    values: tuple[float, ...]
    name: str


def plan_power(
    config: PowerConfig,
    scores: Path | None = None,
    *,
    runs: int = RUNS,
    on_part: Callable[[str], None] = lambda _: None,
) -> PowerPlan:
    """Return how many items each question needs for 80 % power.

    Args:
        config: The assumptions; they win over the pilot's estimates.
        scores: A folder of scores of a pilot.
        runs: Simulated studies at each size.
        on_part: Called with the name of each question before it is simulated.

    Raises:
        ConfigError: Effect or sd are known from neither.
        DataError: The pilot holds too little to estimate from.
    """
    pilot = _read_pilot(scores) if scores is not None else None
    effect = config.effect if pilot is None or config.effect is not None else pilot.effect
    sd = config.sd if pilot is None or config.sd is not None else pilot.sd
    if effect is None or sd is None:
        given = [f"--{name}" for name, x in (("effect", effect), ("sd", sd)) if x is not None]
        got = f"{given[0]} alone" if given else "neither"
        raise ConfigError(
            f"expected --effect and --sd, or a folder of a pilot's scores, got {got}",
            hint="cqa-fast power --help shows both ways",
        )
    if effect <= 0:
        raise ConfigError(
            f"expected an effect above 0 to look for, got a pilot with {effect:+.2f} nats",
            hint="--effect says what would matter",
        )
    icc = pilot.icc if config.icc is None and pilot else config.icc or 0.0
    design = Design(
        d_z=effect / sd,
        icc=icc,
        items_per_source=config.items_per_source or (pilot.items_per_source if pilot else 1),
        n_adapters=config.epochs_swept or (pilot.n_adapters if pilot else 1),
        rho=pilot.rho if pilot else RHO,
        control_d_z=0.0,
        pilot=pilot.values if pilot else (),
    )
    needed = []
    for question, text in QUESTIONS.items():
        on_part(text)
        needed.append(items_needed(design, question, runs=runs))
    own = pilot is not None and config.effect is None
    return PowerPlan(_assumptions(design, effect, sd, pilot, own, runs), design, tuple(needed))


def _read_pilot(folder: Path) -> _Pilot:
    source = read_source(folder)
    settings = source.settings
    config = AnalysisConfig(primary=settings.primary, control=settings.control)
    group = choose_roles(source.scores.items, config).primary
    summary = summarise(source.scores, config, made=source.made)
    found = changes_of(group, source.scores.items[group], source.scores.facts) if group else None
    adapter = summary.highlighted
    if group is None or found is None or adapter is None or adapter not in found.ddi:
        raise DataError(
            "expected a pilot with an adapter that scored all items of a group, got none",
            where=str(folder),
        )
    values = found.ddi[adapter]
    if len(values) < FEWEST or float(values.std()) == 0:
        raise DataError(
            f"expected a pilot of {FEWEST} items or more whose changes differ, got {len(values)}",
            where=str(folder),
        )
    placebos = {name for name, made in source.made.items() if made.placebo}
    candidates = {name: v for name, v in found.ddi.items() if name not in placebos}
    n_sources = len(set(source_numbers(found.sources).tolist()))
    return _Pilot(
        effect=float(values.mean()),
        sd=float(values.std(ddof=1)),
        icc=intraclass(values.tolist(), found.sources),
        items_per_source=max(1, round(len(values) / n_sources)),
        n_adapters=len(candidates),
        rho=_correlation(candidates),
        values=tuple(values.tolist()),
        name=f"{adapter}, {_sized(found)}",
    )


def _sized(changes: Changes) -> str:
    return f"{len(changes.sources)} {changes.group} items"


def _correlation(ddi: dict[str, Values]) -> float:
    """Return the mean correlation of the changes under two adapters, 0 to 1."""
    spread = [values for values in ddi.values() if float(values.std()) > 0]
    if len(spread) < 2:
        return RHO
    table = np.atleast_2d(np.corrcoef(np.stack(spread)))
    return float(np.clip(table[np.triu_indices(len(spread), 1)].mean(), 0, 1))


def _assumptions(
    design: Design, effect: float, sd: float, pilot: _Pilot | None, own: bool, runs: int
) -> tuple[str, ...]:
    shape = f"drawn from the pilot ({pilot.name})" if pilot else "normal"
    said = [
        f"ddI of the primary group {effect:+.3g} nats, sd {sd:.3g}: d_z {design.d_z:.2f}; "
        f"of the control 0, with the same sd",
        f"items {shape}; {design.items_per_source} a source, ICC {design.icc:.2f}",
        f"{design.n_adapters} adapters, all with this effect, correlated {design.rho:.2f}; the "
        f"tests pay for all"
        if design.n_adapters > 1
        else "1 adapter with this effect, for which the tests pay nothing",
        f"the deciding tests at 5 % in {runs} simulated studies a size; per token and agreement of "
        f"readings, which withhold “shown” too, are left out, so that somewhat more is needed",
    ]
    if own:
        said.append(
            "the effect is the pilot's own: pilots that are followed up overstate it; --effect "
            "says what would matter"
        )
    return tuple(said)


def power_text(plan: PowerPlan) -> str:
    """Return the plan as text."""
    rows = [
        [
            QUESTIONS[one.question],
            "more than 20,000" if one.n_items is None else f"{one.n_items:,}",
            "n/a" if one.n_sources is None else f"{one.n_sources:,}",
            "n/a" if one.power is None else f"{100 * one.power:.0f} %",
        ]
        for one in plan.needed
    ]
    head = ["to show, four times in five", "items a group", "sources", "power"]
    assumed = "\n".join(f"  {text}" for text in plan.assumptions)
    return f"{aligned(head, rows)}\n\nassumed:\n{assumed}"
