"""A real server: llama.cpp on the real model's GGUF, against this package's own scores of it.

`make server-env` builds llama-cpp-python and gets the file; without them these tests are skipped.
"""

import json
import os
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers import DEMO, ROOT, read_lines, write_lines
from score.scoring import differing

from cqa.errors import ModelError
from cqa.score.config import ScoreConfig
from cqa.score.run import score

ENV = ROOT / ".server-env"
PYTHON, GGUF = ENV / "venv" / "bin" / "python", ENV / "smollm2-135m-instruct.gguf"
MODEL = ROOT / ".models" / "smollm2-135m-instruct"
NAME = "smollm2"
N_ITEMS = 20
SUM = "logp_given_context_nats"
LOGP = ("token_logp_given_context_nats", "token_logp_null_nats")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(path.exists() for path in (PYTHON, GGUF, MODEL)),
        reason="no llama-cpp-python with the real model: make server-env",
    ),
]


@contextmanager
def started(*words: str) -> Iterator[subprocess.Popen]:
    """Start a server in its own environment; end it in any case."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    process = subprocess.Popen(
        [str(PYTHON), *words], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("items")
    half = N_ITEMS // 2
    pairs = [differing(r) for g in ("literary", "factual")
             for r in read_lines(DEMO / f"{g}.jsonl")[:half]]  # fmt: skip
    return write_lines(folder / "pairs.jsonl", pairs)


def rows_of(out: Path) -> dict[str, dict]:
    return {row["id"]: row for row in read_lines(out / "scores.jsonl")}


def test_llama_cpp_scores_the_gguf_as_this_package_scores_its_weights(items, tmp_path, capsys):
    settings = {"model": str(MODEL), "pairs": (items,), "tokens": True}
    script = ROOT / "examples" / "gguf_server" / "serve.py"
    words = (str(script), str(GGUF), "--name", NAME, "--port", "0", "--context", "256",
             "--threads", "1")  # fmt: skip
    with started(*words) as process:
        url = re.match(r"(http\S+) serves smollm2", process.stdout.readline())[1]
        served = ScoreConfig(out=tmp_path / "served", server=url, served_model=NAME, **settings)
        score(served)
    ours = ScoreConfig(out=tmp_path / "ours", device="cpu", dtype="fp32", **settings)
    score(ours)
    theirs, own = rows_of(served.out), rows_of(ours.out)
    assert theirs.keys() == own.keys()
    assert len(own) == N_ITEMS
    moved = {key: [] for key in LOGP}  # of every token
    contrasts = []  # S(good|y) - S(bad|y), here and there
    for item_id, row in own.items():
        both = row["options"], theirs[item_id]["options"]
        for a, b in zip(*both, strict=True):
            assert a["token_ids"] == b["token_ids"]
            for key in LOGP:
                moved[key] += np.abs(np.subtract(b[key], a[key])).tolist()
        contrasts.append([o[0][SUM] - o[1][SUM] for o in both])
    given, null = (np.array(moved[key]) for key in LOGP)
    r = np.corrcoef(np.array(contrasts).T)[0, 1]
    found = json.loads((served.out / "capabilities.json").read_text())
    with capsys.disabled():
        print(f"\nllama.cpp on Q4_1 beside fp32 on its weights, {N_ITEMS} items, nats a token:")
        for name, values in (("after the context", given), ("after the null", null)):
            print(
                f"  {name}: {len(values)} tokens, median |difference| {np.median(values):.3f}, "
                f"95 % {np.quantile(values, 0.95):.3f}, largest {values.max():.2f}"
            )
        print(
            f"  S(good|y) - S(bad|y) correlates by {r:.4f}; repeat {found['drift_repeat_nats']:g}"
        )
    assert set(found["probes"].values()) == {"passed"}
    # The weights are the same; llama.cpp rounds what they are multiplied with to 8 bits. After the
    # null alone this model is ill-conditioned: bf16 moves single tokens by nats too.
    assert np.median(given) < 0.15
    assert given.max() < 1.5
    assert np.median(null) < 0.15
    assert r > 0.99


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_the_server_that_llama_cpp_python_brings_is_refused_by_the_probe(items, tmp_path):
    """It takes texts alone."""
    port = free_port()
    words = ("-m", "llama_cpp.server", "--model", str(GGUF), "--model_alias", NAME,
             "--logits_all", "true", "--n_ctx", "256", "--n_threads", "1", "--port", str(port),
             "--verbose", "false")  # fmt: skip
    with started(*words) as process:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.1)
        config = ScoreConfig(
            model=str(MODEL), pairs=(items,), out=tmp_path / "scores",
            server=f"http://127.0.0.1:{port}", served_model=NAME,
        )  # fmt: skip
        with pytest.raises(ModelError, match=r"valid string|validation errors") as caught:
            score(config)
    assert "(probe `ids`)" in str(caught.value)
    assert not config.out.exists()
