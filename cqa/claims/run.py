"""A study from its files to rows.jsonl, study.json and a figure; a stopped one goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic

from cqa.claims.claim import Asked, Claim, Content, Row, RowsByModel, Task
from cqa.claims.config import ModelsConfig
from cqa.claims.family import RESULT, check_same_base, check_same_study, remembered
from cqa.config import command_line, describe, given_settings, input_paths
from cqa.data.jsonl import read_jsonl
from cqa.data.tokenizer import Tokenizer
from cqa.errors import DataError, ModelError
from cqa.files import AppendedFile, discard, inside, write_json
from cqa.identity import code_digest, versions
from cqa.interrupt import Interrupt, continued_by, stopped_at_once
from cqa.kernels.matmul import keep_sums_whole
from cqa.model.checkpoint import locate
from cqa.model.memory import reported as memory_reported
from cqa.model.origin import check_origin
from cqa.output_folder import check_output, filled, replaced_together
from cqa.report.figure_style import png_bytes, svg_text
from cqa.report.write import write_file
from cqa.schema.claims import StudyResult
from cqa.schema.events import ModelScored, ModelStart, Note, RowsWritten, ScoreEvent, ScoreStart
from cqa.schema.meta import ScoredModel
from cqa.schema.row_forms import CHECKSUM
from cqa.score.adapters import AdapterFolder, check_distinct, digests_of, find_adapters
from cqa.score.decoder_engine import DecoderEngine
from cqa.score.model_identity import CODE, ModelIdentity
from cqa.score_folder import digest_json, with_checksum
from cqa.text import counted, duration

ROWS, FIGURE = "rows.jsonl", "figure"
_PROBED_TOKENS = 256  # fed to measure the rate before the work starts
NOBODY = Asked("", None)  # of rows that are not kept
HINT = "--dtype bf16, or a device with more memory"


@dataclass(slots=True)
class _Study(Generic[Content, Row]):
    """What every model's part of a study shares."""

    claim: Claim[Content, Row]
    config: ModelsConfig
    engine: DecoderEngine
    tasks: list[Task[Content]]
    models: list[ScoredModel]
    adapters: list[AdapterFolder]
    on_event: Callable[[ScoreEvent], None]

    @property
    def budget(self) -> int:
        """Tokens of one pass."""
        return self.config.batch_tokens or self.engine.pass_rows


def run_study(
    claim: Claim[Content, Row],
    config: ModelsConfig,
    *,
    on_event: Callable[[ScoreEvent], None] = lambda _: None,
) -> StudyResult:
    """Ask a base and its adapters, and write rows, result and figure.

    Rows that `config.out` already holds of the same input, model and code are not computed again.
    The tests correct for every model of the family that the folder holds whole.

    Args:
        claim: The study.
        config: Its settings.
        on_event: Called with what happens, for progress.

    Raises:
        CqaError: Anything that the user can mend; see cqa.errors.
    """
    check_output(config.out, "study", input_paths(config))
    check_same_study(config.out, claim.name)
    study = _opened(claim, config, on_event)
    check_same_base(config.out, study.models[0])
    _check_effects(study)
    again = command_line(type(config), f"study {claim.name}", given_settings(config))
    with (
        continued_by(again),
        filled(config.out, "study"),
        AppendedFile(inside(config.out, ROWS)) as file,
    ):
        file.cut_partial_line()
        earlier = remembered(config.out, claim.name, study.models)
        discard(inside(config.out, RESULT))  # it would be of other rows
        models = [*study.models, *earlier]
        held = _held_rows(config.out, claim, {m.model_key for m in models})
        on_event(ScoreStart(n_items=len(study.tasks), n_models=len(study.models)))
        _say_cost(study, held)
        with Interrupt() as interrupt:
            for model, adapter in zip(study.models, (None, *study.adapters), strict=True):
                _ask(study, model, adapter, held, file, interrupt)
            file.sync()
            if interrupt.requested:
                interrupt.stop("stopped before the tests")
        # Nothing of the tests is kept before they end, which may take long: a signal ends them.
        whole = [m for m in models if all((m.model_key, t.key) in held for t in study.tasks)]
        rows = {m.adapter: [held[m.model_key, t.key] for t in study.tasks] for m in whole}
        with stopped_at_once("stopped in the tests"):
            found = claim.result(rows)
        result = replace(
            found, models=tuple(whole), versions=versions(), settings=describe(config)
        )  # fmt: skip
        with Interrupt():
            _write(config.out, claim, rows, result)
    return result


def _opened(
    claim: Claim[Content, Row], config: ModelsConfig, on_event: Callable[[ScoreEvent], None]
) -> _Study[Content, Row]:
    """Read and check all input, then load the base."""
    keep_sums_whole()
    folder = locate(config.model)
    adapters = find_adapters(config)
    engine = DecoderEngine(folder, adapters, device=config.device, dtype=config.dtype)
    tokenizer = Tokenizer(
        folder, null_token=config.null_token, template=config.template,
        allow_special=config.allow_special,
    )  # fmt: skip
    tokenizer.limit_ids(engine.vocab_size)
    tasks = claim.tasks(tokenizer, engine.max_positions)
    with memory_reported("the model", HINT):
        identity = engine.open()
    shared = ModelIdentity.of(identity, tokenizer, boundary="split", score_eos=False)
    own = ("claims/claim.py", "claims/items.py", *claim.code)
    code = [code_digest(*CODE, *own), claim.name, claim.inputs()]
    shared = replace(shared, code=digest_json(code))
    digests = digests_of(adapters)
    check_distinct([adapter.folder for adapter in adapters], digests)
    if not config.other_base:
        for adapter in adapters:
            check_origin(
                adapter.folder, model_digest=identity.model, tokenizer_digest=tokenizer.digest
            )
    models = [shared.model_of(None, None)]
    models += [shared.model_of(a, d) for a, d in zip(adapters, digests, strict=True)]
    return _Study(claim, config, engine, tasks, models, adapters, on_event)


Held = dict[tuple[str, str], Row]


def _held_rows(out: Path, claim: Claim[Content, Row], keys: set[str]) -> Held[Row]:
    """Read the rows of some models, each checked against its own digest."""
    found: Held[Row] = {}
    for where, record in read_jsonl(inside(out, ROWS)):
        checksum = record.pop(CHECKSUM, None)
        if checksum != digest_json(record):
            raise DataError(
                "expected a row as it was written, got another", where=where,
                hint="remove the line; the same command computes it again",
            )  # fmt: skip
        if record.get("model_key") in keys:
            row = claim.row.from_json(record, where)
            found[row.model_key, row.task_key] = row
    return found


def _say_cost(study: _Study[Content, Row], held: Held[Row]) -> None:
    """Say how much is to be done, and how long it takes by a rate measured here and now."""
    left = [
        task.n_tokens
        for model in study.models
        for task in study.tasks
        if (model.model_key, task.key) not in held
    ]
    n_models = counted(len(study.models), "model")
    said = f"{counted(len(study.tasks), 'item')} under {n_models}: {sum(left):,} tokens to feed"
    if sum(left) > _PROBED_TOKENS:
        rate = _measured_rate(study)
        said += f", about {duration(sum(left) / rate)} at {rate:,.0f} tokens/s"
    study.on_event(Note(text=said))


def _measured_rate(study: _Study[Content, Row]) -> float:
    """Return tokens a second of a first few items, whose rows are not kept."""
    probed: list[Task[Content]] = []
    for task in study.tasks:
        probed.append(task)
        if sum(one.n_tokens for one in probed) >= _PROBED_TOKENS:
            break
    study.engine.use(None)
    started = time.perf_counter()
    with memory_reported("the study", HINT):
        study.claim.compute(study.engine, probed, NOBODY)
    return sum(task.n_tokens for task in probed) / (time.perf_counter() - started)


def _ask(
    study: _Study[Content, Row],
    model: ScoredModel,
    adapter: AdapterFolder | None,
    held: Held[Row],
    file: AppendedFile,
    interrupt: Interrupt,
) -> None:
    """Append the missing rows of one model."""
    study.on_event(ModelStart(adapter=model.adapter))
    with memory_reported("the adapter", HINT):
        study.engine.use(adapter)
    if adapter is not None:
        adapter.kept = None
        adapter.check_unchanged(model.adapter_digest)
    left = [task for task in study.tasks if (model.model_key, task.key) not in held]
    for part in _parts(left, study.budget):
        with memory_reported("the study", HINT):
            rows = study.claim.compute(study.engine, part, Asked(model.model_key, model.adapter))
        file.append(b"".join(_line(row.to_json()) for row in rows))
        held |= {(row.model_key, row.task_key): row for row in rows}
        study.on_event(RowsWritten(n=len(rows), n_tokens=sum(t.n_tokens for t in part)))
        if interrupt.requested:
            interrupt.stop("stopped between two passes")
    study.on_event(ModelScored(adapter=model.adapter))


def _parts(tasks: Sequence[Task[Content]], budget: int) -> Iterator[list[Task[Content]]]:
    """Yield tasks in parts of at most `budget` tokens, a longer one alone."""
    part: list[Task[Content]] = []
    n_tokens = 0
    for task in tasks:
        if part and n_tokens + task.n_tokens > budget:
            yield part
            part, n_tokens = [], 0
        part.append(task)
        n_tokens += task.n_tokens
    if part:
        yield part


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(with_checksum(record), ensure_ascii=False).encode() + b"\n"


def _check_effects(study: _Study[Content, Row]) -> None:
    """Refuse an adapter under which every number is the base's: it would pass for a null result.

    Raises:
        ModelError: There is one.
    """
    for adapter in study.adapters:
        if not any(_changes(study, adapter, task) for task in study.tasks):
            raise ModelError(
                "expected an adapter that changes a number, got one under which all are the base's",
                where=str(adapter.folder),
                hint="its B·A may be zero or below the rounding of the weights' dtype",
            )


def _changes(study: _Study[Content, Row], adapter: AdapterFolder, task: Task[Content]) -> bool:
    with memory_reported("the adapter", HINT):
        study.engine.use_silenced(adapter)
        (before,) = study.claim.compute(study.engine, [task], NOBODY)
        study.engine.use(adapter)
        (after,) = study.claim.compute(study.engine, [task], NOBODY)
    return before != after


def _write(
    out: Path, claim: Claim[Content, Row], rows: RowsByModel[Row], result: StudyResult
) -> None:
    figure = claim.draw(rows, result)
    with replaced_together(out) as staged:
        write_file(staged / f"{FIGURE}.svg", svg_text(figure, result.claim))
        write_file(staged / f"{FIGURE}.png", png_bytes(figure))
        write_json(staged / RESULT, result.to_json())
