"""What stands beside an adapter for whoever finds it: its tokenizer, and a model card.

The card has the form of PEFT's: front matter that the Hugging Face hub reads, then text. Neither is
part of the adapter's digest, and nothing here reads them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from cqa.data.tokenizer_files import TOKENIZER_FILES
from cqa.errors import ModelError
from cqa.escape import for_markdown
from cqa.model.checkpoint import copy_file
from cqa.model.conversion import read_conversion
from cqa.reading import CARD, read_card_head
from cqa.schema.events import Eval
from cqa.schema.run import RunRecord
from cqa.text import counted
from cqa.train.placebo import PLACEBO_TEXT
from cqa.train.plan import Plan

RECIPE = (  # settings that a reader asks for
    "rank", "alpha", "rslora", "targets", "dropout", "epochs", "micro-batch", "grad-accum", "lr",
    "warmup-ratio", "max-grad-norm", "weight-decay", "neftune-alpha", "loss-on", "seed",
)  # fmt: skip


def tokenizer_files(base: Path) -> list[Path]:
    """Return the files of a model folder that make its tokenizer."""
    return [path for name in TOKENIZER_FILES if (path := base / name).is_file()]


def write_beside(
    folder: Path, plan: Plan, run: RunRecord, epoch: int, eval_loss: Eval | None
) -> None:
    """Write tokenizer and card into an adapter's folder.

    Args:
        folder: Where the adapter is.
        plan: The run.
        run: What run.json holds of it.
        epoch: The adapter's, 0 before the first step.
        eval_loss: The held-out loss at that epoch, if there is one.
    """
    for path in tokenizer_files(plan.folder):
        copy_file(path, folder / path.name)
    text = "\n".join(_card(plan, run, epoch, eval_loss)) + "\n"
    (folder / CARD).write_text(text, encoding="utf-8")


def _card(plan: Plan, run: RunRecord, epoch: int, eval_loss: Eval | None) -> Iterator[str]:
    import yaml

    base, licence = plan.config.model, base_licence(plan.folder)
    head = {
        "base_model": base,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "transformers"],
    }
    if licence is not None:
        head["license"] = licence
    yield f"---\n{yaml.safe_dump(head, allow_unicode=True, sort_keys=True)}---\n"
    of_all = f"epoch {epoch} of {plan.config.epochs}" if epoch else "before the first step"
    yield f"# LoRA adapter of {for_markdown(base)}, {of_all}\n"
    version = run.versions["cqa_fast"]
    yield f"Trained by cqa-fast {version}, which keeps every epoch and chooses none. PEFT loads "
    yield "it onto its base; `cqa-fast score --adapter` scores it.\n"
    if plan.config.placebo:
        yield f"**A placebo:** {PLACEBO_TEXT}.\n"
    yield "| | |\n|---|---|"
    for key, value in _facts(plan, run, licence, eval_loss):
        yield f"| {key} | {value} |"


def _facts(
    plan: Plan, run: RunRecord, licence: str | None, eval_loss: Eval | None
) -> Iterator[tuple[str, str]]:
    """Yield the rows of the card's table as Markdown."""
    yield "base", f"{for_markdown(plan.config.model)}, sha256 {run.model_digest}"
    yield "licence of the base", for_markdown(licence) if licence else "not named in its folder"
    if started := run.from_:
        yield "starts from", f"an adapter, sha256 {started.adapter_digest}"
    yield (
        "data",
        f"{counted(run.n_train, 'sample')} ({run.format}), sha256 {run.data_digest}",
    )
    template = run.template_digest
    yield "template", "plain text" if template is None else f"sha256 {template}"
    if eval_loss is not None:
        yield (
            "eval_loss",
            f"{eval_loss.eval_loss_nats:.4f} nats a token, on "
            f"{counted(run.n_validation, 'sample')} held out",
        )
    yield "compute", f"{run.dtype} on {for_markdown(run.device)}"
    settings = run.settings
    for key in RECIPE:
        value = settings[key]
        yield key, ", ".join(value) if isinstance(value, list) else json.dumps(value).strip('"')
    yield "scaling", f"{run.scaling:g}"


def base_licence(folder: Path) -> str | None:
    """Return the licence that a base's own card or its GGUF file names; None where none does."""
    conversion = read_conversion(folder) or {}
    try:
        head = read_card_head(folder, ModelError)
    except ModelError:  # a card is no part of a model: training goes on with one that is damaged
        head = {}
    named = head.get("license") or conversion.get("licence")
    return named if isinstance(named, str) and len(named) <= 100 else None
