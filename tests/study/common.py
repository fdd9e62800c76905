"""Small data for the studies on the embedded model."""

from pathlib import Path
from typing import Any

from helpers import DEMO, read_lines, write_lines

MODEL = DEMO / "model"
SMALL: dict[str, Any] = {
    "rank": 2, "targets": ("q", "v"), "lr": 5e-3, "validation": "0", "device": "cpu",
}  # fmt: skip


def write_samples(path: Path, n: int) -> Path:
    """Write n short training samples."""
    records = read_lines(DEMO / "train.jsonl")[:n]
    short = [{**r, "prompt": r["prompt"][-40:], "response": r["response"][:40]} for r in records]
    return write_lines(path, short)


def write_pairs(path: Path, n: int, *groups: str) -> Path:
    """Write n short pairs of each group."""
    return write_lines(
        path,
        [
            {
                **record,
                "context": record["context"][-50:],
                "good": record["good"][:30],
                "bad": record["bad"][-30:],
            }
            for group in groups
            for record in read_lines(DEMO / f"{group}.jsonl")[:n]
        ],
    )
