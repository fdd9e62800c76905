"""`cqa-fast generate`: texts after prompts, under a base or an adapter."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cqa.config import input_paths
from cqa.data.jsonl import LONGEST_LINE_BYTES, check_columns, read_records, take_id, take_text
from cqa.data.unique import each_once, file_line_id
from cqa.errors import DataError
from cqa.files import new_file, reported
from cqa.generate.config import GenerateConfig
from cqa.output_folder import check_output_file
from cqa.schema.generated import GeneratedRow
from cqa.score.resident import Model
from cqa.text import named

STDIN = "standard input"
ROW_KEYS = ("prompt", "text", "token_ids", "logp_nats", "stop")  # by which our own file is known


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and where it stands."""

    id: str
    text: str
    where: str


def generate(config: GenerateConfig) -> list[GeneratedRow]:
    """Draw texts after every prompt; write them if a file is named.

    Returns:
        A row for each text: those of the first prompt, in the order of their numbers, and so on.

    Raises:
        CqaError: Anything that the user can mend; see cqa.errors.
    """
    if config.out is not None:
        check_output_file(config.out, ROW_KEYS, input_paths(config), lines=True)
    prompts = _read(config)
    model = Model(
        config.model,
        config.adapter,
        device=config.device,
        dtype=config.dtype,
        template=config.template,
        allow_special=config.allow_special,
    )
    drawn = model.generate(
        [prompt.text for prompt in prompts],
        places=[prompt.where for prompt in prompts],
        n_samples=config.samples,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
    )
    rows = [
        GeneratedRow(
            id=prompt.id, prompt=prompt.text, sample=number, text=one.text, stop=one.stop,
            token_ids=one.token_ids, logp_nats=one.logp_nats, entropy_nats=one.entropy_nats,
            rank=one.rank, varentropy_nats2=one.varentropy_nats2,
        )
        for prompt, texts in zip(prompts, drawn, strict=True)
        for number, one in enumerate(texts, start=1)
    ]  # fmt: skip
    if config.out is not None:
        with reported(config.out):
            config.out.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(r.to_json(), ensure_ascii=False) + "\n" for r in rows)
        with new_file(config.out) as temporary:
            temporary.write_bytes(lines.encode())
    return rows


def _read(config: GenerateConfig) -> list[Prompt]:
    """Return the prompts.

    Raises:
        DataError: A line is malformed, or there is no text.
    """
    if config.prompts is not None:
        columns = config.columns
        check_columns([config.prompts], columns)
        records = read_records(config.prompts, _parsed, noun="prompt", columns=columns)
        return list(each_once(records, name=file_line_id, columns=columns))
    if config.prompt != "-":
        return [Prompt("prompt-1", config.prompt or "", "--prompt")]
    data = sys.stdin.buffer.read(LONGEST_LINE_BYTES + 1)
    if len(data) > LONGEST_LINE_BYTES:
        expected = f"expected a prompt of at most {LONGEST_LINE_BYTES >> 20} MiB, got a longer one"
        raise DataError(expected, where=STDIN)
    try:
        text = data.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        got = f"byte {data[error.start]:#04x}"
        raise DataError(f"expected UTF-8, got {got}", where=STDIN) from None
    return [Prompt("prompt-1", text, STDIN)]


def _parsed(record: dict[str, Any], where: str) -> Prompt:
    key = "context" if "context" in record and "prompt" not in record else "prompt"
    prompt_id = take_id(record, where, file_line_id(where))
    return Prompt(prompt_id, take_text(record, key, where), where)


def as_one_object(config: GenerateConfig, rows: Sequence[GeneratedRow]) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {
        "model": config.model,
        "adapter": str(config.adapter) if config.adapter else None,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "seed": config.seed,
        "texts": [row.to_json() for row in rows],
    }


def texts_of(rows: Sequence[GeneratedRow]) -> str:
    """Return the texts for a terminal: one alone as it is, several each under its name."""
    if len(rows) == 1:
        return rows[0].text
    return "\n\n".join(f"[{named(row.id)}, sample {row.sample}]\n{row.text}" for row in rows)
