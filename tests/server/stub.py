"""A server of completions in the test's own process, which can misbehave in every way known."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from cqa.data.tokenizer import Tokenizer

NAME = "tiny"
KEY = "sk-secret-0123456789"
Own = list[float | None]


class Stub:
    """What a server knows: a tiny model, and how it misbehaves.

    Attributes:
        route: By which route it gives log-probabilities of a prompt; None gives none.
        change: Of the ids that it is sent, and the values that it would answer: the values.
        seen: What it makes of the ids that it is sent before it looks at them.
        statuses: Answers to the next completions: a status, or a function of the handler.
        status_of: After those, the status of the ids that it is sent.
        key: What a request has to bring.
        bodies: What it was sent.
    """

    def __init__(self, folder: Path, route: str | None = "prompt_logprobs") -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = Tokenizer(folder)
        self.route = route
        self.change: Callable[[list[int], Own], Own] = lambda ids, own: own
        self.seen: Callable[[list[int]], list[int]] = lambda ids: ids
        self.statuses: list[Any] = []
        self.status_of: Callable[[list[int]], Any] = lambda ids: 200
        self.key: str | None = None
        self.served: list[Any] = [{"id": NAME, "root": "tiny-weights", "max_model_len": 200}]
        self.usage = True
        self.bodies: list[dict] = []
        self.temperature = False  # whether it gives what it draws from
        self._lock = threading.Lock()

    @torch.no_grad()
    def table(self, ids: list[int]) -> torch.Tensor:
        """Return log P of every token after each of the ids: (n, V)."""
        with self._lock:
            return self.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)

    def answer(self, body: dict) -> dict:
        """Return what /v1/completions answers."""
        sent = body["prompt"]
        ids = self.seen(sent)
        table = self.table(ids)
        if self.temperature and body["temperature"] != 1.0:
            table = (table / 0.5).log_softmax(-1)
        own: Own = [None, *(float(table[k - 1, ids[k]]) for k in range(1, len(ids)))]
        own = self.change(ids, own)
        best = [None, *(table[k - 1].max().item() for k in range(1, len(ids)))]
        best = (best + [-1.0] * len(own))[: len(own)]
        choice: dict[str, Any] = {"index": 0, "text": "x", "finish_reason": "length"}
        if self.route == "prompt_logprobs" and "prompt_logprobs" in body:
            top = [None, *(int(table[k - 1].argmax()) for k in range(1, len(ids)))]
            choice["prompt_logprobs"] = [
                None if value is None else
                {str(top[k] if k < len(top) else 1): {"logprob": best[k], "rank": 1},
                 str(ids[k] if k < len(ids) else 2): {"logprob": value, "rank": 3}}
                for k, value in enumerate(own)
            ]  # fmt: skip
        if self.route == "echo" and body.get("echo"):
            choice["logprobs"] = {
                "token_logprobs": [*own, -2.5],
                "top_logprobs": [b and {"a": b} for b in [*best, -0.5]],
            }
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1}
        return {"id": "1", "choices": [choice]} | ({"usage": usage} if self.usage else {})


class Handler(BaseHTTPRequestHandler):
    """HTTP around a `Stub`."""

    stub: Stub
    protocol_version = "HTTP/1.0"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def send(self, status: int, value: Any, **headers: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refused(self) -> bool:
        told = self.headers.get("Authorization")
        if self.stub.key is None or told == f"Bearer {self.stub.key}":
            return False
        self.send(401, {"error": {"message": f"Incorrect API key provided: {told}"}})
        return True

    def do_GET(self) -> None:
        if self._refused():
            return
        if self.path == "/v1/models":
            self.send(200, {"object": "list", "data": self.stub.served})
        else:
            self.send(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._refused():
            return
        stub = self.stub
        stub.bodies.append(body)
        status = stub.statuses.pop(0) if stub.statuses else stub.status_of(body["prompt"])
        if callable(status):
            status(self)
        elif status != 200:
            self.send(status, {"error": {"message": f"status {status}"}})
        elif body["model"] != NAME:
            self.send(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
        else:
            self.send(200, stub.answer(body))


@contextmanager
def serving(stub: Stub, port: int = 0) -> Iterator[str]:
    """Serve a stub; yield its address."""
    handler = type("Own", (Handler,), {"stub": stub})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def slow(seconds: float) -> Callable[[Handler], None]:
    """Return a status that is not said for some time."""

    def wait(handler: Handler) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return wait


def closed(handler: Handler) -> None:
    """Say nothing and hang up."""
    handler.close_connection = True
