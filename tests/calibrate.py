"""How often each finding is wrong: rates of error, coverage and power by simulation.

    python tests/calibrate.py [--runs 1000] [--out docs/calibration.md]

Every null is true: changes are drawn about 0 under several laws, with and without sources, for one
and for seven adapters; and taken from real scores, centred. The seed is the number of the run, so
the figures are the same on every machine. `tests/stats/test_calibration.py` runs a small form.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import stats

from cqa.score_folder import read_rows
from cqa.stats import deciding, findings
from cqa.stats.clusters import by_source
from cqa.stats.deciding import family_test
from cqa.stats.equivalence import standardised_change
from cqa.stats.findings import Changes
from cqa.stats.tests import wilcoxon

Values = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Values]
DRAWS = 499  # of each reference law, in place of 9,999: p at 0.05 is the same but for noise
LAWS: dict[str, Draw] = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "t, 3 df": lambda rng, n: rng.standard_t(3, n),
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
    sd = float(np.std(law(np.random.default_rng(0), 400_000)))
    names = design.sources()
    labels = {name: k for k, name in enumerate(dict.fromkeys(names))}
    index = np.array([labels[name] for name in names]) if design.n_sources else None

    def once() -> Values:
        own = law(rng, design.n_items) / sd
        if index is None:
            return own
        return (law(rng, len(labels))[index] / sd + own) / np.sqrt(2)

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
    found["test alone"] = (first.p_greater_corrected or 1.0) <= findings.ALPHA
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
    judge: Callable[[Design, int], dict[str, bool]], design: Design, runs: int
) -> dict[str, float]:
    """Return how often each thing happens in many draws of a design, in percent."""
    usual = deciding.DRAWS, deciding.FEWEST_DRAWS
    deciding.DRAWS = deciding.FEWEST_DRAWS = DRAWS
    try:
        found = [judge(design, run) for run in range(runs)]
    finally:
        deciding.DRAWS, deciding.FEWEST_DRAWS = usual
    return {name: 100 * sum(one[name] for one in found) / runs for name in found[0]}


def table(rows: dict[Design, dict[str, float]]) -> str:
    """Return a Markdown table, a line a design."""
    names = list(next(iter(rows.values())))
    lines = ["| data | " + " | ".join(names) + " |", "|---|" + "--:|" * len(names)]
    for design, row in rows.items():
        cells = " | ".join(f"{row[name]:.1f}" for name in names)
        lines.append(f"| {design} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Simulate everything on all cores and write one page."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--runs", type=int, default=400)
    arguments.add_argument("--out", type=Path, default=Path("docs/calibration.md"))
    arguments.add_argument("--real", type=Path, help="a folder of scores to take changes from")
    settings = arguments.parse_args()
    if settings.real:
        keep_real(settings.real)
    nulls = list(null_designs())
    margins = [Design(law, n) for law in LAWS for n in (150, 350, 1000)]
    margins += [Design(law, 480, 120) for law in LAWS]
    powers = [Design(law, n) for law in LAWS for n in (20, 40)]
    powers += [Design(law, 80, 20) for law in LAWS]
    parts = []
    with ProcessPoolExecutor() as pool:
        for judge, designs, title in (
            (rates, nulls, "Wrong findings where every true effect is 0, in percent"),
            (small_effects, margins, "Effects of d_z = 0.2 called small, in percent"),
            (power, powers, "Power at d_z = 0.5, in percent"),
        ):
            found = pool.map(partial(simulate, judge, runs=settings.runs), designs)
            parts.append(f"## {title}\n\n{table(dict(zip(designs, found, strict=True)))}")
    settings.out.write_text(
        f"# Calibration\n\nWritten by `python tests/calibrate.py --runs {settings.runs}` (seeds 0 "
        f"to {settings.runs - 1}).\n\n" + "\n\n".join(parts) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
