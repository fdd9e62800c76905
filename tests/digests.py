"""Print a digest of everything that the demo computes, to compare two states of the code.

    python tests/digests.py demo-out

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


if __name__ == "__main__":
    for name, value in digests(Path(sys.argv[1])).items():
        print(value, name)
