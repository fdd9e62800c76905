"""Make items of the studies from the real data.

    study_items.py DATA OUT

OUT/conditions.jsonl   of passages with their true continuation: the last two sentences are the
                       context, what stands before them the condition, and the options are cut
OUT/figurative.jsonl   of each figurative phrase that comes with two meanings the first line
OUT/constrained.jsonl  items of COPA with the constraints that constraints.jsonl, beside this
                       script, has for them
OUT/works.jsonl        the true continuations of the first passages, cut
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).parent / "constraints.jsonl"
N_FIGURATIVE, N_WORKS = 80, 20
CONDITION, OPTION = 500, 220  # characters at most
Item = dict[str, Any]


def read(path: Path) -> list[Item]:
    """Return the lines of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def cut(text: str, most: int) -> str:
    """Cut a text after the last sentence, else the last word, that is whole."""
    if len(text) <= most:
        return text
    ends = [m.end() for m in re.finditer(r"""[.!?]["”’']?(?=\s)""", text[:most])]
    return text[: ends[-1]] if ends else text[:most].rsplit(" ", 1)[0]


def with_condition(item: Item) -> Item | None:
    """Part a context into condition and context; None where it is too short, or is no pair."""
    sentences = re.split(r"(?<=[.!?])\s+", item["context"].strip())
    condition = " ".join(sentences[:-2])
    if len(condition) > CONDITION:
        condition = condition[-CONDITION:].partition(" ")[2]
    good, bad = cut(item["good"], OPTION), cut(item["bad"], OPTION)
    if not condition or len(sentences) < 4 or good == bad:
        return None
    return {
        "id": item["id"], "condition": condition, "context": " ".join(sentences[-2:]),
        "good": good, "bad": bad, "source_id": item.get("source_id", item["id"]),
        "group": "literary",
    }  # fmt: skip


def main() -> None:
    """Read DATA/pairs, write OUT."""
    data, out = map(Path, sys.argv[1:])
    passages = read(data / "pairs" / "literary_true_continuation.jsonl")
    first: dict[str, Item] = {}
    for item in read(data / "pairs" / "literary_figurative.jsonl"):
        source = item["id"].rsplit("-", 1)[0]
        first.setdefault(source, {**item, "source_id": source})
    copa = {item["id"]: item for item in read(data / "pairs" / "narrative_copa.jsonl")}
    constrained = (line for line in read(CONSTRAINTS) if line["id"] in copa)
    works = [
        {"id": item["id"], "work": cut(item["good"], OPTION).strip(), "group": "literary",
         "source_id": item.get("source_id", item["id"])}
        for item in passages[:N_WORKS]
    ]  # fmt: skip
    files = {
        "constrained": [{**copa[line["id"]], **line} for line in constrained],
        "works": works,
        "conditions": [found for item in passages if (found := with_condition(item))],
        "figurative": list(first.values())[:N_FIGURATIVE],
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, items in files.items():
        lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in items)
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
