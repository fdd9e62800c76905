"""Letter choice at a chat server of the test's own, which prefers letters, places or an option."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cqa_fast.main import main
from helpers import DEMO, read_lines, write_lines
from hostile import STRINGS

from cqa.compare.config import CompareConfig
from cqa.compare.run import compare
from cqa.errors import ConfigError, DataError, ModelError, ResourceError
from cqa.escape import for_terminal
from cqa.letters.ask import NoLettersError, cyclic_orders, letter_probabilities, question
from cqa.letters.config import LettersConfig
from cqa.letters.run import choose_letters, letters_text
from cqa.report.compared_tables import caveats, compare_text
from cqa.schema.letters import LettersMeta
from cqa.score.config import ScoreConfig
from cqa.score.run import score
from cqa.score_folder import read_letters
from cqa.server.client import Client, Patience

KEY = "sk-secret-letters"
GOOD, BAD = " It was kind.", " It was mean."
PAIRS = [
    {"id": f"p{k}", "group": "literary", "source_id": f"book-{k}", "context": f"Scene {k}.",
     "good": GOOD, "bad": BAD}
    for k in range(12)
]  # fmt: skip
Odds = Callable[[str, str], float]  # of a letter and its option


class Chat:
    """What a server answers: odds of each letter, and a share that falls on no letter."""

    def __init__(self, odds: Odds) -> None:
        self.odds = odds
        self.elsewhere = 0.0
        self.answer: Any = None  # instead of what it would say
        self.status = 200
        self.bodies: list[dict] = []

    def top(self, text: str) -> list[dict]:
        parts = text.split("\n\n")
        options = {p[0]: p[2:].strip() for p in parts if p[1:3] == ":\n"}
        odds = {letter: self.odds(letter, option) for letter, option in options.items()}
        total = sum(odds.values()) / (1 - self.elsewhere)
        found = []
        for letter, value in odds.items():  # half of it as another form of the letter
            for token in (letter, f" {letter}"):
                found.append({"token": token, "logprob": math.log(value / total / 2)})
        return [*found, {"token": "The", "logprob": math.log(self.elsewhere or 1e-9)}]


class Handler(BaseHTTPRequestHandler):
    chat: Chat

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.chat.bodies.append(body)
        top = self.chat.top(body["messages"][0]["content"])
        content = [{"token": top[0]["token"], "top_logprobs": top}]
        said = {"choices": [{"message": {"content": "A"}, "logprobs": {"content": content}}]}
        data = json.dumps(self.chat.answer or said).encode()
        status = 401 if self.headers.get("Authorization") == "Bearer wrong" else self.chat.status
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def serve() -> Iterator[Callable[[Chat], str]]:
    servers = []

    def start(chat: Chat) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"chat": chat}))
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def kind_wins(_: str, option: str) -> float:
    return 3.0 if "kind" in option else 1.0


def config(url: str, folder: Path, pairs: list[dict] | None = None, **settings) -> LettersConfig:
    path = write_lines(folder / "pairs.jsonl", PAIRS if pairs is None else pairs)
    return LettersConfig(
        server=url, served_model="m", pairs=(path,), out=folder / "out", **settings
    )


def test_every_option_stands_once_under_every_letter():
    assert cyclic_orders(3) == [[0, 1, 2], [2, 0, 1], [1, 2, 0]]
    for n in range(2, 6):
        assert all(sorted(place) == list(range(n)) for place in zip(*cyclic_orders(n), strict=True))
    text = question("A {brace} here", ["x", "y"])
    assert "A {brace} here" in text
    assert text.index("A:\nx") < text.index("B:\ny")


def test_a_share_is_the_mean_over_orders_of_what_fell_on_letters(serve, tmp_path):
    chat = Chat(lambda letter, option: kind_wins(letter, option) * (2 if letter == "A" else 1))
    chat.elsewhere = 0.2
    meta = choose_letters(config(serve(chat), tmp_path))
    row, *_ = rows = read_lines(tmp_path / "out" / "letters.jsonl")
    assert len(rows) == meta.n_items == 12
    assert row["shares"][0] == pytest.approx((6 / 7 + 3 / 5) / 2)
    assert sum(row["shares"]) == pytest.approx(1)
    assert row["covered"] == pytest.approx([0.8, 0.8])
    assert (meta.accuracy, meta.n_hardly_covered) == (1.0, 0)
    assert meta.mean_covered == pytest.approx(0.8)
    assert {b["temperature"] for b in chat.bodies} == {0}


def test_a_server_that_likes_a_letter_alone_shows_no_preference(serve, tmp_path):
    several = [
        {"id": "s", "context": "c", "options": [" one", " two", " three"], "answer": 1}, *PAIRS
    ]  # fmt: skip
    chat = Chat(lambda letter, _: 9.0 if letter == "A" else 1.0)
    choose_letters(config(serve(chat), tmp_path, several))
    for row in read_lines(tmp_path / "out" / "letters.jsonl"):
        assert row["shares"] == pytest.approx([1 / len(row["shares"])] * len(row["shares"]))


def test_identical_preferences_give_half(serve, tmp_path):
    meta = choose_letters(config(serve(Chat(lambda *_: 1.0)), tmp_path))
    shares = [row["shares"] for row in read_lines(tmp_path / "out" / "letters.jsonl")]
    assert all(share == pytest.approx([0.5, 0.5]) for share in shares)
    assert meta.n_unscored == 0


def test_what_was_chosen_is_not_asked_again(serve, tmp_path):
    chat = Chat(kind_wins)
    url = serve(chat)
    choose_letters(config(url, tmp_path, PAIRS[:5]))
    n = len(chat.bodies)
    with (tmp_path / "out" / "letters.jsonl").open("a") as file:
        file.write('{"id": "torn')
    meta = choose_letters(config(url, tmp_path))
    assert len(chat.bodies) == n + 1 + 2 * 7  # the probe, and both orders of the others
    assert meta.n_items == len(read_lines(tmp_path / "out" / "letters.jsonl")) == 12


def test_an_item_without_letters_is_unscored_with_the_reason(serve, tmp_path):
    def odds(_: str, option: str) -> float:
        return 1.0

    chat = Chat(odds)
    real = chat.top
    chat.top = lambda text: [{"token": "I", "logprob": -0.1}] if "Scene 3." in text else real(text)
    meta = choose_letters(config(serve(chat), tmp_path))
    assert (meta.n_items, meta.n_unscored) == (12, 1)
    (row,) = (r for r in read_lines(tmp_path / "out" / "letters.jsonl") if r.get("unscored"))
    assert (row["id"], row["shares"]) == ("p3", [])
    assert row["unscored"] == "no letter is among the likeliest first tokens"


def top_of(*entries: dict) -> dict:
    return {"choices": [{"logprobs": {"content": [{"top_logprobs": list(entries)}]}}]}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"choices": [{"message": {"content": "A"}}]}, "log-probabilities .* got none .probe"),
        ({"choices": [{"logprobs": None}]}, "got none"),
        ({"choices": []}, "got none"),
        (top_of({"token": "A", "logprob": 2}), "numbers that are no log-probabilities"),
        (top_of({"token": "<think>", "logprob": 0}), "a letter among the 20 likeliest"),
    ],
)
def test_a_server_that_gives_no_letters_is_refused_before_any_work(serve, tmp_path, answer, said):
    chat = Chat(kind_wins)
    chat.answer = answer
    with pytest.raises(ModelError, match=said):
        choose_letters(config(serve(chat), tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("status", "error"), [(404, ModelError), (400, ModelError), (503, ResourceError)]
)
def test_a_server_that_refuses_ends_it(serve, tmp_path, status, error):
    chat = Chat(kind_wins)
    chat.status = status
    url = serve(chat)
    client = Client(f"{url}/v1", patience=Patience(tries=2), sleep=lambda _: None)
    with pytest.raises(error):
        choose_letters(config(url, tmp_path), client=client)


@pytest.mark.parametrize("name", STRINGS, ids=lambda name: ascii(name)[:20])
def test_a_model_s_name_breaks_no_line_of_the_text(name):
    meta = LettersMeta(
        server="http://h", model=name, key="k", question="q", n_items=1, n_unscored=0,
        mean_covered=1.0, n_hardly_covered=0, accuracy=1.0,
    )  # fmt: skip
    text = letters_text(meta)
    assert len(text.splitlines()) == 3
    assert for_terminal(text, keep="\n") == text


def test_hostile_names_ids_and_texts_come_back_as_they_were(serve, tmp_path):
    """No file may hold NUL or half a pair, and no id be longer than a name, which are refused."""
    held = [s for s in STRINGS if s.strip() and len(s) <= 1000 and not {"\0", "\ud800"} & set(s)]
    pairs = [
        {"id": f"{s}{k}", "context": f"c {s}", "good": f" kind {s} .", "bad": f" mean {s} .",
         "group": s.strip(), "source_id": s}
        for k, s in enumerate(held)
    ]  # fmt: skip
    path, out = write_lines(tmp_path / "p.jsonl", pairs), tmp_path / f"out {held[0]}"
    given = ["--server", serve(Chat(kind_wins)), "--pairs", str(path), "--out", str(out)]
    for name in (held[0], "m\n:rocket: [red]x\u202e\x1b]0;a\x07"):
        asked = ["letters", *given, "--served-model", name, "--concurrency", "4"]
        done = CliRunner().invoke(main, asked)
        assert (done.exit_code, done.exception) == (0, None), done.stderr
        assert for_terminal(done.output, keep="\n") == done.output
        assert "🚀" not in done.output
        assert len(done.stdout.splitlines()) == 3
        as_json = CliRunner().invoke(main, [*asked, "--json"])
        assert json.loads(as_json.stdout) == json.loads((out / "letters.json").read_text("utf-8"))
        assert json.loads(as_json.stdout)["model"] == name
    rows = {row.id: row for row in read_letters(out / "letters.jsonl")}
    assert list(rows) == [pair["id"] for pair in pairs]
    assert [row.source_id for row in rows.values()] == held


def test_nobody_at_the_address_is_said_and_not_waited_for_long(tmp_path):
    """The waits are the command's own: three seconds."""
    pairs = write_lines(tmp_path / "p.jsonl", PAIRS)
    url = "http://127.0.0.1:1"
    given = ["--server", url, "--served-model", "m", "--pairs", str(pairs)]
    done = CliRunner().invoke(main, ["letters", *given, "--out", str(tmp_path / "out")])
    assert done.exit_code == 6
    note, error, _hint = done.stderr.splitlines()
    place = f"{url}/v1/chat/completions: "
    assert note == f"note: {place}Connection refused; asked up to 2 times more, within 3 s"
    assert error.startswith(f"error: {place}")
    assert "after 3 tries: Connection refused" in error
    assert not (tmp_path / "out").exists()


def test_a_wrong_key_is_never_shown(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "wrong")
    done = CliRunner().invoke(
        main,
        ["letters", "--server", serve(Chat(kind_wins)), "--served-model", "m", "--server-key-env",
         "MY_KEY", "--pairs", str(write_lines(tmp_path / "p.jsonl", PAIRS)), "--out",
         str(tmp_path / "out")],
    )  # fmt: skip
    assert done.exit_code == 4
    assert "wrong" not in done.output
    assert "--server-key-env" in done.stderr


def test_bad_settings_and_items_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="server to be an address"):
        config("localhost", tmp_path)
    many = {"id": "m", "context": "c", "options": [f" {k}" for k in range(21)], "answer": 0}
    with pytest.raises(DataError, match="at most 20 options"):
        choose_letters(config("http://localhost:1", tmp_path, [many]))


def test_two_chats_are_compared_by_letter_alone(serve, tmp_path):
    for name, odds in (("one", kind_wins), ("two", lambda letter, option: 1.0)):
        (tmp_path / name).mkdir()
        choose_letters(config(serve(Chat(odds)), tmp_path / name))
    folders = [tmp_path / name / "out" for name in ("one", "two")]
    found = compare(folders, CompareConfig(out=tmp_path / "compared"))
    group = found.groups["literary"]
    assert [set(system.rankings) for system in group.systems] == [{"letter"}, {"letter"}]
    assert group.systems[0].bits_per_byte is None
    (contrast,) = group.contrasts
    assert (contrast.reading, contrast.n_items) == ("letter", 12)
    assert contrast.rank_prob_difference == pytest.approx(0.5 - 0.75)
    assert "letter" in compare_text(found)
    assert not list(caveats(found))


def test_a_chat_and_a_model_that_scores_texts_stand_side_by_side_untested(serve, tmp_path):
    choose_letters(config(serve(Chat(kind_wins)), tmp_path))
    score(
        ScoreConfig(
            model=str(DEMO / "model"), pairs=(tmp_path / "pairs.jsonl",), out=tmp_path / "scores",
            device="cpu", summary=False,
        )
    )  # fmt: skip
    folders = [tmp_path / "scores", tmp_path / "out"]
    found = compare(folders, CompareConfig(out=tmp_path / "compared"))
    group = found.groups["literary"]
    assert group.n_items == 12
    assert [set(s.rankings) for s in group.systems] == [{"sum", "byte", "pmi"}, {"letter"}]
    assert not group.contrasts
    assert not found.agreements
    assert any("no reading in common" in text for text in caveats(found))
    systems = (tmp_path / "compared" / "tables" / "systems.csv").read_text()
    assert "n/a: a chat scores no text" in systems
    assert "n/a: not asked for letters" in systems


def test_forms_of_a_letter_are_summed():
    top = [{"token": t, "logprob": math.log(0.2)} for t in ("A", " A", "B", "Bee")]
    assert letter_probabilities(top_of(*top), 3) == pytest.approx([0.4, 0.2, 0.0])
    with pytest.raises(NoLettersError):
        letter_probabilities({}, 2)
