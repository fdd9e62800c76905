"""How often each finding is wrong: rates of error, coverage and power by simulation.

    python tests/calibrate.py [--runs 200] [--again 600] [--out docs/calibration.md]

Every null is true: changes are drawn about 0 under several laws, with and without sources, for one
and for seven adapters; and taken from real scores, centred. The seed is the number of the run, so
the figures are the same on every machine. Data under which a figure misses its mark are drawn anew,
more often and with other seeds, and those figures are the ones that stand: among so many some miss
by chance alone. `tests/stats/test_calibration.py` runs a small form.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import stats

from cqa.score_folder import read_rows
from cqa.stats import choice, deciding, findings
from cqa.stats.clusters import by_source
from cqa.stats.deciding import difference_test, family_test
from cqa.stats.equivalence import standardised_change
from cqa.stats.findings import Changes
from cqa.stats.marks import ALPHA
from cqa.stats.resampling import bca_interval
from cqa.stats.seeds import over_seeds
from cqa.stats.shrinkage import shrinkage
from cqa.stats.tests import cohen_d_z, d_z_interval, t_interval, welch, wilcoxon, wilson_interval

Values = npt.NDArray[np.float64]
Interval = tuple[float, float] | None
Draw = Callable[[np.random.Generator, int], Values]
DRAWS = 499  # of each reference law, in place of 9,999: p at 0.05 is the same but for noise
MOST_WRONG = 7.0  # percent: the mark of what happens in 5 % by its name
MOST_MISSED = 8.0  # percent: the mark of an interval of 95 %
LAWS: dict[str, Draw] = {  # each of variance 1
    "normal": lambda rng, n: rng.standard_normal(n),
    "t, 3 df": lambda rng, n: rng.standard_t(3, n) / np.sqrt(3),
    "left-skewed": lambda rng, n: 1 - rng.exponential(size=n),
    "right-skewed": lambda rng, n: rng.exponential(size=n) - 1,
}
REAL = Path(__file__).parent / "golden" / "real_changes.npz"  # written by --real


@dataclass(frozen=True)
class Design:
    """One kind of data whose true effects are 0."""

    law: str
    n_items: int
    n_sources: int | None = None  # None: every item is a source of its own
    equal: bool = True
    n_adapters: int = 1

    def __str__(self) -> str:
        """Say it in a table."""
        sources = "" if self.n_sources is None else (
            f", {self.n_sources} {'equal' if self.equal else 'unequal'} sources"
        )  # fmt: skip
        adapters = "1 adapter" if self.n_adapters == 1 else f"{self.n_adapters} adapters"
        return f"{self.law}, n = {self.n_items}{sources}, {adapters}"

    def sources(self) -> list[str | None]:
        """Return the source of each item; unequal ones fall as 1, 1/2, 1/3 …"""
        if self.n_sources is None:
            return [None] * self.n_items
        weights = np.ones(self.n_sources) if self.equal else 1 / np.arange(1, self.n_sources + 1)
        ends = np.round(np.cumsum(weights) / weights.sum() * self.n_items).astype(int)
        return [f"s{k}" for k in np.searchsorted(ends, np.arange(self.n_items), side="right")]


def draw(design: Design, rng: np.random.Generator, effect: float = 0.0) -> dict[str, Values]:
    """Return unit-variance changes under each adapter; intraclass correlation 0.5 in sources.

    Adapters of one run resemble each other: their correlation is 0.5 too.
    """
    if design.law.startswith("real"):
        return _draw_real(design, rng)
    law = LAWS[design.law]
    names = design.sources()
    labels = {name: k for k, name in enumerate(dict.fromkeys(names))}
    index = np.array([labels[name] for name in names]) if design.n_sources else None

    def once() -> Values:
        own = law(rng, design.n_items)
        if index is None:
            return own
        return (law(rng, len(labels))[index] + own) / np.sqrt(2)

    common = once()
    if design.n_adapters == 1:
        return {"a0": common + effect}
    return {f"a{k}": (common + once()) / np.sqrt(2) + effect for k in range(design.n_adapters)}


def _draw_real(design: Design, rng: np.random.Generator) -> dict[str, Values]:
    with np.load(REAL) as held:
        table = held[design.law.removeprefix("real, ")].astype(np.float64)  # (adapters, items)
    table -= table.mean(axis=1, keepdims=True)
    picks = rng.integers(0, table.shape[1], design.n_items)
    first = rng.integers(0, len(table))
    return {f"a{k}": table[(first + k) % len(table)][picks] for k in range(design.n_adapters)}


def changes_of(design: Design, rng: np.random.Generator, group: str) -> Changes:
    """Return all that a verdict is asked about, every true effect 0.

    d_prior is drawn on its own and d_cond is what makes ddI; per token, items are of 10 to 60
    tokens; the second null and the entropies correlate with ddI.
    """
    ddi, noise = draw(design, rng), draw(design, rng)
    lengths = rng.integers(10, 60, design.n_items)
    blend = {k: (ddi[k] + noise[k]) / np.sqrt(2) for k in ddi}
    return Changes(
        group=group,
        sources=design.sources(),
        ddi=ddi,
        ddi_null2=blend,
        ddi_per_token={k: v / lengths for k, v in ddi.items()},
        d_cond={k: ddi[k] + noise[k] for k in ddi},
        d_prior=noise,
        entropy_given=noise,
        entropy_null={k: blend[k] / 10 for k in ddi},
        delta_i=ddi,
    )


def rates(design: Design, run: int) -> dict[str, bool]:
    """Judge one draw: which findings are wrong, and what the paper's tests say."""
    rng = np.random.default_rng((run, 5))
    primary, control = changes_of(design, rng, "literary"), changes_of(design, rng, "factual")
    live = {k: c for k, c in primary.ddi_family.changes.items() if c.p_greater is not None}
    best = min(live, key=lambda k: live[k].p_greater or 1.0)
    first = live[best]
    asked = {
        "change": findings.change(primary, best),
        "selective": findings.selective(primary, control, best),
        "conditional": findings.conditional(primary, best),
        "entropy": findings.entropy(primary, best),
    }
    found = {f"{name} shown": one.mark == "shown" for name, one in asked.items()}
    found["change against"] = asked["change"].mark == "against"
    found["test alone"] = (first.p_greater_corrected or 1.0) <= ALPHA
    ci95 = first.ci95 or (0.0, 0.0)
    found["interval misses"] = not ci95[0] <= 0 <= ci95[1]
    values = primary.ddi[best]
    found["paper's Wilcoxon"] = wilcoxon(values.tolist()).p <= 0.05
    found["paper's t"] = float(stats.ttest_1samp(values, 0, alternative="greater").pvalue) <= 0.05
    return found


def small_effects(design: Design, run: int) -> dict[str, bool]:
    """Judge one draw whose true d_z is the margin: is it called small?"""
    values = draw(design, np.random.default_rng((run, 6)), effect=0.2)["a0"]
    found = standardised_change(values, design.sources())
    return {"called small": found.within(0.2)}


def power(design: Design, run: int) -> dict[str, bool]:
    """Judge one draw with a true effect of d_z = 0.5 by the deciding test and by the paper's."""
    values = draw(design, np.random.default_rng((run, 7)), effect=0.5)["a0"]
    test = family_test(by_source({"a0": values}, design.sources())).changes["a0"]
    return {
        "deciding test": (test.p_greater or 1.0) <= 0.05,
        "paper's Wilcoxon": wilcoxon(values.tolist()).p <= 0.05,
        "paper's t": float(stats.ttest_1samp(values, 0, alternative="greater").pvalue) <= 0.05,
    }


def misses(design: Design, run: int) -> dict[str, bool]:
    """Judge one draw: which of the intervals that are printed leave out what is true.

    The adapter is the first and not the best, but for the intervals that pay for the choice. Of
    90 % intervals each end is asked by itself, so that 5 % is what its name says.
    """
    rng = np.random.default_rng((run, 8))
    primary, control = changes_of(design, rng, "literary"), changes_of(design, rng, "factual")
    sources, ddi, other = primary.sources, primary.ddi["a0"], control.ddi["a0"]
    labels = None if design.n_sources is None else [str(name) for name in sources]
    test = primary.ddi_family.changes
    groups = difference_test(primary.clusters(primary.ddi), control.clusters(control.ddi)).changes
    size = standardised_change(ddi, sources)
    d_z = cohen_d_z(ddi.tolist()) or 0.0
    found = {
        "deciding, all adapters": any(_out(one.ci95, 0.0) for one in test.values()),
        "deciding, groups": any(_out(one.ci95, 0.0) for one in groups.values()),
        "deciding, 90 %, low": test["a0"].ci90 is not None and test["a0"].ci90[0] > 0,
        "deciding, 90 %, high": test["a0"].ci90 is not None and test["a0"].ci90[1] < 0,
        "d_z, 90 %, low": size.ci90 is not None and size.ci90[0] > 0,
        "d_z, 90 %, high": size.ci90 is not None and size.ci90[1] < 0,
        "BCa by source": _out(bca_interval(ddi.tolist(), clusters=labels, draws=999), 0.0),
        "t": _out(t_interval(ddi.tolist()), 0.0),
        "BCa": _out(bca_interval(ddi.tolist(), draws=999), 0.0),
        "Welch": _out(welch(ddi.tolist(), other.tolist()).ci95, 0.0),
        "noncentral t of d_z": _out(d_z_interval(d_z, len(ddi)), 0.0),
    }
    return found | _beside(design, rng, primary)


def _beside(design: Design, rng: np.random.Generator, primary: Changes) -> dict[str, bool]:
    """Judge the intervals of choice, seeds, shrinkage and shares."""
    sources = primary.sources
    before = draw(design, rng)["a0"] * 3 + 1
    line = shrinkage(before.tolist(), (0.8 * before + primary.ddi["a0"]).tolist(), sources)
    seeds = [v + 0.3 * rng.standard_normal() for v in list(primary.ddi.values())[:3]]
    several = over_seeds([v.tolist() for v in seeds], sources) if len(seeds) > 1 else None
    fitted = choice.cross_fit(primary.ddi, sources) if len(seeds) > 1 else None
    chosen: Interval = None
    if fitted is not None:
        chosen = family_test(by_source({"": fitted.values}, sources)).changes[""].ci95
    median = MEDIANS.get(design.law)
    share: dict[str, bool] = {}
    if median is not None:
        hits = int((primary.ddi["a0"] > median).sum())
        share["Wilson"] = _out(wilson_interval(hits, design.n_items), 0.5)
    return share | {
        "cross-fitted": _out(chosen, 0.0),
        "over seeds": several is not None and _out(several.ci95, 0.0),
        "shrinkage, slope": line is not None and _out(line.slope_ci95, 0.8),
        "shrinkage, rest": line is not None and _out(line.rest_ci95_nats, 0.0),
    }


MEDIANS = {"normal": 0.0, "t, 3 df": 0.0}  # also of sums; that of skewed sums is not known


def _out(interval: Interval, truth: float) -> bool:
    return interval is not None and not interval[0] <= truth <= interval[1]


def covered_designs() -> Iterator[Design]:
    """Yield the data that intervals are asked of."""
    for law in LAWS:
        for n in (20, 40, 350):
            yield Design(law, n, n_adapters=7)
        for n_sources in (12, 40):
            for equal in (True, False):
                yield Design(law, 4 * n_sources, n_sources, equal, 7)


def null_designs() -> Iterator[Design]:
    """Yield every kind of data that a finding must survive."""
    for law in LAWS:
        for adapters in (1, 7):
            for n in (20, 40, 350):
                yield Design(law, n, n_adapters=adapters)
            for n_sources in (5, 12, 40):
                for equal in (True, False):
                    yield Design(law, 4 * n_sources, n_sources, equal, adapters)
    for law in ("real, literary", "real, factual", "real, random adapters"):
        for n in (20, 40, 350):
            yield Design(law, n)


def keep_real(folder: Path) -> None:
    """Write the ddI of real items under real and random adapters, centred: what nulls draw from.

    Args:
        folder: A folder of scores; an adapter whose name begins with `r` has random weights.
    """
    scores: dict[tuple[str, str | None], dict[str, float]] = {}
    for row in read_rows(folder / "scores.jsonl"):
        if row.delta_i_nats is not None:
            scores.setdefault((row.group, row.adapter), {})[row.id] = row.delta_i_nats
    tables: dict[str, list[Values]] = {}
    for (group, adapter), values in scores.items():
        base = scores[group, None]
        shared = sorted(set.intersection(*(set(v) for (g, _), v in scores.items() if g == group)))
        if adapter is None:
            continue
        ddi = np.array([values[k] - base[k] for k in shared])
        name = "random adapters" if adapter.startswith("r") else group
        tables.setdefault(name, []).append(ddi - ddi.mean())
    shortest = {name: min(map(len, rows)) for name, rows in tables.items()}
    np.savez_compressed(
        REAL,
        **{
            name: np.stack([row[: shortest[name]] for row in rows]).astype(np.float32)
            for name, rows in tables.items()
        },
    )


def simulate(
    judge: Callable[[Design, int], dict[str, bool]], design: Design, runs: int, first: int = 0
) -> dict[str, float]:
    """Return how often each thing happens in many draws of a design, in percent.

    Args:
        judge: Judges one draw by its number, which is its seed.
        design: The data.
        runs: How many draws.
        first: The number of the first.
    """
    usual = deciding.DRAWS, deciding.FEWEST_DRAWS
    deciding.DRAWS = deciding.FEWEST_DRAWS = DRAWS
    try:
        found = [judge(design, run) for run in range(first, first + runs)]
    finally:
        deciding.DRAWS, deciding.FEWEST_DRAWS = usual
    return {name: 100 * sum(one[name] for one in found) / runs for name in found[0]}


@dataclass(frozen=True)
class Part:
    """One table: what is judged, of which data, and what is too often."""

    title: str
    judge: Callable[[Design, int], dict[str, bool]]
    designs: tuple[Design, ...]
    most: float | None = None  # percent
    exempt: tuple[str, ...] = ()  # figures without a mark: the paper's, and what is built on them

    def missed(self, row: dict[str, float]) -> bool:
        """Say whether a figure misses its mark."""
        marked = (value for name, value in row.items() if name not in self.exempt)
        return self.most is not None and max(marked) > self.most


def simulated(part: Part, design: Design, runs: int, again: int) -> tuple[dict[str, float], int]:
    """Return the figures of a design, and of how many draws they are."""
    row = simulate(part.judge, design, runs)
    if not part.missed(row) or not again:
        return row, runs
    return simulate(part.judge, design, again, first=runs), again


def table(part: Part, rows: dict[Design, tuple[dict[str, float], int]]) -> str:
    """Return a Markdown table, a line a design; what misses its mark is bold."""
    names = list(dict.fromkeys(name for row, _ in rows.values() for name in row))
    lines = ["| data | draws | " + " | ".join(names) + " |", "|---|--:|" + "--:|" * len(names)]
    for design, (row, runs) in rows.items():
        cells = []
        for name in names:
            if name not in row:
                cells.append("–")
                continue
            misses_mark = part.most is not None and row[name] > part.most
            bold = "**" if misses_mark and name not in part.exempt else ""
            cells.append(f"{bold}{row[name]:.1f}{bold}")
        lines.append(f"| {design} | {runs} | {' | '.join(cells)} |")
    return "\n".join(lines)


PAPERS = ("paper's Wilcoxon", "paper's t")
AS_INDEPENDENT = ("t", "BCa", "Welch", "noncentral t of d_z", "Wilson")


def parts() -> tuple[Part, ...]:
    """Return all tables."""
    margins = [Design(law, n) for law in LAWS for n in (150, 350, 1000)]
    margins += [Design(law, 480, 120, equal) for law in LAWS for equal in (True, False)]
    powers = [Design(law, n) for law in LAWS for n in (20, 40)]
    powers += [Design(law, 4 * g, g) for law in LAWS for g in (12, 40)]
    return (
        Part(
            f"Wrong findings where every true effect is 0, in percent (mark: {MOST_WRONG:g})",
            rates,
            tuple(null_designs()),
            MOST_WRONG,
            PAPERS,
        ),
        Part(
            f"Intervals that leave out what is true, in percent (mark: {MOST_MISSED:g}; those that "
            f"take items as independent have none)",
            misses,
            tuple(covered_designs()),
            MOST_MISSED,
            AS_INDEPENDENT,
        ),
        Part(
            f"Effects of d_z = 0.2 called small, in percent (mark: {MOST_WRONG:g})",
            small_effects,
            tuple(margins),
            MOST_WRONG,
        ),
        Part("Power at d_z = 0.5, in percent", power, tuple(powers)),
    )


def held_or_simulated(
    part: Part, design: Design, runs: int, again: int, folder: Path
) -> tuple[dict[str, float], int]:
    """Return the figures of a design, kept in a file, so that a stopped calibration loses none."""
    name = f"{part.judge.__name__}, {design}, {runs}, {again}"
    path = folder / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(simulated(part, design, runs, again)), encoding="utf-8")
    row, n = json.loads(path.read_text(encoding="utf-8"))
    return row, n


def page(rows: dict[str, dict[Design, tuple[dict[str, float], int]]], runs: int, again: int) -> str:
    """Return the page on the figures that there are; data without figures are counted."""
    errors = [100 * (0.05 * 0.95 / n) ** 0.5 for n in (runs, again)]
    lacking = sum(d not in rows[part.title] for part in parts() for d in part.designs)
    left = (
        f"\n\nOf {lacking} kinds of data there are no figures yet; the same command goes on there."
        if lacking
        else ""
    )
    sections = [f"## {part.title}\n\n{table(part, rows[part.title])}" for part in parts()]
    return (
        f"# Calibration\n\nWritten by `make calibrate`: {runs} draws of each kind of data, seeds 0 "
        f"to {runs - 1}; where a figure misses its mark they are drawn anew {again} times, with "
        f"seeds {runs} to {runs + again - 1}, and only these figures stand. The Monte Carlo error "
        f"of 5 % is {errors[0]:.1f} points in {runs} draws, {errors[1]:.1f} in {again}. Figures "
        f"beyond their mark are bold. What each means: statistics.md.{left}\n\n"
        + "\n\n".join(sections)
        + "\n"
    )


def main() -> None:
    """Simulate everything and write one page."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--runs", type=int, default=200)
    arguments.add_argument("--again", type=int, default=600, help="draws where a mark is missed")
    arguments.add_argument("--out", type=Path, default=Path("docs/calibration.md"))
    arguments.add_argument("--held", type=Path, default=Path("build/calibration"))
    arguments.add_argument("--processes", type=int, help="by default one a core")
    arguments.add_argument("--real", type=Path, help="a folder of scores to take changes from")
    settings = arguments.parse_args()
    if settings.real:
        keep_real(settings.real)
    runs, again = settings.runs, settings.again
    figures = partial(held_or_simulated, runs=runs, again=again, folder=settings.held)
    rows: dict[str, dict[Design, tuple[dict[str, float], int]]] = {}
    with ProcessPoolExecutor(settings.processes) as pool:
        for part in parts():
            found = pool.map(partial(figures, part), part.designs)
            rows[part.title] = dict(zip(part.designs, found, strict=True))
    settings.out.write_text(page(rows, runs, again), encoding="utf-8")


if __name__ == "__main__":
    main()
