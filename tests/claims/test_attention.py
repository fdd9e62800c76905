"""The study of attention: rows by transformers' maps, toys, a planted head, refusals, figure."""

import json
import math
import shutil
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from claims.asking import MODEL
from helpers import read_lines, tiny_checkpoint, tiny_model, write_lines
from safetensors.torch import load_file, save_file

from cqa.assets import STUDIES
from cqa.claims.attention.claim import Attention
from cqa.claims.attention.config import AttentionConfig
from cqa.claims.attention.context import positions_of_context
from cqa.claims.attention.figure import draw_heads
from cqa.claims.attention.heads import AttentionResult, HeadTable, head_tests
from cqa.claims.attention.rows import AttentionRow, packed
from cqa.claims.attention.summary import summarised
from cqa.claims.run import run_study
from cqa.data.tokenizer import Tokenizer
from cqa.errors import DataError
from cqa.report.figure_style import svg_text

EXAMPLE = STUDIES / "attention.jsonl"
CHAT = "<user> {{ messages[0].content }} </user>\n"
LETTERS = "abdfghijklmn"
ITEMS = [  # for the tiny model contexts of 7 tokens and options of 2, as it merges none of these
    {
        "id": f"a{k}", "context": letter * 6 + "!", "good": f"{letter}.", "bad": "q",
        "source_id": f"s{k}",
    }
    for k, letter in enumerate(LETTERS)
]  # fmt: skip


def ask(model, pairs, out, **changes):
    config = AttentionConfig(model=str(model), pairs=(pairs,), out=out, device="cpu", **changes)
    return run_study(Attention(config), config)


def rows_of(out) -> dict[tuple[str, str | None], AttentionRow]:
    rows = [AttentionRow.from_json(r, "rows") for r in read_lines(out / "rows.jsonl")]
    return {(row.id, row.adapter): row for row in rows}


@torch.no_grad()
def maps_of_transformers(context: str, option: str, adapter=None) -> np.ndarray:
    """Attention of the option's rows, (layers, heads, rows, keys), in float64."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(
        MODEL, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    if adapter is not None:
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT asks for an old name
            model = PeftModel.from_pretrained(model, adapter).double()
    y, x = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (context, option))
    out = model(torch.tensor([y + x]), output_attentions=True, use_cache=False)
    return torch.cat(out.attentions)[:, :, len(y) :].numpy(), len(y)


def test_the_example_has_the_masses_of_transformers_maps(tmp_path, trained):
    adapter = trained / "epoch-02"
    items = read_lines(EXAMPLE)
    assert len({item["source_id"] for item in items}) >= 12
    result = ask(MODEL, EXAMPLE, tmp_path / "out", adapter=(adapter,))
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 2 * len(items)
    for name, path in ((None, None), ("epoch-02", adapter)):
        row = rows[items[3]["id"], name]
        a, n_y = maps_of_transformers(items[3]["context"], items[3]["good"], path)
        assert row.n_y[0] == n_y  # this tokenizer has no BOS
        mass, rest = a[..., :n_y].sum(-1), a[..., n_y:].sum(-1)
        own = row.shares()[0]
        assert own[..., 0] == pytest.approx(mass.mean(-1), abs=1e-4)
        assert own[..., 0] + rest.mean(-1) == pytest.approx(np.ones(a.shape[:2]), abs=1e-4)
        content = a[..., 1:n_y].sum(-1) / a[..., 1:].sum(-1)
        assert own[..., 1] == pytest.approx(content.mean(-1), abs=1e-4)
        uniform = n_y / (n_y + 1 + np.arange(a.shape[2]))
        assert row.log_ratio_nats[0][0] == pytest.approx(np.log(mass / uniform).mean(), abs=1e-3)
    by_name = {e.name: e for e in result.effects if e.group is None and e.adapter is None}
    held = np.stack([rows[item["id"], None].shares() for item in items])
    of_item = held.mean((2, 3), dtype=np.float64)
    excess = of_item[:, 0, 2] - of_item[:, 1, 2]
    assert by_name["contribution_excess"].value == pytest.approx(excess.mean())
    assert by_name["contribution_head"].p is not None
    assert result.n_tokens == sum(row.n_fed for (_, name), row in rows.items() if name is None)
    assert {f.mark for f in result.findings} <= {"shown", "not shown", "against"}
    written = json.loads((tmp_path / "out" / "study.json").read_text())
    again = AttentionResult.from_json(written, "study.json")
    tables = {(t.name, t.adapter): t for t in again.heads}
    assert len(tables) == 3 * 3  # the excess of both, and the change
    changed = np.array(tables["mass_head_change", "epoch-02"].values)
    other = np.stack([rows[item["id"], "epoch-02"].shares() for item in items])
    expected = ((other - held)[:, 0, ..., 0] - (other - held)[:, 1, ..., 0]).mean(0)
    assert changed == pytest.approx(expected, abs=1e-6)
    assert (tmp_path / "out" / "figure.svg").read_bytes().startswith(b"<?xml")


@pytest.fixture
def uniform(tmp_path):
    """A model in which every row sees all its keys alike."""
    folder = tiny_model(tmp_path / "model")
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file(
        {n: w * (".q_proj." not in n and ".k_proj." not in n) for n, w in weights.items()}, path,
        metadata={"format": "pt"},
    )  # fmt: skip
    return folder


def test_uniform_attention_is_no_attention_to_y(uniform, tmp_path):
    result = ask(uniform, write_lines(tmp_path / "i.jsonl", ITEMS), tmp_path / "out")
    found = {e.name: e for e in result.effects}
    uniform_mass = {"mass": np.mean([7 / 8, 7 / 9]), "content": np.mean([6 / 7, 6 / 8])}
    for name in ("mass", "content"):
        assert found[f"{name}_excess"].value == 0
        assert found[f"{name}_ratio"].value == pytest.approx(0, abs=2e-6)
        assert found[f"{name}_ratio_excess"].value == pytest.approx(0, abs=2e-6)
        assert found[name].value == pytest.approx(uniform_mass[name], abs=1e-6)
    marks = {f.name: f.mark for f in result.findings}
    assert "shown" not in (marks["attends"], marks["a head attends"])
    assert "no spread over sources" in result.findings[0].reason


def test_uniform_attention_to_contexts_of_other_lengths_has_no_ratio_either(uniform, tmp_path):
    items = [{**item, "context": item["context"] * (k + 1)} for k, item in enumerate(ITEMS)]
    result = ask(uniform, write_lines(tmp_path / "i.jsonl", items), tmp_path / "out")
    for row in rows_of(tmp_path / "out").values():
        assert row.log_ratio_nats == pytest.approx(np.zeros((2, 2)), abs=3e-6)
        assert row.n_y[0] != row.n_y[1]
    assert {f.mark for f in result.findings if "attends" in f.name} == {"not shown"}


def test_the_batch_changes_no_row(tmp_path):
    model, pairs = tiny_model(tmp_path / "model"), write_lines(tmp_path / "i.jsonl", ITEMS)
    for batch_tokens in (40, 4000):
        ask(model, pairs, tmp_path / str(batch_tokens), batch_tokens=batch_tokens)
    rows = [(tmp_path / out / "rows.jsonl").read_bytes() for out in ("40", "4000")]
    assert rows[0] == rows[1]


def drawn_rows(rng, n=14, layers=3, heads=4, planted=None, adapter=None) -> list[AttentionRow]:
    """Rows of noise that heads share, own and other of one law; a head looks at y if planted."""
    rows = []
    for k in range(n):
        shares = rng.gamma(2.0, 0.05, (2, layers, heads, 3)) + rng.gamma(2.0, 0.05, (2, 1, 1, 1))
        if planted is not None:
            shares[0, planted[0], planted[1]] += 0.4
        rows.append(
            AttentionRow(
                id=f"i{k}", group="g", source_id=f"s{k}", task_key=f"t{k}", model_key="m",
                adapter=adapter, n_layers=layers, n_heads=heads, shares_fp32=packed(shares),
                log_ratio_nats=((0.0, 0.0), (0.0, 0.0)), in_sight=(1.0, 1.0), n_y=(9, 9), n_fed=30,
            )
        )  # fmt: skip
    return rows


@pytest.mark.parametrize("planted", [(1, 2), (2, 0)])
def test_a_planted_head_is_found(planted):
    rng = np.random.default_rng(5)
    rows = {
        None: drawn_rows(rng), "looks": drawn_rows(rng, planted=planted, adapter="looks"),
        "blind": drawn_rows(rng, adapter="blind"),
    }  # fmt: skip
    result = summarised(rows)
    assert {name for panel in result.panels for name in panel} == {e.name for e in result.effects}
    assert len(result.findings) == len({(f.name, f.adapter) for f in result.findings}) == 3 * 6 - 2
    marks = {(f.name, f.adapter): f for f in result.findings}
    for name in ("a head attends", "a head contributes", "a head changed"):
        found = marks[name, "looks"]
        assert found.mark == "shown"
        assert f"top head (layer {planted[0]}, head {planted[1]}): +" in found.reason
        assert marks[name, "blind"].mark == "not shown"
    assert marks["a head contributes", None].mark == "not shown"
    for table in result.heads:
        if table.adapter == "looks":
            p = np.array(table.p)
            assert [tuple(at) for at in np.argwhere(p < 0.05)] == [planted]


def test_fewer_than_ten_sources_decide_nothing():
    result = summarised({None: drawn_rows(np.random.default_rng(1), n=9, planted=(0, 0))})
    assert {f.mark for f in result.findings} == {"n/a"}
    assert all(p is None for table in result.heads for layer in table.p for p in layer)


def test_of_noise_about_one_in_twenty_has_a_head_that_is_shown():
    rejected, repeats = 0, 150
    for seed in range(repeats):
        rows = drawn_rows(np.random.default_rng(seed), n=11, layers=2, heads=3)
        shares = np.stack([row.shares() for row in rows]).astype(np.float64)
        values = {None: shares[:, 0, ..., 2] - shares[:, 1, ..., 2]}
        _, ((largest, _),) = head_tests("h", "h", "excess", values, [r.source_id for r in rows])
        rejected += largest.p < 0.05
    assert 0 < rejected / repeats <= 0.075


def test_shares_are_read_back_exactly_and_damage_is_refused():
    (row,) = drawn_rows(np.random.default_rng(2), n=1)
    record = json.loads(json.dumps(row.to_json()))
    assert np.array_equal(AttentionRow.from_json(record, "here").shares(), row.shares())
    shares = np.random.default_rng(3).random((2, 1, 2, 3)).astype(np.float32)
    made = AttentionRow.from_json(
        {**record, "n_layers": 1, "n_heads": 2, "shares_fp32": packed(shares.astype(float))}, ""
    )
    assert np.array_equal(made.shares(), shares)
    for text, said in ((record["shares_fp32"][:-8], "bytes"), ("*", "base64")):
        with pytest.raises(DataError, match=f"expected .*{said}"):
            AttentionRow.from_json({**record, "shares_fp32": text}, "here")


@pytest.mark.parametrize("context", ["user", "She sat.", "雨が降る", "two\nlines ", "</user>"])
def test_y_is_found_in_a_template(context, tmp_path):
    (tmp_path / "chat.jinja").write_text(CHAT)
    tokenizer = Tokenizer(MODEL, template=str(tmp_path / "chat.jinja"))
    start, stop = positions_of_context(tokenizer, context, " It rained.", "here")
    rendered = tokenizer.render_context(context, " It rained.")
    ids = tokenizer.encode_context(rendered)
    parts = [tokenizer.decode(part) for part in (ids[:start], ids[start:stop], ids[stop:])]
    assert "".join(parts) == rendered
    assert parts[1].strip() == context.strip()
    assert parts[0].strip() == "<user>"
    assert parts[2].strip() == "</user>"


def test_all_of_a_plain_context_is_y():
    tokenizer = Tokenizer(MODEL)
    n = len(tokenizer.encode_context(" She sat. \n"))
    assert positions_of_context(tokenizer, " She sat. \n", " And", "") == (0, n)


def test_a_beginning_of_text_is_not_y_and_one_token_after_it_is_enough():
    tokenizer = Tokenizer(MODEL)
    tokenizer.bos_ids = (tokenizer.end_id,)
    spans = tokenizer.context_spans("She sat.")
    assert len(spans) == len(tokenizer.encode_context("She sat."))
    assert (spans[0], spans[-1][1]) == ((0, 0), 8)
    assert positions_of_context(tokenizer, "She sat.", " And", "") == (1, len(spans))
    assert positions_of_context(tokenizer, "a", " And", "") == (1, 2)


@pytest.mark.parametrize(
    ("template", "context", "said"),
    [
        ("{{ messages[0].content }} {{ messages[0].content }}:", "She sat.", "once and as it"),
        ("{{ messages[0].content | upper }}:", "She sat.", "without it"),
        ("pre{{ messages[0].content }}:", "d d d", "shares '.*' with the template"),
        (None, "a", "token besides the sequence's first"),
    ],
)
def test_a_context_whose_place_cannot_be_told_is_refused(template, context, said, tmp_path):
    pairs = write_lines(tmp_path / "i.jsonl", [{**ITEMS[0], "context": context}, *ITEMS[1:]])
    changes = {}
    if template:
        (tmp_path / "t.jinja").write_text(template)
        changes["template"] = str(tmp_path / "t.jinja")
    with pytest.raises(DataError, match=rf"i\.jsonl:1: expected .*{said}"):
        ask(MODEL, pairs, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"context": "word " * 5000}, r"i\.jsonl:2: expected at most \d+ tokens"),
        ({"id": "a0"}, r"i\.jsonl:2: .*`a0`"),
    ],
)
def test_bad_lines_are_named(change, said, tmp_path):
    pairs = write_lines(tmp_path / "i.jsonl", [ITEMS[0], {**ITEMS[1], **change}, *ITEMS[2:]])
    with pytest.raises(DataError, match=said):
        ask(MODEL, pairs, tmp_path / "out")


def test_contexts_of_one_source_cannot_be_dealt(tmp_path):
    pairs = write_lines(tmp_path / "i.jsonl", [{**item, "source_id": "one"} for item in ITEMS])
    with pytest.raises(DataError, match="of other sources, got too many of one source"):
        ask(MODEL, pairs, tmp_path / "out")


@pytest.fixture
def short_sighted(tmp_path):
    """A model of which no layer sees more than eight tokens."""
    folder = tiny_checkpoint(
        tmp_path / "mistral", "mistral", sliding_window=8, num_hidden_layers=1, vocab_size=304
    )
    tokens = tiny_model(tmp_path / "tokens")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokens / name, folder)
    return folder


def test_what_a_window_hides_is_told_or_refused(short_sighted, tmp_path):
    pairs = write_lines(tmp_path / "i.jsonl", ITEMS)
    result = ask(short_sighted, pairs, tmp_path / "out")
    assert any("partly beyond the window" in note for note in result.notes)
    assert all(0 < min(row.in_sight) < 1 for row in rows_of(tmp_path / "out").values())
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}: . : . : . : . : . : .")
    with pytest.raises(DataError, match=r"i\.jsonl:1: .*beyond the window of every layer"):
        ask(short_sighted, pairs, tmp_path / "far", template=str(tmp_path / "t.jinja"))


def test_the_figure_is_vectors_and_holds_hostile_names():
    rng = np.random.default_rng(4)

    def table(adapter, part) -> HeadTable:
        values = tuple(tuple(row) for row in rng.normal(size=(40, 64)).tolist())
        p = tuple((0.01,) + (None,) * 63 for _ in range(40))
        return HeadTable(
            name="n", label="l", part=part, adapter=adapter, values=values, p=p, p_against=p
        )

    names = ['<script>alert(1)</script> & "x"', "中文名字" * 40, "$x$", "_under", "e5"]
    figure = draw_heads([table(None, "excess"), *(table(name, "change") for name in names)])
    assert len(figure.axes) == 2 * 4  # with their bars
    scales = [ax.collections[0].norm.boundaries[-1] for ax in figure.axes[:4]]
    assert scales[1] == scales[2] == scales[3]
    svg = svg_text(figure, "title")
    assert "<image" not in svg  # a page shows none
    assert "<script>" not in svg
    zeros = HeadTable(
        name="n", label="l", part="excess", adapter=None, values=((0.0, 0.0),), p=((None, None),),
        p_against=((None, None),),
    )  # fmt: skip
    assert svg_text(draw_heads([zeros]), "title")
    bounds = draw_heads([zeros]).axes[0].collections[0].norm.boundaries
    assert all(math.isfinite(b) and a < b for a, b in pairwise(bounds))
