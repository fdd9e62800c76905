"""What `import cqa` offers: the numbers of the command, to the last bit."""

import math
import subprocess
import sys

import pytest
from helpers import ROOT, read_lines, tiny_model
from score.scoring import FACTUAL, LITERARY, MODEL, SEVERAL, TEXTS, rows_of

import cqa
from cqa.data.items import parse_pair
from cqa.errors import ConfigError, DataError, ModelError
from cqa.score.resident import Model

ALL = [*LITERARY, *FACTUAL, *SEVERAL, *TEXTS]
PAIR = ("She waited", " by the door.", " of the lamp.")


def written(config, adapter) -> list[dict]:
    rows = [row for row in rows_of(config.out) if row["adapter"] == adapter]
    return [{k: v for k, v in row.items() if k != "row_digest"} for row in rows]


@pytest.fixture(scope="module")
def model() -> Model:
    return cqa.load(MODEL, device="cpu")


def test_importing_is_instant():
    heavy = "{'torch', 'numpy', 'scipy', 'pandas', 'transformers', 'matplotlib'}"
    code = f"import sys, cqa; assert not {heavy} & set(sys.modules); assert callable(cqa.train)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_packages_stay_packages():
    from cqa.train import loop

    assert cqa.train.loop is loop
    with pytest.raises(AttributeError, match="nothing"):
        cqa.nothing  # noqa: B018


@pytest.mark.parametrize("batch_tokens", [4096, 90])
def test_rows_are_those_of_the_command(model, scored, run, batch_tokens):
    config, _, _ = scored
    for name in (None, "epoch-01", "epoch-02", None):
        adapter = run / name if name else None
        rows = model.score(ALL, adapter=adapter, tokens=True, batch_tokens=batch_tokens)
        assert [row.to_json() for row in rows] == written(config, name)


def test_logprobs_are_the_row_s(model, scored, run):
    config, _, _ = scored
    model.use(run / "epoch-02")
    assert model.adapter == run / "epoch-02"
    for name, adapter in (("epoch-02", {}), (None, {"adapter": None}), ("epoch-02", {})):
        row = next(r for r in written(config, name) if r["id"] == LITERARY[0]["id"])
        logp = model.logprobs(LITERARY[0]["context"], LITERARY[0]["good"], **adapter)
        assert logp == row["options"][0]["token_logp_given_context_nats"]
        assert math.fsum(logp) == row["options"][0]["logp_given_context_nats"]
    model.use(None)


def test_an_adapter_that_is_written_anew_is_read_anew(model, run, tmp_path):
    from shutil import copytree

    mine = tmp_path / "mine"
    copytree(run / "epoch-01", mine)
    model.use(mine)
    before = model.logprobs("The lamp", " was lit.")
    copytree(run / "epoch-02", mine, dirs_exist_ok=True)
    model.use(mine)
    assert model.logprobs("The lamp", " was lit.") != before
    model.use(None)


def test_items_are_tuples_dicts_and_parsed_ones(model):
    record = dict(zip(("context", "good", "bad"), PAIR, strict=True))
    given = (form for form in [PAIR, record, {**record, "id": "mine"}, parse_pair(record, "f:3")])
    rows = model.score(given)
    assert [row.id for row in rows] == ["items-1", "items-2", "mine", "f-3"]
    assert len({row.delta_i_nats for row in rows}) == 1
    assert model.score([]) == []


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([PAIR, ("A", "b")], "item 2 .*expected a dict or a tuple"),
        (["text"], "item 1 .*expected a dict or a tuple"),
        ([{"context": "A", "good": " b"}], "item 1 .*expected text in `bad`"),
        ([{"id": "a", "context": "A", "continuation": " b"}] * 2, "item 2.*expected each id once"),
        ([{"context": "A", "good": " b", "bad": " c", "more": {1, 2}}], "expected values as JSON"),
        ([("a " * 9000, " b", " c")], "expected at most .* tokens"),
    ],
)
def test_bad_items_are_refused_by_their_place(model, items, message):
    with pytest.raises(DataError, match=message):
        model.score(items)


def test_bad_adapters_are_refused_and_the_model_goes_on(model, run, tmp_path):
    other = cqa.load(tiny_model(tmp_path / "tiny"), device="cpu")
    before = other.logprobs(*PAIR[:2])
    with pytest.raises(ModelError):
        other.use(run / "epoch-01")
    with pytest.raises(ModelError):
        other.score([PAIR], adapter=tmp_path / "none")
    assert other.adapter is None
    assert other.logprobs(*PAIR[:2]) == before
    with pytest.raises(ModelError, match="changes the model"):
        model.score([PAIR], adapter=run / "init")
    with pytest.raises(DataError, match="empty"):
        model.logprobs("She", "")


def test_the_commands_are_functions(data, run, tmp_path):
    """One value stands for a list of it, and paths may be text."""
    found = cqa.score(
        model=str(MODEL), run=run, epochs="1", pairs=str(data / "few.jsonl"),
        out=tmp_path / "scores", device="cpu",
    )  # fmt: skip
    assert (found.n_items, found.n_models) == (4, 2)
    page, *_ = cqa.report(tmp_path / "scores", out=str(tmp_path / "report"))
    assert page == tmp_path / "report" / "report.html"
    assert page.is_file()
    train = tmp_path / "train.jsonl"
    train.write_text('{"prompt": "a", "response": " b"}\n' * 2)
    events: list[object] = []
    result = cqa.train(
        model=str(MODEL), data=train, out=tmp_path / "run", epochs=1, rank=2, validation=0,
        preset="paper", warmup_ratio=0, device="cpu", on_event=events.append,
    )  # fmt: skip
    assert result.epochs == ("epoch-01",)
    assert [event["event"] for event in read_lines(tmp_path / "run" / "log.jsonl")] == ["step"]
    assert len(events) >= 2


def test_settings_are_checked_as_the_command_does(tmp_path):
    with pytest.raises(ConfigError, match="did you mean `pairs`"):
        cqa.score(model="m", out=tmp_path, pair="x")
    with pytest.raises(ConfigError, match="--out"):
        cqa.report(tmp_path)
    with pytest.raises(ConfigError, match="preset"):
        cqa.train(model="m", preset="none")


@pytest.mark.parametrize(
    ("setting", "known"),
    [
        ({"device": "tpu"}, r"device to be auto \| cpu \| cuda, got: 'tpu'"),
        ({"dtype": "fp16"}, r"dtype to be auto \| fp32 \| bf16, got: 'fp16'"),
        ({"engine": ["cqa"]}, r"engine to be cqa \| transformers, got: \['cqa'\]"),
    ],
)
def test_a_model_is_loaded_with_known_settings_only(setting, known):
    with pytest.raises(ConfigError, match=known):
        cqa.load(MODEL, **setting)


def test_a_pass_of_no_token_is_refused(model):
    with pytest.raises(ConfigError, match="batch-tokens from 1"):
        model.score([PAIR], batch_tokens=0)
