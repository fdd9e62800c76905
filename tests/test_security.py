"""Nothing runs code from files, starts a process or asks the network: in source and in action."""

import ast
import sys
from collections.abc import Iterator
from functools import cache

import pytest
from click.testing import CliRunner
from cqa_fast.main import main
from helpers import ROOT, tiny_model, write_lines

SOURCES = sorted([*(ROOT / "cqa").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])
FORBIDDEN = {
    "eval", "exec", "__import__", "runpy", "importlib.import_module",  # code from text
    "pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "torch.load", "torch.jit.load",
    "torch.hub", "torch.package", "numpy.load",  # code from data
    "yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.Loader", "yaml.FullLoader",
    "yaml.UnsafeLoader",
    "subprocess", "multiprocessing", "os.system", "os.popen", "os.spawnv", "pty",  # processes
    "requests", "httpx", "aiohttp", "urllib.request", "http.client", "http.server", "ftplib",
    "smtplib", "telnetlib", "socket.socket", "socket.create_connection",  # the network
}  # fmt: skip
ALLOWED = {  # by the start of a path
    "cqa/kernels/attention.py": {"importlib.import_module"},  # libraries that may not be there
    "cqa/bench/": {"subprocess"},  # what is compared runs in a process of its own
    "cqa/__init__.py": {"importlib.import_module"},  # its own modules, once they are used
    "cqa/bridges/lm_eval.py": {"requests"},  # what lm-eval calls the questions it asks
    "cqa/model/hugging_face.py": {
        "trust_remote_code"
    },  # said to be off, since the default may change
    "cqa/reading.py": {"yaml.load"},  # with yaml_loader, a safe one
    "cqa/model/peft_config.py": {"subprocess"},  # an expression that may have no end
    "cqa/score/ray_cluster.py": {"importlib.import_module"},  # Ray, which may not be there
    "cqa/server/client.py": {"http.client", "urllib.request"},  # the server that score names
}
FORBIDDEN_WORDS = {"trust_remote_code", "allow_pickle", "weights_only", "shell"}


def dotted(node: ast.expr) -> str | None:
    """Return `a.b.c` of an expression that is one."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (left := dotted(node.value)):
        return f"{left}.{node.attr}"
    return None


def names_used(source: str) -> Iterator[str]:
    """Yield every dotted name that a source uses, spelt in full whatever it is imported as."""
    nodes = list(ast.walk(ast.parse(source)))
    meaning = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
                meaning[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
                meaning[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in nodes:
        if isinstance(node, (ast.Name, ast.Attribute)) and (name := dotted(node)):
            first, dot, rest = name.partition(".")
            yield meaning.get(first, first) + dot + rest


def misuses(source: str) -> set[str]:
    """Return what a source uses that nothing here may use."""
    names = {name.removeprefix("builtins.") for name in names_used(source)}
    parents = {
        ".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 2)
    }
    keywords = {n.arg for n in ast.walk(ast.parse(source)) if isinstance(n, ast.keyword)}
    return parents & FORBIDDEN | keywords & FORBIDDEN_WORDS


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_source_uses_nothing_that_runs_code_from_files_or_asks_the_network(path):
    name = path.relative_to(ROOT).as_posix()
    allowed = {use for start, uses in ALLOWED.items() if name.startswith(start) for use in uses}
    assert misuses(path.read_text(encoding="utf-8")) <= allowed


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "import builtins\nbuiltins.exec('1')",
        "run = eval",
        "import pickle as p\np.loads(b'')",
        "from torch import load as read",
        "import torch as t\nt.load('x')",
        "import torch.hub",
        "from importlib import import_module as get\nget(name)",
        "from numpy import load",
        "import yaml\nyaml.load('a', Loader=yaml.Loader)",
        "import os\nos.system('ls')",
        "from subprocess import run",
        "import urllib.request",
        "from socket import create_connection",
        "f(trust_remote_code=True)",
        "def f():\n    import requests",
    ],
)
def test_misuse_is_seen_however_it_is_spelt(source):
    assert misuses(source)


@pytest.mark.parametrize(
    "source",
    ["model.eval()", "import yaml\nyaml.SafeLoader", "import torch\ntorch.ops.load_library('x')",
     "import socket\nsocket.gethostname()", "import json\njson.load(f)"],
)  # fmt: skip
def test_what_is_harmless_is_not_taken_for_misuse(source):
    assert not misuses(source)


WATCHED = {
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind",
    "urllib.Request", "http.client.connect", "pickle.find_class", "os.system", "os.exec",
    "os.posix_spawn", "os.fork", "subprocess.Popen",
}  # fmt: skip
seen: list[str] | None = None


def watch(event: str, args: tuple) -> None:
    if seen is not None and event in WATCHED:
        seen.append(f"{event} {args}")


@cache
def install() -> None:
    """Watch from here on; there is no way to take a hook away."""
    sys.addaudithook(watch)


@pytest.fixture
def events(monkeypatch) -> Iterator[list[str]]:
    """What Python's audit hooks tell of network, processes and pickles; the hub is not offline."""
    global seen
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    install()
    seen = []
    yield seen
    seen = None


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, with a model and data."""
    monkeypatch.chdir(tmp_path)
    tiny_model(tmp_path / "model")
    samples = [{"prompt": "the lamp", "response": " was lit"}, {"prompt": "she", "response": " r"}]
    write_lines(tmp_path / "train.jsonl", samples)
    pair = {"context": "the lamp", "good": " was lit", "bad": " ran"}
    write_lines(tmp_path / "pairs.jsonl", [{**pair, "id": "p"}, {**pair, "id": "q", "bad": " by"}])


COMMANDS = [
    "validate train.jsonl pairs.jsonl",
    "coverage --by words train.jsonl",
    "train --model model --data train.jsonl --out run --epochs 1 --rank 2 --lr 0.01 --validation 0 "
    "--warmup-ratio 0 --grad-accum 1 --device cpu",
    "score --model model --run run --pairs pairs.jsonl --out scores --device cpu",
    "prescreen --model model --pairs pairs.jsonl --out points --device cpu",
]


@pytest.mark.usefixtures("folder")
def test_no_command_asks_the_network_starts_a_process_or_reads_a_pickle(events):
    for command in COMMANDS:
        result = CliRunner().invoke(main, command.split())
        assert result.exit_code == 0, result.output
        assert events == [], command


@pytest.mark.usefixtures("folder")
def test_model_that_only_the_hub_has_is_what_the_network_is_asked_for(events):
    args = ["score", "--model", "some/model", "--pairs", "pairs.jsonl", "--out", "scores"]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 4
    assert result.stderr.startswith("error: some/model: expected a model folder or a hub id")
    assert any(event.startswith("socket.getaddrinfo") for event in events)


@pytest.mark.usefixtures("folder")
def test_a_server_that_is_named_is_all_that_is_asked(events, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    args = ["score", "--model", "model", "--pairs", "pairs.jsonl", "--out", "scores"]
    at = ["--server", "http://127.0.0.1:1", "--served-model", "tiny"]
    result = CliRunner().invoke(main, [*args, *at])
    assert result.exit_code == 6
    assert "probe `reach`" in result.stderr
    assert events
    assert all("'127.0.0.1', 1" in e or "http://127.0.0.1:1/v1/models" in e for e in events)
