"""How the effect grows with the number of training samples (§3.4, §4.4).

Subsets are nested: per seed one random order of the samples, of which the first 10, 30, 60 and 100
are taken. A seed also decides everything random in training. Two arms answer two questions:

    epoch   every size for the same number of epochs         more data and more steps
    step    every size for as many steps as the largest      more data, the same steps

Each seed gives one mean ddI per size; the interval over seeds holds the chance of subset and
training, not that of the items, which are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from cqa.config import command_line, describe, given_settings, input_paths
from cqa.data.jsonl import raw_lines
from cqa.errors import ConfigError, DataError
from cqa.files import new_file, write_json
from cqa.interrupt import continued_by
from cqa.kernels.philox import SPLIT, permutation, stream_of
from cqa.output_folder import check_output, filled
from cqa.report.tables import plain
from cqa.report.tables import write_csv as to_csv
from cqa.schema.comparison import Comparison
from cqa.schema.events import ScaleEvent, ScoreEvent
from cqa.schema.scale import CurvePoint, Overlong, RunResult, ScaleResult
from cqa.schema.written import Result
from cqa.score.encoded import Items, first_named, left_out_text
from cqa.stats.tests import t_interval
from cqa.study.config import ScaleConfig
from cqa.study.scale_on_ray import Runs, Scored, done_on_ray
from cqa.study.scale_runs import (
    RUNS_FOLDER,
    Cell,
    cells_of,
    settings_of,
    steps_of,
    subset_of,
    train_all,
)
from cqa.study.scale_scores import score_runs, scoring_of
from cqa.text import aligned, counted, interval, listed, named, signed
from cqa.train.plan import Plan, make_plan
from cqa.train.schedule import first_learning_step

RESULT, CURVE, RUNS = "scale.json", "curve.csv", "runs.csv"
MOSTLY_SHARED = 0.5  # of two subsets of one size, from which it is told
_SUBSET = 1  # number of the SPLIT stream that orders samples for subsets; 0 splits off validation


def scale(
    config: ScaleConfig,
    *,
    on_train: Callable[[ScaleEvent], None] = lambda _: None,
    on_score: Callable[[ScoreEvent], None] = lambda _: None,
) -> ScaleResult:
    """Train on every subset and seed, score the adapters, and return the curve.

    The base is loaded once, or once by each actor where the settings name a Ray cluster. What an
    earlier, killed call finished is not done again, and a run that it left goes on from its last
    state; only the scored epoch's adapter of each run is kept. Any number of processes, on machines
    that share the folder, may do the runs of one study: each run is trained by the one that claims
    it, and the scores are those of the first that finds all done.

    Args:
        config: The settings; those of training hold for every run.
        on_train: Called with a `ScaleRun` before each run, and with its training events.
        on_score: Called with the scoring events.

    Raises:
        CqaError: Anything that the user can mend; see cqa.errors.
    """
    check_output(config.out, "scale", input_paths(config), shared=True)
    given, cluster = given_settings(config), config
    config = replace(config, ray=None, ray_actors=ScaleConfig.ray_actors)
    plan = make_plan(config)
    if config.sizes[-1] > len(plan.train):
        raise ConfigError(
            f"expected sizes up to {len(plan.train)}, the samples there are to train on, got: "
            f"{config.sizes[-1]}",
            where=listed(config.data),
            hint="--sizes names others",
        )
    if len(plan.formats) > 1:
        raise ConfigError(
            f"expected samples of one format, got {', '.join(plan.formats)}",
            where=listed(config.data),
            hint="a subset of them is one file; convert them to one format",
        )
    _check_steps(config)
    items = Items(scoring_of(config, ()), plan.tokenizer, plan.shape.max_positions)
    items.check()
    arms = {arm: cells_of(config, arm) for arm in config.arms}
    cells = list(dict.fromkeys(cell for group in arms.values() for cell in group))
    with continued_by(command_line(ScaleConfig, "scale", given)):
        with filled(config.out, "scale", wait=True):
            validation = _write_subsets(config, plan)
            (config.out / RUNS_FOLDER).mkdir(exist_ok=True)
        settings = {cell: settings_of(config, cell, validation) for cell in cells}
        made = Runs(config, settings, plan.spec.rank_columns())
        done = _done_here if cluster.ray is None else done_on_ray
        with (
            done(cluster, made, on_train, on_score) as scores,
            filled(config.out, "scale", wait=True),
        ):
            scored = scores()
            runs = tuple(
                _run_result(config, arm, cell, group, entry)
                for arm, group_of_cells in arms.items()
                for cell in group_of_cells
                for group, entry in scored[cell].items()
            )
            overlong = Overlong(
                config.too_long, plan.affected_ids, items.part.overlong, items.max_positions
            )
            result = ScaleResult(
                unit="nats",
                n_train=len(plan.train),
                runs=runs,
                curve=tuple(_curve(runs)),
                too_long=overlong,
            )
            write_json(config.out / RESULT, {"settings": describe(config), **result.to_json()})
            write_csv(config.out / CURVE, result.curve)
            write_csv(config.out / RUNS, result.runs)
    return result


@contextmanager
def _done_here(
    _: ScaleConfig,
    runs: Runs,
    on_train: Callable[[ScaleEvent], None],
    on_score: Callable[[ScoreEvent], None],
) -> Iterator[Scored]:
    """Train every run in this process; yield what scores them."""
    base = runs.load()
    train_all(runs.config, runs.settings, base, on_train)
    yield lambda: score_runs(runs.config, runs.settings, base, on_score)


def _write_subsets(config: ScaleConfig, plan: Plan) -> str:
    """Write every subset, and the held-out samples if any; return the setting `validation`."""
    lines = {
        where: line.rstrip(b"\r\n") + b"\n"
        for path in config.data
        for where, line in raw_lines(path, config.columns)
    }
    (config.out / "data").mkdir(exist_ok=True)
    for seed in range(config.seed, config.seed + config.seeds):
        order = permutation(seed, 0, stream_of(SPLIT, _SUBSET), len(plan.train))
        for size in config.sizes:
            chosen = [lines[plan.train[i].where] for i in order[:size]]
            _keep(subset_of(config, size, seed), chosen, config.data)
    if not config.validation_share:
        return config.validation
    held = config.out / "data" / "validation.jsonl"
    _keep(held, [lines[sample.where] for sample in plan.validation], config.data)
    return str(held)


def _keep(path: Path, lines: Iterable[bytes], data: Sequence[Path]) -> None:
    """Write samples to a file, which then stays: the runs of any process are of its bytes.

    Raises:
        DataError: It is there with others.
    """
    whole = b"".join(lines)
    if path.exists():
        if path.read_bytes() != whole:
            raise DataError(
                f"expected the data of the study to go on with, got other samples for {path}",
                where=listed(data), hint="another study has another --out",
            )  # fmt: skip
        return
    with new_file(path) as temporary:
        temporary.write_bytes(whole)


def _check_steps(config: ScaleConfig) -> None:
    """Refuse a run that would be scored before a step of it has learned."""
    for cell in (cell for arm in config.arms for cell in cells_of(config, arm)):
        total = steps_of(config, cell.size, cell.epochs)
        first = first_learning_step(total, config.warmup_ratio)
        if first is None or first > (scored := steps_of(config, cell.size, cell.scored_epoch)):
            n = total if first is None else scored
            raise ConfigError(
                f"expected steps that learn in every run, got {counted(n, 'step')} at zero rate "
                f"with {counted(cell.size, 'sample')}",
                hint="more --epochs, a smaller --grad-accum, larger --sizes, or --warmup-ratio 0",
            )


def _run_result(
    config: ScaleConfig, arm: str, cell: Cell, group: str, entry: Comparison
) -> RunResult:
    assert entry.delta_i_nats.change is not None  # no group is empty
    return RunResult(
        arm=arm,
        size=cell.size,
        seed=cell.seed,
        group=group,
        run=cell.name,
        epochs=cell.epochs,
        scored_epoch=cell.scored_epoch,
        steps=steps_of(config, cell.size, cell.scored_epoch),
        n_items=entry.n,
        mean_delta_i_base_nats=entry.delta_i_nats.before,
        mean_delta_i_nats=entry.delta_i_nats.after,
        mean_ddi_nats=entry.delta_i_nats.change,
        d_z=entry.effect.d_z,
        wilcoxon_p=entry.wilcoxon.p,
    )


def _curve(runs: Sequence[RunResult]) -> Iterator[CurvePoint]:
    """Yield mean and t interval over seeds, by arm, size and group."""
    points: dict[tuple[str, int, str], list[RunResult]] = {}
    for run in runs:
        points.setdefault((run.arm, run.size, run.group), []).append(run)
    for (arm, size, group), seeds in points.items():
        ddi = [run.mean_ddi_nats for run in seeds]
        d_z = [run.d_z for run in seeds if run.d_z is not None]
        bounds = t_interval(ddi)
        yield CurvePoint(
            arm=arm,
            size=size,
            group=group,
            n_seeds=len(seeds),
            steps=seeds[0].steps,
            n_items=seeds[0].n_items,
            mean_ddi_nats=float(np.mean(ddi)),
            ci95_low_nats=bounds[0] if bounds else None,
            ci95_high_nats=bounds[1] if bounds else None,
            mean_d_z=float(np.mean(d_z)) if d_z else None,
        )


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """Write results of one class, a line each; what does not exist is an empty cell."""
    rows = [result.to_json() for result in results]
    cells = [["" if v is None else plain(v) for v in row.values()] for row in rows]
    with new_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        to_csv(file, list(rows[0]), cells)


def scale_text(result: ScaleResult) -> str:
    """Return the curve as text: a table per group."""
    head = ["arm", "samples", "steps", "seeds", "ddI nats", "95 % CI", "d_z"]
    parts = []
    for group in dict.fromkeys(point.group for point in result.curve):
        points = [point for point in result.curve if point.group == group]
        rows = [
            [
                p.arm, str(p.size), str(p.steps), str(p.n_seeds), signed(p.mean_ddi_nats),
                _interval(p), signed(p.mean_d_z),
            ]
            for p in points
        ]  # fmt: skip
        parts.append(
            f"{named(group)}: {counted(points[0].n_items, 'item')}\n" + aligned(head, rows)
        )
    parts.append(
        "ddI and d_z: means over seeds, which draw subsets and training; the interval is t over\n"
        "seeds and does not hold the chance of the items."
    )
    parts += _overlap_text(result)
    parts += _overlong_text(result.too_long)
    return "\n\n".join(parts)


def _overlap_text(result: ScaleResult) -> Iterator[str]:
    """Say of which sizes the subsets share most of their samples by construction."""
    shared = {p.size: p.size / result.n_train for p in result.curve}
    large = [size for size, share in shared.items() if share > MOSTLY_SHARED]
    if large:
        sizes = ", ".join(f"{size} ({100 * shared[size]:.0f} %)" for size in sorted(large))
        yield (
            f"Subsets are drawn from the same {result.n_train} samples; two of a size share "
            f"that share of\ntheir samples on average: {sizes}. There the interval over seeds is "
            f"too narrow by construction."
        )


def _overlong_text(overlong: Overlong) -> Iterator[str]:
    """Say which samples and items were not taken as they stand in the files."""
    if ids := overlong.samples:
        done = "left out" if overlong.policy == "drop" else "prompt cut at its start"
        noun = "sample" if len(ids) == 1 else "samples"
        yield f"{done}, over --max-tokens: {len(ids)} {noun} {first_named(ids, RESULT)}"
    if overlong.items:
        yield left_out_text(overlong.items, overlong.max_positions, RESULT)


def _interval(point: CurvePoint) -> str:
    low, high = point.ci95_low_nats, point.ci95_high_nats
    return interval(None if low is None or high is None else (low, high))
