"""A scoring run: base once, adapters swapped in place, rows appended as they are ready."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import filterfalse
from pathlib import Path
from typing import Any

import torch

from cqa.config import describe
from cqa.data.items import Item, check_ids, read_items
from cqa.data.tokenizer import Tokenizer
from cqa.errors import ModelError
from cqa.files import locked, write_json
from cqa.identity import versions
from cqa.interrupt import Interrupt
from cqa.model.checkpoint import digest_files, locate
from cqa.model.config import read_config
from cqa.model.decoder import Decoder
from cqa.model.load import BaseModel, dtype_name, open_model
from cqa.model.lora import CONFIG, WEIGHTS, LoraSpec, attach, read_adapter, read_spec, widest
from cqa.score.config import ScoreConfig
from cqa.score.forest import EncodedItem, encode_item
from cqa.score.results import META, SUMMARY, Results, digest_json, known_as
from cqa.score.scorer import score_rows
from cqa.score.summary import Scores, summarise

NUMERICS = 2  # raised with every change that can move a digit of a score
Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """An adapter to score, by the name it has in the results."""

    name: str
    folder: Path
    spec: LoraSpec


class Items:
    """The items of a run, read and encoded anew on every pass over them, never all in memory."""

    def __init__(self, config: ScoreConfig, tokenizer: Tokenizer, max_positions: int) -> None:
        self.config, self.tokenizer, self.max_positions = config, tokenizer, max_positions

    def __iter__(self) -> Iterator[Item]:
        yield from read_items(self.config.pairs)
        yield from read_items(self.config.continuations, continuations=True)

    def encoded(self, skip: Callable[[Item], bool] = lambda _: False) -> Iterator[EncodedItem]:
        """Yield the items as token ids, without those to skip."""
        for item in filterfalse(skip, self):
            yield encode_item(
                item,
                self.tokenizer,
                self.config.boundary,
                score_eos=self.config.score_eos,
                max_positions=self.max_positions,
            )

    def check(self) -> int:
        """Read everything once before any work; return how many items there are."""
        return check_ids(encoded.item for encoded in self.encoded())


def score(
    config: ScoreConfig,
    *,
    base: BaseModel | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> dict[str, Any]:
    """Score items under the base and under every adapter; return the summary, if one is asked for.

    Rows that `config.out` already holds for the same texts and models are not computed again. The
    files are read once to check every item before any is computed, once for its text, and once per
    model; no pass keeps more of an item than 21 bytes. The summary keeps a few numbers an item.

    Args:
        config: The settings.
        base: `config.model` if it is loaded already, with room for every adapter; its device and
            dtype then count.
        on_event: Called with {"event": "start" | "model" | "rows" | "scored", …} for progress.

    Raises:
        CqaError: Anything that the user can mend; see cqa.errors.
    """
    folder = locate(config.model)
    adapters = find_adapters(config)
    tokenizer = Tokenizer(folder, null_token=config.null_token, template=config.template)
    items = Items(config, tokenizer, read_config(folder).max_positions)
    n_items = items.check()
    if base is None:
        columns = widest([adapter.spec for adapter in adapters])
        base = open_model(folder, config.device, config.dtype, rank_columns=columns)
    device, dtype = base.decoder.device, base.decoder.dtype
    for found in adapters:  # a bad one ends the run before anything is computed or written
        read_adapter(found.folder, base.decoder)
    with (
        locked(config.out),
        Interrupt() as interrupt,
        closing(Results(config.out, with_tokens=config.tokens)) as results,
    ):
        results.write_items(items)
        shared = {
            **_conventions(config, tokenizer),
            "model": base.digest,
            "device": device.type,
            "dtype": dtype_name(dtype),
            "backend": base.decoder.backend,
        }
        on_event({"event": "start", "n_items": n_items, "n_models": 1 + len(adapters)})
        models = []
        for adapter in (None, *adapters):
            identity = {**shared, "adapter_digest": _attach(base.decoder, adapter)}
            model_key, name = digest_json(identity), adapter.name if adapter else None
            on_event({"event": "model", "adapter": name})
            speed = _score_model(items, results, base.decoder, name, model_key, interrupt, on_event)
            on_event({"event": "scored", "adapter": name})
            models.append({"model_key": model_key, "adapter": name, **identity, **speed})
        write_json(config.out / META, {**_environment(config, device), "models": models})
        if not config.summary:
            (config.out / SUMMARY).unlink(missing_ok=True)  # it would be of other rows
            return {"n_items": n_items, "n_models": len(models)}
        rows = results.rows({model["model_key"] for model in models}, items)
        summary = summarise(Scores(rows), cutoff=config.cutoff, margin_nats=config.margin)
        write_json(config.out / SUMMARY, summary)
    return summary


def _score_model(
    items: Items,
    results: Results,
    decoder: Decoder,
    adapter: str | None,
    model_key: str,
    interrupt: Interrupt,
    on_event: Callable[[Event], None],
) -> dict[str, float]:
    """Append the missing rows of one model; return its throughput."""
    config, tokenizer = items.config, items.tokenizer
    started, n_tokens = time.perf_counter(), 0
    done = results.done(model_key)
    passes = score_rows(
        decoder,
        items.encoded(skip=lambda item: known_as(item) in done),
        tokenizer,
        batch_tokens=config.batch_tokens,
        adapter=adapter,
        model_key=model_key,
        tokens=config.tokens,
    )
    for rows, n_fed in passes:
        results.append(rows)
        n_tokens += n_fed
        on_event({"event": "rows", "n": len(rows), "n_tokens": n_fed})
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
    return [
        AdapterFolder(_own_name(path, resolved), folder, read_spec(folder))
        for path, folder in zip(resolved, folders, strict=True)
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
    names = (path for path in run.glob("epoch-*") if path.name[6:].isdecimal())
    by_number = {int(path.name[6:]): path for path in names}
    if not by_number:
        raise ModelError("expected a training run with epoch folders, got none", where=str(run))
    for epoch in epochs:
        if epoch not in by_number:
            held = ", ".join(map(str, sorted(by_number)))
            raise ModelError(f"expected epoch {epoch}, got epochs {held}", where=str(run))
    return [by_number[epoch] for epoch in epochs or sorted(by_number)]


def _attach(decoder: Decoder, adapter: AdapterFolder | None) -> str | None:
    """Make the decoder the base or base + adapter; return the adapter's digest."""
    if adapter is None:
        decoder.detach_adapter()
        return None
    attach(decoder, read_adapter(adapter.folder, decoder))
    return digest_files([adapter.folder / CONFIG, adapter.folder / WEIGHTS])


def _conventions(config: ScoreConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Everything but the weights that decides a score's digits."""
    return {
        "tokenizer": tokenizer.digest,
        "template": tokenizer.chat_template,
        "boundary": config.boundary,
        "null_ids": list(tokenizer.null_ids),
        "null2_ids": list(tokenizer.null2_ids),
        "score_eos": config.score_eos,
        "numerics": NUMERICS,
    }


def _environment(config: ScoreConfig, device: torch.device) -> dict[str, Any]:
    on_cuda = device.type == "cuda"
    return {
        "settings": describe(config),
        "device": torch.cuda.get_device_name() if on_cuda else platform.machine(),
        "n_threads": torch.get_num_threads(),
        "versions": versions(),
    }
