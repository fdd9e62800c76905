"""A scoring run: base once, adapters swapped in place, rows appended as they are ready."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cqa.config import command_line, describe, given_settings, input_paths
from cqa.data.tokenizer import Tokenizer
from cqa.files import discard, inside, read_json, write_json
from cqa.identity import versions
from cqa.interrupt import Interrupt, continued_by
from cqa.kernels.matmul import keep_sums_whole
from cqa.model.checkpoint import locate
from cqa.model.conversion import read_conversion
from cqa.model.load import BaseModel
from cqa.model.memory import reported as memory_reported
from cqa.model.origin import check_origin
from cqa.output_folder import Kind, check_output, filled
from cqa.ranks import ALONE, Ranks
from cqa.run_folder import missing_epochs, planned_epochs
from cqa.schema.capabilities import Capabilities
from cqa.schema.events import ModelScored, ModelStart, Note, RowsWritten, ScoreEvent, ScoreStart
from cqa.schema.meta import AnyModel, KnownModels, KnownPlan, Meta, ScoredModel
from cqa.schema.provenance import trained_with_other_template
from cqa.schema.summary import ScoreSummary
from cqa.score.adapters import (
    AdapterFolder,
    Room,
    check_distinct,
    digests_of,
    find_adapters,
)
from cqa.score.checked import Checked
from cqa.score.config import ScoreConfig
from cqa.score.effect import check_has_effect
from cqa.score.encoded import Items
from cqa.score.engine import Engine, EngineIdentity
from cqa.score.engines import engine_of
from cqa.score.model_identity import ModelIdentity
from cqa.score.plan import kept_plan
from cqa.score.results import ItemsHeld, Results
from cqa.score.same_base import check_same_base
from cqa.score.scorer import score_rows
from cqa.score.server_engine import ServerEngine
from cqa.score.shard_folder import check_same_shard, shard_items, write_shard
from cqa.score.summary import statistics_digest, write_summary
from cqa.score.unscored import UnscoredItems
from cqa.score_folder import CAPABILITIES, META, SUMMARY, digest_json, full_key
from cqa.stats.roles import choose_roles


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """What a scoring run comes to."""

    n_items: int
    n_models: int
    summary: ScoreSummary | None  # None where none was asked for

    def to_json(self) -> dict[str, Any]:
        """Return summary.json, or without one the counts."""
        if self.summary is None:
            return {"n_items": self.n_items, "n_models": self.n_models}
        return self.summary.to_json()


def score(
    config: ScoreConfig,
    *,
    base: BaseModel | None = None,
    kind: Kind = "scores",
    ranks: Ranks = ALONE,
    checked: Checked | None = None,
    on_event: Callable[[ScoreEvent], None] = lambda _: None,
) -> ScoreResult:
    """Score items under the base and under every adapter; return the summary, if one is asked for.

    Rows that `config.out` already holds for the same texts and models are not computed again. The
    files are read once to check every item before any is computed, once for its text, once per
    model, and once for the summary; no pass keeps more of an item than two entries of
    `Fingerprints`, but for the names of those that are left out. The summary keeps a few numbers an
    item.

    Args:
        config: The settings.
        base: `config.model` if it is loaded already, with room for every adapter; its device and
            dtype then count.
        kind: What the folder is of, where scores are only a part of it; with `config.shard`, what
            the folder that its shards are merged to is of.
        ranks: The processes over which the base is spread; this one is their first.
        checked: Of a shard of a job whose items another process has read and checked.
        on_event: Called with what happens, for progress.

    Raises:
        CqaError: Anything that the user can mend; see cqa.errors.
    """
    held_as: Kind = kind if config.shard is None else "shard"
    check_output(config.out, held_as, input_paths(config))
    if config.plan is not None:
        kept_plan(config.plan)  # a file that is no plan ends the run before anything is done
    folder = locate(config.model, weights=config.at_server is None)
    adapters = find_adapters(config)
    _note_missing_epochs(config, on_event)
    engine = engine_of(
        config, folder, adapters, base, ranks, on_wait=lambda text: on_event(Note(text=text))
    )
    items = checked_items(config, folder, engine, checked)
    keep_sums_whole()
    with memory_reported("the model", "--dtype bf16, or a device with more memory"):
        identity = engine.open()
        # a bad adapter ends the run before anything is computed or written
        models = identify(config, engine, identity, adapters, items)
    check_same_base(config.out, models[0])
    shard = None if config.shard is None else shard_items(items, kind)
    if shard is not None:
        check_same_shard(config.out, shard)
    with (
        continued_by(command_line(ScoreConfig, "score", given_settings(config))),
        Interrupt() as interrupt,
        filled(config.out, held_as),
        closing(Results(config.out, with_tokens=config.tokens)) as results,
    ):
        held = results.write_items(items)
        items.part.rejected.write(config.out)
        if shard is not None:
            write_shard(config.out, shard)
        on_event(ScoreStart(n_items=items.part.n_items, n_models=len(models)))
        served = engine.capabilities if isinstance(engine, ServerEngine) else None
        if served is not None:
            write_json(inside(config.out, CAPABILITIES), served.to_json())
        said = () if served is None else (served.note,)
        for text in (*items.notes(), *_template_notes(models), *said):
            on_event(Note(text=text))
        conversion = read_conversion(folder)
        run = _Run(items, held, results, engine, conversion, served, interrupt, on_event)
        discard(inside(config.out, SUMMARY))  # it would be of another meta.json
        _score_models(run, adapters, models)
        summary = None
        if config.summary and shard is None:  # of a part there are no statistics
            summary = write_summary(config.out, config)
    return ScoreResult(items.part.n_items, len(models), summary)


def _template_notes(models: Sequence[ScoredModel]) -> Iterator[str]:
    if other := trained_with_other_template(models):
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        yield (
            f"{other[0]}{more} trained with another --template than is scored with; what changes "
            "is then also how a model takes the other form"
        )


@dataclass(slots=True)
class _Run:
    """What every model's scoring shares."""

    items: Items
    held: ItemsHeld
    results: Results
    engine: Engine
    conversion: dict[str, Any] | None
    served: Capabilities | None
    interrupt: Interrupt
    on_event: Callable[[ScoreEvent], None]
    unscored: UnscoredItems = field(default_factory=UnscoredItems)


def checked_items(
    config: ScoreConfig,
    model: Path,
    engine: Engine,
    checked: Checked | None = None,
    *,
    n_shards: int = 0,
) -> Items:
    """Return the items, each read once before any work, here or where they were `checked`.

    Args:
        config: The settings.
        model: The folder of the base.
        engine: What is to score them.
        checked: What another process's check has told of these.
        n_shards: How many shards the check is to tell of.
    """
    tokenizer = Tokenizer(
        model,
        null_token=config.null_token,
        template=config.template,
        allow_special=config.allow_special,
        second_null=config.nulls == 2 and config.marginal is None,
    )
    tokenizer.limit_ids(engine.vocab_size)
    items = Items(config, tokenizer, engine.max_positions, checked)
    if checked is None:
        items.check(n_shards)
    if config.summary:
        choose_roles(items.groups, config)  # a group that is named but not there ends the run here
    return items


def _score_models(
    run: _Run, adapters: Sequence[AdapterFolder], models: Sequence[ScoredModel]
) -> None:
    """Append the rows of every model, and write meta.json before the first and after the last."""
    out, timed = run.items.config.out, []
    earlier, plan = _earlier_models(out, models), _plan(run)
    _write_meta(run, models, earlier, plan)
    for model, adapter in zip(models, (None, *adapters), strict=True):
        run.on_event(ModelStart(adapter=model.adapter))
        run.engine.use(adapter)
        if adapter is not None:
            adapter.kept = None
            adapter.check_unchanged(model.adapter_digest)
        timed.append(_score_model(run, model))
        run.on_event(ModelScored(adapter=model.adapter))
    if without := run.unscored.by_id:
        run.unscored.refuse_all(run.held, str(out))
        run.held = run.results.held(item for item in run.items if item.id not in without)
        run.on_event(Note(text=run.unscored.note()))
    _write_meta(run, timed, earlier, plan)


def identify(
    config: ScoreConfig,
    engine: Engine,
    identity: EngineIdentity,
    adapters: Sequence[AdapterFolder],
    items: Items,
) -> list[ScoredModel]:
    """Return what identifies the base and each adapter, refusing an adapter that cannot be scored.

    Raises:
        ModelError: An adapter does not fit, was trained on another base, comes twice, or changes
            no score.
    """
    others = items.other_contexts
    shared = ModelIdentity.of(
        identity,
        items.tokenizer,
        boundary=config.boundary,
        score_eos=config.score_eos,
        null2_digest=None if others is None else others.digest,
    )
    digests = digests_of(adapters)
    check_distinct([adapter.folder for adapter in adapters], digests)
    models: list[ScoredModel] = []
    room = Room.on(torch.device(identity.device)) if adapters else None
    for adapter, digest in zip((None, *adapters), (None, *digests), strict=True):
        model = shared.model_of(adapter, digest)
        if adapter and room:
            if not config.other_base:
                check_origin(
                    adapter.folder,
                    model_digest=identity.model,
                    tokenizer_digest=items.tokenizer.digest,
                )
            check_has_effect(engine, adapter, items.all_encoded(), items.tokenizer)
            room.keep(adapter)
        models.append(model)
    return models


def _earlier_models(out: Path, models: Sequence[ScoredModel]) -> tuple[dict[str, Any], ...]:
    """Return the identities behind rows that earlier commands left in the folder."""
    path = inside(out, META)
    if not path.exists():
        return ()
    held = KnownModels.from_json(read_json(path), str(path))
    keys = {model.model_key for model in models}
    return tuple(
        model
        for model in (*held.earlier_models, *held.models)
        if AnyModel.from_json(model, str(path)).model_key not in keys
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """The analysis plan of a folder, and whether it was there before any row was."""

    held: dict[str, Any] | None
    first: bool


def _plan(run: _Run) -> _Plan:
    """Return the plan that is given, or that an earlier command gave and that so still counts."""
    config = run.items.config
    path = inside(config.out, META)
    held = KnownPlan.from_json(read_json(path), str(path)) if path.exists() else KnownPlan()
    given = kept_plan(config.plan) if config.plan is not None else held.plan
    if given == held.plan:
        return _Plan(given, held.planned_first and given is not None)
    return _Plan(given, run.results.n_held == 0)


def _write_meta(
    run: _Run,
    models: Sequence[ScoredModel],
    earlier: tuple[dict[str, Any], ...],
    plan: _Plan,
) -> None:
    items = run.items
    settings = describe(items.config)
    meta = Meta(
        settings=settings,
        device=_device_name(models[0].device),
        n_threads=torch.get_num_threads(),
        versions=versions(),
        digest=statistics_digest(settings, run.held.digest, models),
        given_digest=items.digest or "",
        items_digest=run.held.digest,
        item_lines=run.held.lines,
        n_options=items.part.n_options,
        n_boundary_merges=items.part.n_merged,
        n_contexts_ending_in_space=items.part.spacing.n_spaced,
        n_options_lacking_space=items.part.spacing.n_unspaced,
        max_positions=items.max_positions,
        too_long=items.part.overlong,
        unscored=run.unscored.by_id,
        n_rejected=len(items.part.rejected),
        models=tuple(models),
        earlier_models=earlier,
        plan=plan.held,
        planned_first=plan.first,
        conversion=run.conversion,
        capabilities=None if run.served is None else digest_json(run.served.to_json()),
    )
    write_json(inside(items.config.out, META), meta.to_json())


def _device_name(device: str) -> str:
    if device == "server":
        return "a server"
    return torch.cuda.get_device_name() if device == "cuda" else platform.machine()


def _note_missing_epochs(config: ScoreConfig, on_event: Callable[[ScoreEvent], None]) -> None:
    """Say which epochs of the runs are not scored because they are not there."""
    if config.epochs:
        return
    for run in config.run:
        if gone := missing_epochs(run, planned_epochs(run)):
            text = f"{run} has no adapter of epoch {', '.join(map(str, gone))}; not scored"
            on_event(Note(text=text))


def _score_model(run: _Run, model: ScoredModel) -> ScoredModel:
    """Append the missing rows of one model; return it with its throughput."""
    items, config = run.items, run.items.config
    started, n_tokens = time.perf_counter(), 0
    done = run.results.done(model.model_key)
    passes = score_rows(
        run.engine.run,
        items.encoded(skip=lambda item: full_key(item) in done),
        items.tokenizer,
        batch_tokens=config.batch_tokens or run.engine.pass_rows,
        adapter=model.adapter,
        model_key=model.model_key,
        tokens=config.tokens,
        on_unscored=run.unscored.add,
        ahead=run.engine.computes_elsewhere,
    )
    with closing(passes):
        for rows, n_fed in passes:
            run.results.append(rows)
            n_tokens += n_fed
            run.on_event(RowsWritten(n=len(rows), n_tokens=n_fed))
            if run.interrupt.requested:
                run.interrupt.stop("stopped between two passes")
    seconds = time.perf_counter() - started
    return replace(model, n_tokens=n_tokens, seconds=round(seconds, 6))
