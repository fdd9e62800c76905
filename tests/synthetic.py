"""Small folders of scores made up from a seed: no model, every kind of item and text."""

import json
import math
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from helpers import write_lines

from cqa.model.adapter_files import CONFIG, WEIGHTS, adapter_digest
from cqa.schema.rows import ItemRow, ItemText
from cqa.score_folder import ItemsDigest, text_key, with_checksum

Row = dict[str, Any]
DOMAINS = {  # of the pairs, in turn: several, one of them of a single item, and none; or one alone
    "literary": ["sea & <i>shore</i>", "city", "sea & <i>shore</i>", None, "city", "moor"],
    "factual": ["history"],
}
HOSTILE = [
    '<b>"R&D"</b> said the sign.',
    "</script><script>alert('x')</script>",
    "שלום, אמרה הילדה.",
    "她把信扔进了炉子。👩‍👩‍👧",
    "A plain line,\nand another | with a bar, a comma; a 'quote' and $x_1$ & 50 % \\ off.",
    "{{ 7 * 7 }} {% raw %} =1+1",
]


def make_items(n: int, *, options: int = 2, dated: bool = True) -> list[Row]:
    """Return n literary, n factual and 4 several-option items, and 2 n continuations."""
    dates = ["2023", "2024-05-02", "2024-06", "2024-09-12", None] if dated else [None]
    items = []
    for k in range(n):
        for group in ("literary", "factual"):
            texts = [f" {HOSTILE[k % 6]} {group} {k}, ending {j}." for j in range(options)]
            items.append(
                _item(f"{group}-{k}", group, "pair" if options == 2 else "options", texts, 0)
                | {"source_id": f"book-{k // 2}", "published_at": dates[k % len(dates)]}
                | {"domain": DOMAINS[group][k % len(DOMAINS[group])]}
            )
        domain = ["news", "popular science"][k % 2]
        items.append(_text(f"text-l{k}", "literary", "novel", k))
        items.append(_text(f"text-f{k}", "factual", domain, k))
    several = [[f" choice {k} {j} of {4 + k % 2}" for j in range(4 + k % 2)] for k in range(4)]
    items += [_item(f"many-{k}", "<i>other</i>", "options", o, 2) for k, o in enumerate(several)]
    return items


def _item(name: str, group: str, kind: str, texts: list[str], answer: int | None) -> Row:
    context = f"Context of {name}: {HOSTILE[len(name) % 6]}"
    return {
        "id": name, "kind": kind, "context": context, "options": texts, "answer": answer,
        "group": group, "lang": "en", "domain": None, "source_id": None, "published_at": None,
    }  # fmt: skip


def _text(name: str, group: str, domain: str, k: int) -> Row:
    texts = [f" A true line number {k}, {HOSTILE[k % 6]}"]
    return _item(name, group, "continuation", texts, None) | {"domain": domain}


def make_rows(items: list[Row], adapters: list[str | None], *, seed: int = 0) -> Iterator[Row]:
    """Yield a row per adapter and item, with per-token values; later adapters drift further."""
    for depth, adapter in enumerate(adapters):
        for number, item in enumerate(items):
            yield make_row(item, adapter, depth, np.random.default_rng([seed, number]))


def make_row(item: Row, adapter: str | None, depth: int, rng: np.random.Generator) -> Row:
    """Return a row of scores.jsonl."""
    options = []
    for k, text in enumerate(item["options"]):
        ends = [*range(4, len(text), 4), len(text)]
        base = -rng.exponential(2.5, (3, len(ends)))
        drift = rng.normal(0, 0.1, (3, len(ends))) * depth
        drift[0] += 0.03 * depth * (k == item["answer"]) * (item["group"] == "literary")
        given, null, null2 = np.minimum(base + drift, -1e-3).tolist()
        role = {"pair": ["good", "bad"], "options": ["right", "wrong"]}.get(item["kind"])
        options.append(
            {
                "role": role[k != item["answer"]] if role else "continuation",
                "logp_given_context_nats": math.fsum(given),
                "logp_null_nats": math.fsum(null),
                "logp_null2_nats": math.fsum(null2),
                "pmi_nats": math.fsum(given) - math.fsum(null),
                "entropy_given_context_nats": (3 - depth * rng.normal(0.1, 0.05)) * len(ends),
                "entropy_null_nats": (3.2 + depth * rng.normal(0, 0.05)) * len(ends),
                "n_tokens": len(ends),
                "n_bytes": len(text.encode()),
                "n_chars": len(text),
                "boundary_merge": text.endswith("ending 0."),
                "token_ids": list(range(len(ends))),
                "token_char_ends": ends,
                "token_logp_given_context_nats": given,
                "token_logp_null_nats": null,
            }
        )
    keys = ("id", "group", "domain", "lang", "source_id", "published_at", "kind", "answer")
    pmi = [option["pmi_nats"] for option in options]
    answer = item["answer"]
    delta = None if answer is None else float(pmi[answer] - np.mean(np.delete(pmi, answer)))
    return {
        **{key: item[key] for key in keys},
        "adapter": adapter, "model_key": key_of(adapter), "item_key": _keyed(item)["item_key"],
        "options": options, "delta_i_nats": delta, "rank_prob": None,
    }  # fmt: skip


def records(rows: Iterable[Row]) -> list[ItemRow]:
    """Return rows as they are read from a file."""
    return [ItemRow.from_json(row, "made up") for row in rows]


def key_of(adapter: str | None) -> str:
    """Return the model key of an adapter."""
    return f"key-of-{adapter or 'base'}"


def make_adapter(folder: Path, name: str) -> Path:
    """Write files in the place of an adapter's."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in (CONFIG, WEIGHTS):
        (folder / file).write_text(name)
    return folder


def digest_of(name: str) -> str:
    """Return the digest of what `make_adapter` writes."""
    with tempfile.TemporaryDirectory() as folder:
        return adapter_digest(make_adapter(Path(folder), name))


def make_model(adapter: str | None, **changes: Any) -> Row:
    """Return what meta.json holds of a model."""
    identity = {
        "model": "a" * 64, "tokenizer": "b" * 64, "template": None, "boundary": "split",
        "null_ids": [0], "null2_ids": [0, 1], "score_eos": False, "code": "e" * 64,
        "device": "cpu", "dtype": "float32", "backend": "native", "n_tokens": 1000, "seconds": 0.5,
    }  # fmt: skip
    digest = None if adapter is None else digest_of(adapter)
    held = {"model_key": key_of(adapter), "adapter": adapter, **identity, "adapter_digest": digest}
    return held | changes


def make_meta(adapters: list[str | None], items: list[Row], **settings: Any) -> Row:
    """Return meta.json of a command that scored all these items."""
    digest = ItemsDigest()
    for item in items:
        digest.add(_keyed(item)["item_key"] + item["id"])
    return {
        "settings": {"model": "models/tiny & <small>", "run": [], "cutoff": None, **settings},
        "device": "x86_64", "n_threads": 1, "versions": {"cqa_fast": "0.1.0", "torch": "2.13.0"},
        "models": [make_model(a) for a in adapters], "earlier_models": [], "digest": "f" * 16,
        "plan": None,
        "planned_first": False, "given_digest": "g" * 64,
        "items_digest": digest.hexdigest(),
        "item_lines": [[1, len(items)]] if items else [], "n_options": 1,
        "n_boundary_merges": 0, "n_contexts_ending_in_space": 0,
        "n_options_lacking_space": 0, "max_positions": 512, "too_long": {}, "unscored": {},
    }  # fmt: skip


def make_folder(
    folder: Path,
    *,
    items: list[Row] | None = None,
    adapters: list[str | None] | None = None,
    tokens: bool = True,
    **settings: Any,
) -> Path:
    """Write scores.jsonl, items.jsonl and meta.json."""
    folder.mkdir(parents=True, exist_ok=True)
    items = make_items(6) if items is None else items
    adapters = [None, "epoch-02", "epoch-04", "epoch-05"] if adapters is None else adapters
    rows = list(make_rows(items, adapters))
    if not tokens:
        for option in (option for row in rows for option in row["options"]):
            for key in [key for key in option if key.startswith("token_")]:
                del option[key]
    write_lines(folder / "scores.jsonl", [with_checksum(row) for row in rows])
    write_lines(folder / "items.jsonl", [_keyed(item) for item in items])
    (folder / "meta.json").write_text(json.dumps(make_meta(adapters, items, **settings)))
    return folder


def _keyed(item: Row) -> Row:
    text = ItemText.from_json({**item, "item_key": ""}, "made up")
    return {**item, "item_key": text_key(text)}


def make_run(folder: Path, epochs: int = 6) -> Path:
    """Write the log and the adapters of a training run."""
    for epoch in range(1, epochs + 1):
        make_adapter(folder / f"epoch-{epoch:02d}", f"epoch-{epoch:02d}")
    write_lines(
        folder / "log.jsonl",
        [
            event
            for epoch in range(1, epochs + 1)
            for event in (
                {"event": "step", "step": epoch, "epoch": epoch, "loss_nats": 4 - 0.3 * epoch},
                {"event": "eval", "epoch": epoch, "eval_loss_nats": 2.7 + 0.3 * epoch},
            )
        ],
    )
    run = {"settings": {"data": "missing.jsonl", "epochs": epochs, "rank": 32}, "n_train": 94,
           "n_validation": 11, "data_digest": "d" * 64, "total_steps": epochs}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def base_folder(path: Path, items: list[dict], *, gain: float = 0.0, seed: int = 0) -> Path:
    """Write scores of a base alone, whose right options have gained so many nats."""
    make_folder(path, items=items, adapters=[None])
    rows = list(make_rows(items, [None], seed=seed))
    for row in rows:
        if row["answer"] is not None:
            option = row["options"][row["answer"]]
            for key in ("logp_given_context_nats", "pmi_nats"):
                option[key] += gain
            row["delta_i_nats"] += gain
        for option in row["options"]:
            for key in [key for key in option if key.startswith("token_")]:
                del option[key]
    write_lines(path / "scores.jsonl", [with_checksum(row) for row in rows])
    return path
