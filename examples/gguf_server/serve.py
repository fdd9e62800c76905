"""Serve a GGUF file by token ids: `cqa-fast score --server` then scores what llama.cpp computes.

llama-cpp-python's own server takes texts alone, and echoes log-probabilities that are off by a
position unless BOS is in front, whose next token it then leaves out; llama.cpp's server gives none
of a prompt. This one answers `/v1/models`, and `/v1/completions` with `prompt_logprobs`, one
request after the other, nothing cached.

    python serve.py FILE.gguf [--name NAME] [--port 8000] [--context 2048] [--threads N]
"""

import argparse
import json
import os
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
from llama_cpp import Llama


class Server(HTTPServer):
    """A model, and the name that it is served by."""

    request_queue_size = 256  # requests that wait their turn

    def __init__(self, port: int, name: str, model: Llama) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.name, self.model = name, model

    def logprobs(self, ids: list[int]) -> np.ndarray:
        """Return ln P of every token at every place but the first: (n - 1, V)."""
        self.model.reset()
        self.model.eval(ids)
        logits = self.model.scores[: len(ids) - 1].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


class Handler(BaseHTTPRequestHandler):
    """The two addresses that scoring asks for."""

    server: Server

    def do_GET(self) -> None:
        """List the model."""
        if self.path != "/v1/models":
            return self.answer(404, {"detail": "not found"})
        known = {
            "id": self.server.name,
            "object": "model",
            "max_model_len": self.server.model.n_ctx(),
        }
        return self.answer(200, {"object": "list", "data": [known]})

    def do_POST(self) -> None:
        """Score a prompt."""
        try:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name, ids = body["model"], body["prompt"]
        except (TypeError, ValueError, KeyError) as error:
            return self.answer(
                400, {"detail": f"expected a JSON object with model and prompt: {error}"}
            )
        if self.path != "/v1/completions" or name != self.server.name:
            return self.answer(404, {"detail": f"{name} at {self.path} is not served"})
        if problem := self.problem(ids):
            return self.answer(400, {"detail": problem})
        logp = self.server.logprobs(ids)
        entries: list[dict | None] = [None]
        for row, token in zip(logp, ids[1:], strict=True):
            best = int(row.argmax())
            entries.append({str(t): {"logprob": float(row[t])} for t in {best, token}})
        choice = {"index": 0, "text": "", "finish_reason": "stop", "prompt_logprobs": entries}
        usage = {"prompt_tokens": len(ids), "completion_tokens": 0, "total_tokens": len(ids)}
        return self.answer(200, {"object": "text_completion", "choices": [choice], "usage": usage})

    def problem(self, ids: object) -> str | None:
        """Say what is wrong with a prompt."""
        model = self.server.model
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            return "expected a prompt of token ids"
        if not all(0 <= token < model.n_vocab() for token in ids):
            return f"expected token ids below {model.n_vocab()}"
        if not 2 <= len(ids) <= model.n_ctx():
            return f"expected 2 to {model.n_ctx()} token ids, got {len(ids)}"
        return None

    def answer(self, status: int, value: dict) -> None:
        """Send a JSON object."""
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main() -> None:
    """Load the file, say where it is served, and serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--name", help="what the model is called; by default as the file")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--context", type=int, default=2048, help="most tokens of a prompt")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    model = Llama(
        str(given.file), n_ctx=given.context, n_threads=given.threads,
        n_threads_batch=given.threads, logits_all=True, verbose=False,
    )  # fmt: skip
    server = Server(given.port, given.name or given.file.stem, model)
    print(f"http://127.0.0.1:{server.server_address[1]} serves {server.name}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
