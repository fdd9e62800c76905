"""Choose the first items of a file, up to a number of characters, and shorten long passages.

    python choose.py FILE OUT --characters 60000 [--cut 200]

The first items of FILE go to OUT as long as their texts together have at most --characters, one at
least; 0 takes all. --cut keeps the end of a context and the beginning of what may follow it, so
many characters each, in whole words: for passages of books, not for items whose point may lie
anywhere.
"""

import argparse
import json
from pathlib import Path
from typing import Any


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--characters", type=int, default=0)
    parser.add_argument("--cut", type=int, default=0)
    given = parser.parse_args()
    lines = given.file.read_text(encoding="utf-8").split("\n")
    items = [json.loads(line) for line in lines if line]
    chosen = choose([shortened(item, given.cut) for item in items], given.characters)
    text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in chosen)
    given.out.write_text(text, encoding="utf-8")
    print(f"{given.out}: {len(chosen)} of {len(items)} items")


def choose(items: list[dict[str, Any]], characters: int) -> list[dict[str, Any]]:
    """Return the first items whose texts together have at most so many characters."""
    used = 0
    for n, item in enumerate(items):
        used += sum(map(len, texts_of(item)))
        if n and characters and used > characters:  # one at least
            return items[:n]
    return items


def texts_of(item: dict[str, Any]) -> list[str]:
    """Return the context and what may follow it."""
    following = item.get("options") or [item[key] for key in FOLLOWING if key in item]
    return [item["context"], *following]


FOLLOWING = ("good", "bad", "continuation")


def shortened(item: dict[str, Any], cut: int) -> dict[str, Any]:
    """Return an item whose texts have about `cut` characters; 0 leaves it as it is."""
    if not cut:
        return item
    ends = {key: item[key][: end_of_word(item[key], cut)] for key in FOLLOWING if key in item}
    context = item["context"]
    start = max(0, len(context) - cut)
    if start:
        space = context.find(" ", start - 1)
        start = space + 1 if space >= 0 else start
    return item | ends | {"context": context[start:]}


def end_of_word(text: str, limit: int) -> int:
    """Return where the last whole word within `limit` characters ends."""
    if len(text) <= limit:
        return len(text)
    space = text.rfind(" ", 1, limit + 1)
    return space if space > 0 else limit


if __name__ == "__main__":
    main()
