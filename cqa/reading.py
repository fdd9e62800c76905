"""Reading a file whole: a regular file of a bounded size, so that nothing read can block or fill
memory.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from cqa.errors import CqaError

MERGE = "a merge (`<<`)"
MOST_BYTES = 256 << 20  # the largest tokenizer.json known has a tenth of that
CARD = "README.md"  # of a model or a data set of the Hugging Face hub
MOST_CARD_BYTES = 4 << 20
CARD_HEAD = re.compile(rb"\s*---\r?\n(.*?)\r?\n---", re.DOTALL)


def refuse_special(path: Path, error: type[CqaError]) -> None:
    """Refuse what is no regular file: a read from it could block or never end.

    Raises:
        CqaError: Of the class `error`.
        OSError: There is no such file, or it cannot be looked at.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise error(f"expected a regular file, got {_kind(mode)}", where=str(path))


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def read_bounded(path: Path, error: type[CqaError], most_bytes: int = MOST_BYTES) -> bytes:
    """Return the bytes of a regular file; a link to one is followed.

    Args:
        path: The file.
        error: The class of error to raise.
        most_bytes: The size beyond which nothing is read.

    Raises:
        CqaError: Of the class `error`: it is no regular file, or is larger.
        OSError: There is no such file, or it cannot be read.
    """
    refuse_special(path, error)
    # non-blocking, should it be exchanged for a pipe at this moment
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise error(f"expected at most {most_bytes:,} bytes, got more", where=str(path))
    return data


def read_object(
    path: Path, error: type[CqaError], most_bytes: int = MOST_BYTES
) -> dict[str, Any] | None:
    """Return the JSON object that a file holds, None where there is no file.

    Raises:
        CqaError: Of the class `error`: it is no regular file, too large, or holds something else.
    """
    try:
        value = json.loads(read_bounded(path, error, most_bytes).decode("utf-8"))
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise error(f"expected a JSON object, got: {problem.strerror}", where=str(path)) from None
    except (ValueError, RecursionError) as problem:
        raise error(f"expected a JSON object, got: {problem}", where=str(path)) from None
    if not isinstance(value, dict):
        raise error("expected a JSON object, got another value", where=str(path))
    return value


def yaml_loader() -> Any:
    """Return PyYAML's safe loader without merges.

    A few lines of them stand for more keys than memory holds. It raises a `ConstructorError` whose
    problem is `MERGE`.
    """
    import yaml

    class WithoutMerges(yaml.SafeLoader):
        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            for key, _ in node.value:
                if key.tag == "tag:yaml.org,2002:merge":
                    raise yaml.constructor.ConstructorError(None, None, MERGE, key.start_mark)

    return WithoutMerges


def read_card_head(folder: Path, error: type[CqaError]) -> dict[str, Any]:
    """Return the YAML at the head of a folder's card; empty where there is no card or no head.

    Raises:
        CqaError: Of the class `error`: the card cannot be read, or its head is no YAML mapping.
    """
    import yaml

    path = folder / CARD
    try:
        head = CARD_HEAD.match(read_bounded(path, error, MOST_CARD_BYTES))
        held = yaml.load(head[1].decode("utf-8"), yaml_loader()) if head else {}
    except FileNotFoundError:
        return {}
    except (OSError, yaml.YAMLError, ValueError, TypeError, RecursionError):
        held = None
    if not isinstance(held, dict):
        raise error("expected a card whose head is a YAML mapping, got another", where=str(path))
    return held
