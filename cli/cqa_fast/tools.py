"""The commands for models, adapters and the machine.

They are thin, without logic; what is heavy is imported inside their bodies.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import click

from cqa.bench.config import BenchConfig
from cqa_fast.options import A_PATH, JSON, command, flag, takes
from cqa_fast.terminal import say, say_json


@command()
@click.argument("adapter", type=A_PATH)
@flag("--out", required=True, type=A_PATH, help="New folder to write.")
@flag(
    "--plain-alpha",
    is_flag=True,
    help="As an adapter whose alpha / r is its scaling, for servers that ignore use_rslora.",
)
@flag("--merge", is_flag=True, help="Merged into its base: a whole model folder, with tokenizer.")
@flag("--model", help="The base to merge into; by default the one that the adapter names.")
@JSON
def export(
    adapter: Path, out: Path, plain_alpha: bool, merge: bool, model: str | None, as_json: bool
) -> None:
    """Write an ADAPTER for other programs, read it back and compare.

    \b
    Examples:
      cqa-fast export run/epoch-05 --out adapter-for-sglang --plain-alpha
      cqa-fast export run/epoch-05 --out merged --merge
    """
    from cqa.model.export import export as run_export

    exported = run_export(adapter, out, plain_alpha=plain_alpha, merge=merge, model=model)
    as_dict = {"out": str(exported.out), "n_modules": exported.n_modules, "base": exported.base}
    say_json(as_dict) if as_json else say(str(exported.out))


@command()
@click.argument("file", type=A_PATH)
@click.argument("folder", type=A_PATH)
@flag(
    "--dtype",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="What weights are written in: fp32 holds all that the file says, bf16 half the bytes.",
)
@JSON
def convert(file: Path, folder: Path, dtype: Any, as_json: bool) -> None:
    """Write the model of a GGUF FILE as a new model FOLDER, tokenizer included.

    \b
    Example:
      cqa-fast convert SmolLM2-135M-Instruct.Q4_1.gguf smollm2
      cqa-fast score --model smollm2 --pairs literary.jsonl --out scores
    """
    from cqa.convert.run import convert as run_convert

    converted = run_convert(file, folder, dtype=dtype)
    as_dict = {"out": str(converted.out), "n_tensors": converted.n_tensors}
    say_json(as_dict | converted.conversion) if as_json else say(str(converted.out))


@command()
@takes(BenchConfig)
@JSON
def bench(config: BenchConfig, as_json: bool) -> None:
    """Measure this device: ops, training steps and scoring, against what it can do at best.

    Weights are random and drawn on the device, in the sizes of --shape; nothing is downloaded.

    \b
    Example:
      cqa-fast bench --shape qwen2.5-7b --peers --out bench.json
    """
    from cqa.bench.run import bench as run_bench
    from cqa.bench.table import bench_text
    from cqa_fast.progress import BenchProgress

    with closing(BenchProgress()) as progress:
        data = run_bench(config, on_event=progress)
    say_json(data.to_json()) if as_json else say(bench_text(data))


@command()
@JSON
def doctor(as_json: bool) -> None:
    """Show versions, devices, memory and disk, and what could be better."""
    from cqa.doctor import examine, report_text

    found = examine(Path.cwd())
    say_json(found.to_json()) if as_json else say(report_text(found))
