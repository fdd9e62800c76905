"""A scoring run: base once, adapters swapped in place, rows appended as they are ready."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cqa.config import describe
from cqa.data.tokenizer import Tokenizer
from cqa.errors import DataError, ModelError
from cqa.files import discard, inside, locked, read_json, refuse_held, write_json
from cqa.identity import code_digest, versions
from cqa.interrupt import Interrupt
from cqa.model.adapter import adapter_folder, read_adapter, read_spec
from cqa.model.checkpoint import locate
from cqa.model.config import read_config
from cqa.model.decoder import Decoder
from cqa.model.load import BaseModel, dtype_name, open_model
from cqa.model.lora import LoraSpec, attach, widest
from cqa.model.memory import reported as memory_reported
from cqa.model.origin import check_origin, read_origin
from cqa.run_folder import epoch_folders, missing_epochs, planned_epochs
from cqa.schema.events import ModelScored, ModelStart, Note, RowsWritten, ScoreEvent, ScoreStart
from cqa.schema.result import to_json
from cqa.schema.summary import ScoreSummary
from cqa.score.adapters import adapter_digest, check_distinct, check_has_effect
from cqa.score.config import ScoreConfig
from cqa.score.encoded import Items
from cqa.score.results import Results
from cqa.score.scorer import score_rows
from cqa.score_folder import META, SUMMARY, digest_json, full_key
from cqa.stats.roles import choose_roles
from cqa.stats.summary import Scores, summarise

CODE = ("data/items.py", "score/prefix_batch.py", "score/scorer.py", "stats/information.py")


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """An adapter to score, by the name it has in the results."""

    name: str
    folder: Path
    spec: LoraSpec


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
        found: dict[str, Any] = to_json(self.summary)
        return found


def score(
    config: ScoreConfig,
    *,
    base: BaseModel | None = None,
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
        on_event: Called with what happens, for progress.

    Raises:
        CqaError: Anything that the user can mend; see cqa.errors.
    """
    refuse_held(config.out)
    folder = locate(config.model)
    shape = read_config(folder)
    adapters = find_adapters(config)
    _tell_missing(config, on_event)
    tokenizer = Tokenizer(
        folder,
        null_token=config.null_token,
        template=config.template,
        allow_special=config.allow_special,
    )
    tokenizer.limit_ids(shape.vocab_size)
    items = Items(config, tokenizer, shape.max_positions)
    n_items = items.check()
    if config.summary:
        choose_roles(items.groups, config)  # a group that is named but not there ends the run here
    with memory_reported("the model", "--dtype bf16, or a device with more memory"):
        if base is None:
            columns = widest([adapter.spec for adapter in adapters])
            base = open_model(folder, config.device, config.dtype, rank_columns=columns)
        # a bad adapter ends the run before anything is computed or written
        models = identify(config, base, adapters, items)
    with (
        locked(config.out),
        Interrupt() as interrupt,
        closing(Results(config.out, with_tokens=config.tokens)) as results,
    ):
        results.write_items(items)
        meta = {
            **_environment(config, base.decoder.device),
            "items_digest": items.digest,
            "n_options": items.n_options,
            "n_boundary_merges": items.n_merged,
            "max_positions": items.max_positions,
            "too_long": items.too_long,
        }
        earlier = _earlier_models(config.out, models)
        _write_meta(config.out, meta, models, earlier)
        on_event(ScoreStart(n_items=n_items, n_models=len(models)))
        for text in items.notes():
            on_event(Note(text=text))
        for adapter, model in zip((None, *adapters), models, strict=True):
            name, key = model["adapter"], model["model_key"]
            on_event(ModelStart(adapter=name))
            _attach(base.decoder, adapter, model["adapter_digest"])
            speed = _score_model(items, results, base.decoder, name, key, interrupt, on_event)
            on_event(ModelScored(adapter=name))
            model.update(speed)
        _write_meta(config.out, meta, models, earlier)
        if not config.summary:
            discard(inside(config.out, SUMMARY))  # it would be of other rows
            return ScoreResult(n_items, len(models), None)
        names = {model["model_key"]: model["adapter"] for model in models}
        rows = results.rows(set(names), items)
        scores = Scores(replace(row, adapter=names[row.model_key]) for row in rows)
        summary = ScoreSummary(
            statistics=summarise(scores, config),
            items_digest=items.digest,
            n_too_long=dict(items.n_too_long()),
            model_keys={name or "base": key for key, name in names.items()},
        )
        write_json(inside(config.out, SUMMARY), to_json(summary))
    return ScoreResult(n_items, len(models), summary)


def identify(
    config: ScoreConfig, base: BaseModel, adapters: Sequence[AdapterFolder], items: Items
) -> list[dict[str, Any]]:
    """Return what identifies the base and each adapter, refusing an adapter that cannot be scored.

    Raises:
        ModelError: An adapter does not fit, was trained on another base, comes twice, or changes
            no score.
    """
    shared = {
        **_conventions(config, items.tokenizer),
        "model": base.digest,
        "device": base.decoder.device.type,
        "dtype": dtype_name(base.decoder.dtype),
        "backend": base.decoder.backend,
    }
    digests = [adapter_digest(adapter.folder) for adapter in adapters]
    check_distinct([adapter.folder for adapter in adapters], digests)
    models: list[dict[str, Any]] = []
    for adapter, digest in zip((None, *adapters), (None, *digests), strict=True):
        identity = {**shared, "adapter_digest": digest}
        name = adapter.name if adapter else None
        models.append({"model_key": digest_json(identity), "adapter": name, **identity})
        if adapter:
            if not config.other_base:
                check_origin(
                    adapter.folder,
                    model_digest=base.digest,
                    tokenizer_digest=items.tokenizer.digest,
                )
            check_has_effect(adapter.folder, base.decoder, items.encoded(), items.tokenizer)
            models[-1]["adapter_origin"] = read_origin(adapter.folder)
    return models


def _earlier_models(out: Path, models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the identities behind rows that earlier commands left in the folder."""
    path = inside(out, META)
    if not path.exists():
        return []
    held, keys = read_json(path), {model["model_key"] for model in models}
    known: list[Any] = []
    for part in ("earlier_models", "models"):
        if not isinstance(found := held.get(part, []), list):
            raise DataError(f"expected `{part}` to be an array", where=str(path))
        known += found
    if not all(isinstance(m, dict) and isinstance(m.get("model_key"), str) for m in known):
        raise DataError("expected models with a `model_key`, got others", where=str(path))
    return [model for model in known if model["model_key"] not in keys]


def _write_meta(
    out: Path,
    meta: Mapping[str, Any],
    models: Sequence[Mapping[str, Any]],
    earlier: Sequence[Mapping[str, Any]],
) -> None:
    write_json(inside(out, META), {**meta, "models": models, "earlier_models": earlier})


def _tell_missing(config: ScoreConfig, on_event: Callable[[ScoreEvent], None]) -> None:
    """Say which epochs of a run are not scored because they are not there."""
    if config.run is None or config.epochs:
        return
    if gone := missing_epochs(config.run, planned_epochs(config.run)):
        text = f"{config.run} has no adapter of epoch {', '.join(map(str, gone))}; not scored"
        on_event(Note(text=text))


def _score_model(
    items: Items,
    results: Results,
    decoder: Decoder,
    adapter: str | None,
    model_key: str,
    interrupt: Interrupt,
    on_event: Callable[[ScoreEvent], None],
) -> dict[str, float]:
    """Append the missing rows of one model; return its throughput."""
    config, tokenizer = items.config, items.tokenizer
    started, n_tokens = time.perf_counter(), 0
    done = results.done(model_key)
    passes = score_rows(
        decoder,
        items.encoded(skip=lambda item: full_key(item) in done),
        tokenizer,
        batch_tokens=config.batch_tokens,
        adapter=adapter,
        model_key=model_key,
        tokens=config.tokens,
    )
    for rows, n_fed in passes:
        results.append(rows)
        n_tokens += n_fed
        on_event(RowsWritten(n=len(rows), n_tokens=n_fed))
        if interrupt.requested:
            interrupt.stop("stopped between two passes; the same command continues")
    seconds = time.perf_counter() - started
    return {"n_tokens": n_tokens, "seconds": round(seconds, 6)}


def find_adapters(config: ScoreConfig) -> list[AdapterFolder]:
    """Return the adapters that the settings name, each under a name of its own.

    Raises:
        ModelError: An adapter folder is missing or malformed, or --run holds no such epoch.
    """
    folders = list(config.adapter)
    if config.run is not None:
        folders += _epoch_folders(config.run, config.epochs)
    resolved = [folder.resolve() for folder in folders]
    found = [adapter_folder(folder) for folder in folders]
    return [
        AdapterFolder(_own_name(path, resolved), folder, read_spec(folder))
        for path, folder in zip(resolved, found, strict=True)
    ]


def _own_name(path: Path, others: list[Path]) -> str:
    """Return as many last parts of a path as tell it from the others."""
    for depth in range(1, len(path.parts) + 1):
        name = "/".join(path.parts[-depth:])
        alike = sum(other.parts[-depth:] == path.parts[-depth:] for other in others)
        if alike == 1 and name != "base":
            return name
    raise ModelError("expected each adapter once, got one twice", where=str(path))


def _epoch_folders(run: Path, epochs: tuple[int, ...]) -> list[Path]:
    held = epoch_folders(run)
    if not held:
        raise ModelError("expected a training run with epoch folders, got none", where=str(run))
    for epoch, (first, *more) in held.items():
        if more:
            raise ModelError(
                f"expected epoch {epoch} once, got {first.name} and {more[0].name}", where=str(run)
            )
    for epoch in epochs:
        if epoch not in held:
            names = ", ".join(map(str, held))
            raise ModelError(f"expected epoch {epoch}, got epochs {names}", where=str(run))
    return [held[epoch][0] for epoch in epochs or held]


def _attach(decoder: Decoder, adapter: AdapterFolder | None, digest: str | None) -> None:
    """Make the decoder the base, or the base with an adapter of this digest."""
    decoder.detach_adapter()
    if adapter is None:
        return
    weights = read_adapter(adapter.folder, decoder)
    if adapter_digest(adapter.folder) != digest:
        raise ModelError(
            "expected the adapter as it was at the start, got other bytes",
            where=str(adapter.folder),
            hint="it was written anew during the run; give the same command again",
        )
    attach(decoder, weights)


def _conventions(config: ScoreConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Everything but the weights that decides a score's digits."""
    return {
        "tokenizer": tokenizer.digest,
        "template": tokenizer.chat_template,
        "boundary": config.boundary,
        "null_ids": list(tokenizer.null_ids),
        "null2_ids": list(tokenizer.null2_ids),
        "score_eos": config.score_eos,
        "code": code_digest(*CODE),
    }


def _environment(config: ScoreConfig, device: torch.device) -> dict[str, Any]:
    on_cuda = device.type == "cuda"
    return {
        "settings": describe(config),
        "device": torch.cuda.get_device_name() if on_cuda else platform.machine(),
        "n_threads": torch.get_num_threads(),
        "versions": versions(),
    }
