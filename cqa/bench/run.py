"""A benchmark of the present device: ceilings first, then level by level."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from cqa.bench.against import compare_scores, compare_steps
from cqa.bench.config import BenchConfig, Job, Window
from cqa.bench.device import Ceilings, describe_device, measure_ceilings
from cqa.bench.kernels import measure_head, measure_ops, measure_strides
from cqa.bench.ops import Bench
from cqa.bench.results import Benchmark, Line, Unmeasured
from cqa.bench.score import measure_job
from cqa.bench.shapes import BenchModel, check_fits, workload
from cqa.bench.step import measure_step
from cqa.config import describe, input_paths
from cqa.files import write_json
from cqa.kernels.backend import compute_dtype, fastest
from cqa.model.load import check_weights_fit, dtype_name, pick_device, pick_dtype
from cqa.model.memory import give_back
from cqa.model.memory import reported as memory_reported
from cqa.output_folder import check_output_file
from cqa.schema.events import BenchEvent, BenchPart, BenchResult

FORMAT = 1  # of the JSON


def bench(
    config: BenchConfig, *, on_event: Callable[[BenchEvent], None] = lambda _: None
) -> Benchmark:
    """Measure what the settings name.

    The file, if one is asked for, is written anew with each result, so that a run which is cut
    short leaves what it had.

    Args:
        config: The settings.
        on_event: Called as parts begin, and for each line measured.

    Raises:
        CqaError: The device or the model is not there, or a text does not fit the model.
    """
    if config.out is not None:
        check_output_file(config.out, ["ceilings"], input_paths(config))
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    bench_model = BenchModel(config.shape, config.model, config.rank, str(device), dtype)
    shape = bench_model.config
    windows, jobs = workload(config, device)
    check_fits(shape, windows, jobs)
    check_weights_fit(shape, bench_model.spec.rank_columns(), dtype, device)
    with memory_reported("the benchmark", "a smaller --shape, --window or --job"):
        on_event(BenchPart(name="ceilings"))
        wide = compute_dtype(fastest(device, dtype), dtype)
        ceilings = measure_ceilings(device, wide, config.seconds)
        data = Benchmark(
            format=FORMAT,
            settings=describe(config),
            windows=tuple(map(str, windows)),
            jobs=tuple(map(str, jobs)),
            dtype=dtype_name(dtype),
            device=describe_device(device),
            ceilings=ceilings,
        )
        record = _Record(data, config, on_event)
        _measure(record, bench_model, config, windows, jobs, ceilings)
    return record.data


class _Record:
    """What was measured so far, kept in the file that was asked for."""

    def __init__(
        self, data: Benchmark, config: BenchConfig, on_event: Callable[[BenchEvent], None]
    ) -> None:
        self.data, self._out, self._on_event = data, config.out, on_event
        self._write()

    def keep(self, level: str, part: str, lines: Iterable[Line]) -> None:
        """Add the lines of a part as they come, each to the file at once."""
        self._on_event(BenchPart(name=f"{level}: {part}"))
        kept = self.data.lines.setdefault(level, {}).setdefault(part, [])
        for line in lines:
            kept.append(line)
            self._write()
            why = line.problem if isinstance(line, Unmeasured) else None
            self._on_event(BenchResult(level=level, part=part, name=line.name, unmeasured=why))

    def _write(self) -> None:
        if self._out is not None:
            self._out.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._out, self.data.to_json())


def _measure(
    record: _Record,
    bench_model: BenchModel,
    config: BenchConfig,
    windows: list[Window],
    jobs: list[Job],
    ceilings: Ceilings,
) -> None:
    seconds = config.seconds
    if "step" in config.levels or "score" in config.levels:
        decoder = bench_model.decoder()
        if "step" in config.levels:
            steps = (
                measure_step(decoder, bench_model.spec, window, config, ceilings)
                for window in windows
            )
            record.keep("step", "windows", steps)
        if "score" in config.levels:
            scored = (measure_job(decoder, bench_model.spec, job, config, ceilings) for job in jobs)
            record.keep("score", "jobs", scored)
        del decoder
        give_back()
    if "kernel" in config.levels:
        layer = Bench.of(bench_model, windows[0], config.dropout)
        record.keep("kernel", "ops", measure_ops(layer, ceilings, seconds))
        record.keep("kernel", "products", measure_strides(layer, ceilings, seconds))
        record.keep("kernel", "head", measure_head(layer, ceilings, seconds))
        del layer
        give_back()
    if config.peers and "step" in config.levels:
        compared = compare_steps(bench_model, windows[0], config, folder=config.model)
        record.keep("step", "peers", compared)
    if config.peers and "score" in config.levels:
        job = replace(jobs[0], models=1)
        record.keep("score", "peers", compare_scores(bench_model, job, config))
