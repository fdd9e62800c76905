"""A program in a process of its own, which works when it is called."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Self

PEERS = "cqa.bench.peers"
ROOT = Path(__file__).parents[2]  # where this package is found


class PeerError(RuntimeError):
    """A peer ended instead of answering; the message is the end of what it printed."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a peer answered."""

    seconds: float
    value: Any


class PeerProcess:
    """A module of `peers`, or a script with an interpreter of its own."""

    def __init__(
        self, program: str | Path, settings: dict[str, Any], python: str = sys.executable
    ) -> None:
        """Start it; its first call waits until it is ready, so several can start side by side."""
        self.peak_bytes = 0
        self._ready = False
        self._log = TemporaryFile("w+")  # noqa: SIM115
        own = isinstance(program, Path)
        command = [str(program)] if own else ["-m", f"{PEERS}.{program}"]
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [python, *command],
            env=os.environ if own else {**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip
        self._tell(settings)  # the tokens of a job may be too many for an argument

    def __call__(self, **arguments: Any) -> Reply:
        """Call the program.

        Raises:
            PeerError: It ended instead.
        """
        if not self._ready:
            self._answer()
            self._ready = True
        self._tell(arguments)
        answer = self._answer()
        return Reply(answer["seconds"], answer["value"])

    def _tell(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what it printed says why

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise PeerError(self._log.read()[-2000:].strip() or "it ended without a word")
        answer: dict[str, Any] = json.loads(line)
        self.peak_bytes = answer["peak_bytes"]
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()
        self._log.close()
