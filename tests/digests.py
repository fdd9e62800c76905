"""Print a digest of everything that the demo computes, to compare two states of the code.

    python tests/digests.py demo-out            # the digests
    python tests/digests.py before-out after-out  # equal or unequal, file by file

With two folders it exits with 1 where anything differs or one folder lacks a file.
Every epoch's adapter is taken by its bytes. Score rows are taken without the keys that change with
the code itself (`model_key`, and the digest over the row), in the order of their lines.
"""

import hashlib
import json
import sys
from pathlib import Path

OF_THE_CODE = ("model_key", "row_digest")


def digests(folder: Path) -> dict[str, str]:
    """Return a sha256 of each adapter and of the score rows of a demo folder."""
    found = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "run").glob("*/adapter_model.safetensors"))
    }
    rows = hashlib.sha256()
    for line in (folder / "scores" / "scores.jsonl").read_text(encoding="utf-8").splitlines():
        row = {key: value for key, value in json.loads(line).items() if key not in OF_THE_CODE}
        rows.update(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return {**found, "scores/scores.jsonl": rows.hexdigest()}


def compare(before: Path, after: Path) -> bool:
    """Print whether each file of two demo folders is equal, and return whether all are."""
    old, new = digests(before), digests(after)
    for name in sorted({*old, *new}):
        if name not in old or name not in new:
            print(f"unequal  {name}: only in {before if name in old else after}")
        elif old[name] != new[name]:
            print(f"unequal  {name}: {old[name][:8]} {new[name][:8]}")
        else:
            print(f"equal    {name}: {old[name][:8]}")
    return old == new


if __name__ == "__main__":
    folders = [Path(name) for name in sys.argv[1:]]
    if len(folders) == 2:
        sys.exit(0 if compare(*folders) else 1)
    if len(folders) != 1:
        sys.exit("usage: python tests/digests.py FOLDER [FOLDER]")
    for name, value in digests(folders[0]).items():
        print(value, name)
