"""score --server: the rows of the same model in this process, and what a server does not give."""

import json
import os
import shutil
import signal
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from cqa_fast.main import main
from helpers import read_lines, write_lines
from server.conftest import HASTE
from server.stub import KEY, NAME, Stub, closed, serving

import cqa
from cqa.compare.config import CompareConfig
from cqa.compare.run import compare
from cqa.errors import ConfigError, CqaError, DataError, ModelError, ResourceError
from cqa.report.config import ReportConfig
from cqa.report.write import write_report
from cqa.schema.events import Note
from cqa.score.config import ScoreConfig
from cqa.score.merge import merge
from cqa.score.run import score
from cqa.score.server_engine import ServerEngine
from cqa.server.address import Server
from cqa.server.client import Client

GROUPS = {"group": "literary"}, {"group": "factual"}
PAIRS = [
    {"id": f"p{k}", "context": context, "good": good, "bad": bad, **GROUPS[k % 2]}
    for k, (context, good, bad) in enumerate(
        [
            ("the lamp was lit", " and she waited", " by the door"),
            ("she waited", " by the door", " by the lamp was"),
            ("by the door", " the lamp was lit", " and"),
            ("and the lamp", " waited by her", " lit she was"),
            ("she and the door", " was by the lamp", " lit"),
            ("lit by the lamp", " the door waited", " she"),
        ]
    )
]
TEXTS = [{"id": "t1", "context": "the door", "continuation": " was lit by the lamp"}]
SUMS = ("logp_given_context_nats", "logp_null_nats", "logp_null2_nats", "pmi_nats")
ENTROPIES = ("entropy_given_context_nats", "entropy_null_nats")
N_SEQUENCES = 6 * 2 * 3 + 3  # options, each after its context and two nulls; and the continuation


@pytest.fixture(autouse=True)
def _hasty(monkeypatch):
    monkeypatch.setattr("cqa.score.server_engine.Client", partial(Client, patience=HASTE))


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    folder = tmp_path_factory.mktemp("items")
    write_lines(folder / "pairs.jsonl", PAIRS)
    write_lines(folder / "texts.jsonl", TEXTS)
    return folder


@pytest.fixture(scope="module")
def tokenizer_alone(model, tmp_path_factory):
    """A folder with a tokenizer and nothing else."""
    folder = tmp_path_factory.mktemp("tokenizer_alone")
    for path in model.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def n_handshake(model):
    """How many requests a handshake makes."""
    stub = Stub(model)
    with serving(stub) as url:
        ServerEngine(model, Server(url, NAME), client=Client(f"{url}/v1", patience=HASTE))
    return len(stub.bodies)


def test_nobody_at_the_address_is_said_while_it_is_asked_again(model, items, tmp_path):
    given = ["--model", model, "--pairs", items / "pairs.jsonl", "--out", tmp_path / "out"]
    url = "http://127.0.0.1:1"
    asked = ["score", *map(str, given), "--server", url, "--served-model", NAME]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 6
    note, error, _hint = done.stderr.splitlines()
    assert note == f"note: {url}/v1/models: Connection refused; asked once more, within 0 s"
    assert error.startswith("error: ")
    assert "after 2 tries: Connection refused" in error
    assert not (tmp_path / "out").exists()


def config_of(items: Path, out: Path, model: Path, **changes) -> ScoreConfig:
    settings = {"tokens": True, "pairs": (items / "pairs.jsonl",)}
    settings |= {"continuations": (items / "texts.jsonl",)}
    return ScoreConfig(model=str(model), out=out, **(settings | changes))


def rows_by(out: Path) -> dict[str, dict]:
    rows = read_lines(out / "scores.jsonl")
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def meta_of(out: Path) -> dict:
    return json.loads((out / "meta.json").read_text())


@pytest.fixture(scope="module")
def local(items, model, tmp_path_factory):
    """The rows of the same model in this process."""
    out = tmp_path_factory.mktemp("local") / "scores"
    score(config_of(items, out, model, device="cpu"))
    return rows_by(out)


def assert_as_local(rows: dict[str, dict], local: dict[str, dict]) -> None:
    assert rows.keys() == local.keys()
    for item_id, row in rows.items():
        for ours, theirs in zip(row["options"], local[item_id]["options"], strict=True):
            for key in (*SUMS, "token_logp_given_context_nats", "token_logp_null_nats"):
                assert ours[key] == pytest.approx(theirs[key], abs=1e-5), (item_id, key)
            assert all(ours[key] is None for key in ENTROPIES)
            same = ("role", "n_tokens", "n_bytes", "n_chars", "token_ids", "boundary_merge")
            assert all(ours[key] == theirs[key] for key in same)
        for key in ("delta_i_nats", "delta_i_best_wrong_nats", "rank_prob"):
            assert row[key] == pytest.approx(local[item_id][key], abs=1e-5)


@pytest.mark.parametrize("route", ["prompt_logprobs", "echo"])
def test_rows_are_those_of_the_model_in_this_process(
    items, tokenizer_alone, stub, url, local, tmp_path, route, n_handshake
):
    stub.route = route
    out = tmp_path / "scores"
    events = []
    config = config_of(items, out, tokenizer_alone, server=url, served_model=NAME)
    summary = score(config, on_event=events.append).to_json()
    assert_as_local(rows_by(out), local)
    meta, found = meta_of(out), json.loads((out / "capabilities.json").read_text())
    (base,) = meta["models"]
    assert (base["engine"], base["device"], base["dtype"]) == ("server", "server", "n/a")
    assert base["backend"] == f"{NAME} at a server, by {route}"
    assert base["batch_invariant"] is False
    assert meta["settings"]["served-model"] == NAME
    assert len(meta["capabilities"]) == 16
    assert meta["unscored"] == {}
    assert (found["served_model"], found["route"]) == (NAME, route)
    assert meta["max_positions"] == 199  # of 200, one of which is for a token that is generated
    assert summary["n_unscored"] == {}
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("moved by up to 0 nats a token between requests" in note for note in notes)
    n_asked = len(stub.bodies)
    score(config)
    assert len(rows_by(out)) == 7
    by_other_route = route == "echo"  # which is asked for first
    assert len(stub.bodies) - n_asked == n_handshake + by_other_route


def test_the_report_says_n_a_and_by_what_it_was_scored(items, model, stub, url, tmp_path):
    config = config_of(items, tmp_path / "scores", model, server=url, served_model=NAME)
    score(config)
    write_report(config.out, ReportConfig(out=tmp_path / "report"))
    text = (tmp_path / "report" / "report.md").read_text()
    assert f"Scored by {NAME} at a server" in text
    assert "n/a on a server" in text
    assert "may change the last digits" in text
    assert "nan" not in text.lower()
    long = (tmp_path / "report" / "tables" / "scores_long.csv").read_text().splitlines()
    column = long[0].split(",").index("entropy_null_nats")
    assert all(line.split(",")[column] == "n/a" for line in long[1:])
    assert len(long) == 1 + 6 * 2 + 1


@pytest.mark.parametrize("n", [1, 3])
def test_requests_at_a_time_are_bounded_and_change_no_row(
    items, model, stub, url, local, tmp_path, n
):
    lock, plain = threading.Lock(), stub.answer
    at_once = [0, 0]

    def counted(body):
        with lock:
            at_once[0] += 1
            at_once[1] = max(at_once)
        try:
            return plain(body)
        finally:
            with lock:
                at_once[0] -= 1

    stub.answer = counted
    config = config_of(
        items, tmp_path / "scores", model, server=url, served_model=NAME, concurrency=n
    )
    score(config)
    assert at_once[1] <= n
    assert_as_local(rows_by(config.out), local)
    assert [row["id"] for row in read_lines(config.out / "scores.jsonl")] == [
        item["id"] for item in (*PAIRS, *TEXTS)
    ]


def test_every_text_is_asked_for_once_after_every_context(
    items, model, stub, url, tmp_path, n_handshake
):
    config = config_of(items, tmp_path / "scores", model, server=url, served_model=NAME)
    score(config)
    asked = [tuple(body["prompt"]) for body in stub.bodies[n_handshake:]]
    assert len(set(asked)) == len(asked)
    assert N_SEQUENCES - 8 < len(asked) < N_SEQUENCES  # a text of two items has one null


def holding(stub: Stub, text: str, how):
    """Have a stub misbehave on prompts that end in a text."""
    ids = list(stub.tokenizer.encode_following(text))

    def change(sent, own):
        return how(sent, own) if sent[-len(ids) :] == ids and len(sent) < 20 else own

    stub.change = change


WITHOUT = {
    "NaN": (lambda ids, own: [*own[:-1], float("nan")], "the log-probability nan at place"),
    "null": (lambda ids, own: [*own[:-1], None], "no log-probability at place"),
    "above 0": (lambda ids, own: [*own[:-1], 0.5], "above 0"),
    "-inf": (lambda ids, own: [*own[:-1], -9999.0], "minus infinity"),
    "count": (lambda ids, own: own[:-1], "log-probabilities for"),
}


@pytest.mark.parametrize("how", WITHOUT)
def test_what_a_server_does_not_give_is_unscored_with_its_reason_and_never_0(
    items, model, stub, url, local, tmp_path, how
):
    change, reason = WITHOUT[how]
    holding(stub, " the lamp was lit", change)
    events = []
    config = config_of(items, tmp_path / "scores", model, server=url, served_model=NAME)
    summary = score(config, on_event=events.append).to_json()
    rows = rows_by(config.out)
    assert_as_local(rows, {key: row for key, row in local.items() if key != "p2"})
    unscored = meta_of(config.out)["unscored"]
    assert unscored.keys() == {"p2"}
    assert unscored["p2"]["group"] == "literary"
    assert reason in unscored["p2"]["reason"]
    assert summary["n_unscored"] == {"literary": 1}
    assert summary["base"]["literary"]["n"] == 2
    assert summary["base"]["factual"]["n"] == 3
    (note,) = [e.text for e in events if isinstance(e, Note) and "could not be scored" in e.text]
    assert "1 literary (p2; meta.json names all)" in note
    write_report(config.out, ReportConfig(out=tmp_path / "report"))
    text = (tmp_path / "report" / "report.md").read_text()
    assert "literary: incomplete. 1 item could not be scored" in text

    stub.change = lambda ids, own: own  # the server is mended: the same command scores the rest
    again = score(config).to_json()
    assert_as_local(rows_by(config.out), local)
    assert meta_of(config.out)["unscored"] == {}
    assert (again["n_unscored"], again["base"]["literary"]["n"]) == ({}, 3)
    write_report(config.out, ReportConfig(out=tmp_path / "report"))
    assert "incomplete" not in (tmp_path / "report" / "report.md").read_text()


def ends_in(stub: Stub, text: str):
    ids = list(stub.tokenizer.encode_following(text))
    return lambda sent: sent[-len(ids) :] == ids


@pytest.mark.parametrize("status", [400, 413, 500])
def test_a_text_that_a_server_refuses_is_unscored(items, model, stub, url, tmp_path, status):
    ours, said = ends_in(stub, " lit she was"), {"error": {"message": "prompt\n  too long"}}
    stub.status_of = lambda ids: (lambda h: h.send(status, said)) if ours(ids) else 200
    config = config_of(items, tmp_path / "scores", model, server=url, served_model=NAME)
    score(config)
    (reason,) = meta_of(config.out)["unscored"].items()
    assert reason[0] == "p3"
    assert reason[1]["reason"] == f"the server answered {status} prompt too long"
    assert len(rows_by(config.out)) == 6


def test_a_server_that_fails_on_everything_is_lost(items, model, stub, url, tmp_path, n_handshake):
    stub.statuses = [200] * (n_handshake + 20) + [500] * 999
    config = config_of(
        items, tmp_path / "scores", model, server=url, served_model=NAME, batch_tokens=30
    )
    with pytest.raises(ResourceError, match="500 status 500"):
        score(config)
    assert 0 < len(rows_by(config.out)) < 7


def test_a_model_that_is_served_no_more(items, model, stub, url, tmp_path, n_handshake):
    stub.statuses = [200] * (n_handshake + 20) + [404] * 999
    config = config_of(
        items, tmp_path / "scores", model, server=url, served_model=NAME, batch_tokens=30
    )
    with pytest.raises(ModelError, match="expected tiny at the server, got 404 status 404"):
        score(config)
    assert 0 < len(rows_by(config.out)) < 7


def test_nothing_scored_is_an_error(items, model, stub, url, tmp_path, n_handshake):
    stub.change = lambda ids, own: own if len(stub.bodies) <= n_handshake else [*own[:-1], None]
    config = config_of(items, tmp_path / "scores", model, server=url, served_model=NAME)
    with pytest.raises(ModelError, match=r"got none for all 7 items; `p0`: the server gave no"):
        score(config)
    assert not read_lines(config.out / "scores.jsonl")


def test_a_lost_server_is_an_error_and_the_same_command_goes_on(
    items, model, stub, local, tmp_path, n_handshake
):
    settings = {"served_model": NAME, "batch_tokens": 30, "concurrency": 2}
    out = tmp_path / "scores"
    with serving(stub) as url:
        stub.statuses = [200] * (n_handshake + 20) + [closed] * 999
        config = config_of(items, out, model, server=url, **settings)
        with pytest.raises(ResourceError, match="after 3 tries") as caught:
            score(config)
    assert caught.value.exit_code == 6
    assert "the rows so far are kept" in caught.value.hint
    n_kept = len(read_lines(out / "scores.jsonl"))
    assert 0 < n_kept < 7
    with pytest.raises(ResourceError, match="probe `reach`"):  # still away
        score(config)
    kept = (out / "scores.jsonl").read_bytes()
    stub.statuses, stub.bodies = [], []
    with serving(stub) as url:  # at another address
        score(config_of(items, out, model, server=url, **settings))
    assert (out / "scores.jsonl").read_bytes().startswith(kept)
    assert_as_local(rows_by(out), local)
    assert len(stub.bodies) < n_handshake + N_SEQUENCES - 3 * n_kept


def test_a_signal_leaves_whole_rows_and_the_command_that_goes_on(
    items, model, stub, url, local, tmp_path, n_handshake
):
    def interrupting(ids):
        if len(stub.bodies) == n_handshake + 12:
            os.kill(os.getpid(), signal.SIGINT)
        return 200

    stub.status_of = interrupting
    config = config_of(
        items, tmp_path / "scores", model, server=url, served_model=NAME, batch_tokens=30
    )
    with pytest.raises(CqaError, match="stopped between two passes") as caught:
        score(config)
    assert caught.value.exit_code == 130
    assert f"--server {url} --served-model {NAME}" in caught.value.command
    assert 0 < len(rows_by(config.out)) < 7
    score(config)
    assert_as_local(rows_by(config.out), local)


def test_another_model_of_the_same_name_is_refused(items, model, stub, url, tmp_path):
    config = config_of(items, tmp_path / "scores", model, server=url, served_model=NAME)
    score(config)
    before = (config.out / "capabilities.json").read_bytes()
    stub.change = lambda ids, own: [v and 1.5 * v for v in own]
    with pytest.raises(ModelError, match=r"probe `(same|position)`"):
        score(config)
    assert (config.out / "capabilities.json").read_bytes() == before


def test_a_busy_server_is_waited_for(items, model, stub, url, local, tmp_path, monkeypatch):
    patient = replace(HASTE, tries=20)  # one request may meet every refusal of those at its time
    monkeypatch.setattr("cqa.score.server_engine.Client", partial(Client, patience=patient))

    def busy(handler):
        handler.send(429, {"detail": "slow down"}, Retry_After="0")

    stub.statuses = [200, busy, 200, 500, busy, 200] * 5
    config = config_of(items, tmp_path / "scores", model, server=url, served_model=NAME)
    score(config)
    assert_as_local(rows_by(config.out), local)


def test_a_folder_of_scores_is_of_one_engine(items, model, stub, url, tmp_path):
    out = tmp_path / "scores"
    score(config_of(items, out, model, device="cpu"))
    with pytest.raises(ConfigError, match="expected the base model whose scores"):
        score(config_of(items, out, model, server=url, served_model=NAME))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"served_model": None}, "--server and --served-model together"),
        ({"server": None}, "--server and --served-model together"),
        ({"server": None, "served_model": None, "server_key_env": "X"}, "--server with"),
        ({"server": "localhost"}, "address such as http://localhost:8000"),
        ({"server": "http://u:secret@x"}, "one with a name or password in it"),
        ({"server": "http://x/v1/completions"}, "one that goes on after /v1"),
        ({"concurrency": 0}, "concurrency from 1 to 256"),
        ({"concurrency": 257}, "concurrency from 1 to 256"),
        ({"device": "cpu"}, "--server without --device, got: cpu"),
        ({"dtype": "bf16"}, "--server without --dtype"),
        ({"engine": "transformers"}, "--server without --engine"),
        ({"adapter": (Path("mine"),)}, "the model that the server serves alone, got: --adapter"),
        ({"run": (Path("run"),)}, "the model that the server serves alone, got: --run"),
    ],
)
def test_settings_that_do_not_go_together(items, model, tmp_path, changes, message):
    settings = {"server": "http://localhost:1", "served_model": NAME}
    with pytest.raises(ConfigError, match=message) as caught:
        config_of(items, tmp_path / "scores", model, **(settings | changes))
    assert "secret" not in str(caught.value)


def run_command(items, out, model, *more):
    words = ["score", "--model", str(model), "--pairs", str(items / "pairs.jsonl")]
    return CliRunner().invoke(main, [*words, "--out", str(out), *more])


def test_the_command_and_its_key(items, model, stub, url, tmp_path, monkeypatch):
    stub.key = KEY
    out = tmp_path / "scores"
    served = ("--server", url, "--served-model", NAME)
    refused = run_command(items, out, model, *served)
    assert refused.exit_code == 4
    assert "probe `key`" in refused.stderr
    assert "with none" in refused.stderr
    monkeypatch.setenv("MINE", "sk-wrong")
    refused = run_command(items, out, model, *served, "--server-key-env", "MINE")
    assert refused.exit_code == 4
    assert "with the one given" in refused.stderr
    missing = run_command(items, out, model, *served, "--server-key-env", "NOT_THERE")
    assert missing.exit_code == 2
    assert "NOT_THERE" in missing.stderr
    assert not out.exists()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    done = run_command(items, out, model, *served, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["n_unscored"] == {}
    gone = run_command(items, out, model, "--server", "http://127.0.0.1:1", "--served-model", NAME)
    assert gone.exit_code == 6
    assert "probe `reach`" in gone.stderr
    said = "".join(r.output for r in (refused, missing, done, gone))
    written = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert "sk-" not in said
    assert b"sk-" not in written


def test_the_terminal_says_what_is_missing(items, model, stub, url, tmp_path):
    holding(stub, " the lamp was lit", lambda ids, own: [*own[:-1], None])
    done = run_command(items, tmp_path / "scores", model, "--server", url, "--served-model", NAME)
    assert done.exit_code == 0
    assert "incomplete: left out, since they could not be scored: 1 literary" in done.output


def test_shards_of_several_servers_merge_once_all_is_scored(items, model, stub, local, tmp_path):
    holding(stub, " the lamp was lit", lambda ids, own: [*own[:-1], None])
    folders = []
    for k in (1, 2):
        with serving(stub) as url:
            folders.append(tmp_path / f"part-{k}")
            config = config_of(
                items, folders[-1], model, server=url, served_model=NAME, shard=f"{k}/2"
            )
            score(config)
    with pytest.raises(DataError, match=r"got 1 of its items unscored; `p2`: the server gave no"):
        merge(tmp_path / "scores", folders)
    stub.change = lambda ids, own: own
    with serving(stub) as url:
        for k, folder in enumerate(folders, start=1):
            score(config_of(items, folder, model, server=url, served_model=NAME, shard=f"{k}/2"))
    merge(tmp_path / "scores", folders)
    assert_as_local(rows_by(tmp_path / "scores"), local)
    assert "capabilities" not in meta_of(tmp_path / "scores")
    held = [capabilities_of(folder) for folder in (*folders, tmp_path / "scores")]
    assert held[2]["drift_repeat_nats"] == max(h["drift_repeat_nats"] for h in held[:2])
    assert held[2]["served_model"] == NAME


def capabilities_of(folder: Path) -> dict:
    return json.loads((folder / "capabilities.json").read_text())


def test_shards_of_servers_with_other_weights_are_not_merged(items, model, stub, url, tmp_path):
    folders = [tmp_path / f"part-{k}" for k in (1, 2)]
    for k, folder in enumerate(folders, start=1):
        score(config_of(items, folder, model, server=url, served_model=NAME, shard=f"{k}/2"))
    held = capabilities_of(folders[1])
    held["probe_logp_nats"][-1] -= 0.5
    (folders[1] / "capabilities.json").write_text(json.dumps(held))
    with pytest.raises(ModelError, match=r"numbers of the server \(a probe moves by 0\.5 nats"):
        merge(tmp_path / "scores", folders)
    held["probe_logp_nats"].pop()
    (folders[1] / "capabilities.json").write_text(json.dumps(held))
    with pytest.raises(DataError, match="probe_ids with"):
        merge(tmp_path / "scores", folders)
    assert not (tmp_path / "scores").exists()


def test_from_python(items, model, stub, url, local, tmp_path):
    found = cqa.score(
        model=str(model),
        server=url,
        served_model=NAME,
        pairs=[items / "pairs.jsonl"],
        continuations=[items / "texts.jsonl"],
        tokens=True,
        out=tmp_path / "scores",
    )
    assert found.n_items == 7
    assert_as_local(rows_by(tmp_path / "scores"), local)
    texts = ("--continuations", str(items / "texts.jsonl"), "--tokens")
    done = run_command(
        items, tmp_path / "told", model, "--server", url, "--served-model", NAME, *texts
    )
    assert done.exit_code == 0, done.stderr
    both = [(tmp_path / name / "scores.jsonl").read_bytes() for name in ("scores", "told")]
    assert both[0] == both[1]  # as the command writes them
    score(config_of(items, tmp_path / "own", model, device="cpu"))
    beside = compare(
        [tmp_path / "own", tmp_path / "scores"], CompareConfig(out=tmp_path / "beside")
    )
    (agreement,) = beside.agreements
    assert agreement.same_model is None  # nobody here has seen the server's weights
    assert agreement.largest_difference_nats < 1e-5
    table = cqa.read_scores(tmp_path / "scores")
    assert table["entropy_given_context_nats"].isna().all()
    assert table["logp_given_context_nats"].notna().all()
