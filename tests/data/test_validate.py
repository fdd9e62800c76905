"""`validate` names every bad line, and what to be wary of."""

import json
import tracemalloc

import pytest
from helpers import DEMO, write_lines
from synthetic import make_folder

from cqa.data.validate import report_text, validate_files
from cqa.study.config import ValidateConfig
from cqa.study.validate import ModelEncoder

PAIR = {"id": "a", "context": "It was late.", "good": " She slept.", "bad": " She sank."}


def test_the_demo_files_are_clean():
    reports = validate_files(sorted(DEMO.glob("*.jsonl")))
    assert {report.kind for report in reports} == {"continuations", "pairs", "prompt"}
    assert [report.n_records for report in reports] == [40, 40, 40, 105]
    assert all(not report.errors and not report.warnings for report in reports)


def test_every_bad_line_is_named_and_the_good_ones_are_counted(tmp_path):
    path = write_lines(
        tmp_path / "pairs.jsonl",
        [PAIR, {**PAIR, "id": "b", "bad": ""}, {**PAIR, "id": "a"}, {**PAIR, "id": "c", "good": 3}],
    )
    (report,) = validate_files([path])
    assert report.n_records == 1
    assert [error.split(": ")[0] for error in report.errors] == [f"{path}:{n}" for n in (2, 3, 4)]


def test_scored_rows_are_told_from_items(tmp_path):
    folder = make_folder(tmp_path)
    (report,) = validate_files([folder / "scores.jsonl"])
    assert len(report.errors) == 2
    assert "got what was scored of one: a row of scores.jsonl; meta.json, in" in report.errors[0]
    assert "other lines of the same kind" in report.errors[1]


def test_many_errors_are_counted_in_the_text_and_listed_in_json(tmp_path):
    good = {"context": "c", "good": "a", "bad": "b"}
    lines = [good, *({"context": "c", "good": k} for k in range(140))]
    (report,) = validate_files([write_lines(tmp_path / "pairs.jsonl", lines)])
    assert len(report.errors) == 140
    text = report_text([report])
    assert text.count("  error: ") == 100
    assert "  … 40 more errors: --json has all" in text


def test_uneven_options_are_counted(tmp_path):
    long = {
        **PAIR,
        "id": "b",
        "context": "Then.",
        "bad": " She sank, slowly, and with a long sigh.",
    }
    (report,) = validate_files([write_lines(tmp_path / "p.jsonl", [PAIR, long])])
    assert report.warnings == [
        "1 of 2 items have options that differ by more than 1.2x in length, `b` first; a sum of "
        "log-probabilities favours the shorter"
    ]


def test_spaces_at_the_boundary_are_warned_of_unless_a_template_renders_the_texts(tmp_path):
    pairs = [{**PAIR, "good": "She slept."}, {**PAIR, "id": "b", "context": "Then. "}]
    files = [
        write_lines(tmp_path / "p.jsonl", pairs),
        write_lines(tmp_path / "t.jsonl", [{"prompt": "a sparrow", "response": "The girl"}]),
    ]
    (first, second), second_file = (report.warnings for report in validate_files(files))
    assert first.startswith("1 of 2 contexts ends in a space, `b` first; write it at the start of")
    assert second.startswith("1 of 2 options meets the context without a space, `a` first; nothing")
    assert second_file[0].startswith("1 of 1 response meets the prompt without a space, `line-1`")
    assert all(not report.warnings for report in validate_files(files, plain=False))


def test_what_is_learned_and_scored_of_the_first_records_is_shown(tmp_path):
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann."}]
    files = [
        write_lines(tmp_path / "p.jsonl", [PAIR]),
        write_lines(tmp_path / "t.jsonl", [{"messages": turns, "id": "s"}]),
    ]
    text = report_text(validate_files(files))
    assert "  first, scored between ⟦ and ⟧: It was late.⟦ She slept.⟧\n" in text
    assert text.endswith("  first, learned between ⟦ and ⟧: Who?⏎⟦Ann.⟧")
    encoder = ModelEncoder(str(DEMO / "model"), ValidateConfig())
    pairs, samples = validate_files(files, encoder=encoder)
    assert "".join(pairs.first.encoding.pieces) == PAIR["context"] + PAIR["good"]
    assert "".join(samples.first.encoding.pieces) == "Who?\nAnn.<|endoftext|>"
    start = samples.first.encoding.learned.index(True)
    assert "".join(samples.first.encoding.pieces[start:]) == "Ann.<|endoftext|>"
    assert "scored from 5 on: " in report_text([pairs])


def test_with_a_model_what_train_and_score_refuse_is_refused(tmp_path):
    long = {**PAIR, "id": "c", "context": "word " * 1100 + "end."}
    control = {**PAIR, "id": "b", "bad": " She<|endoftext|> sank."}
    files = [
        write_lines(tmp_path / "p.jsonl", [PAIR, control, long]),
        write_lines(tmp_path / "t.jsonl", [{"prompt": "a", "response": " b<|im_end|>"}]),
    ]
    encoder = ModelEncoder(str(DEMO / "model"), ValidateConfig())
    pairs, samples = validate_files(files, encoder=encoder)
    assert [error.split(": ")[0] for error in pairs.errors] == [f"{files[0]}:{n}" for n in (2, 3)]
    assert "control tokens, got `<|endoftext|>`" in pairs.errors[0]
    assert "at most 1024 tokens of context and option" in pairs.errors[1]
    assert (pairs.n_records, pairs.n_refused, samples.n_refused) == (1, 2, 1)
    allowed = ModelEncoder(str(DEMO / "model"), ValidateConfig(allow_special=True))
    assert [r.n_refused for r in validate_files(files, encoder=allowed)] == [1, 0]


def test_the_same_texts_under_two_ids_are_reported_across_files(tmp_path):
    first = write_lines(tmp_path / "p.jsonl", [PAIR])
    second = write_lines(tmp_path / "q.jsonl", [{**PAIR, "id": "z", "context": "It  was LATE."}])
    reports = validate_files([first, second])
    assert reports[1].warnings == [f"{second}:1: the same texts as {first}:1"]


@pytest.mark.parametrize("key", ["context", "good", "bad"])
def test_a_text_that_is_trained_on_is_reported(tmp_path, key):
    training = write_lines(tmp_path / "t.jsonl", [{"prompt": "Why?", "response": PAIR[key]}])
    pairs = write_lines(tmp_path / "p.jsonl", [PAIR])
    report = validate_files([pairs, training])[0]
    assert report.warnings == [f"{pairs}:1: a text that is trained on at {training}:1"]


def test_words_in_a_row_that_are_trained_on_are_reported(tmp_path):
    row = "the lamp had been lit an hour before anyone thought of the boat"
    training = write_lines(tmp_path / "t.jsonl", [{"prompt": f"So {row}.", "response": "No."}])
    pairs = write_lines(tmp_path / "p.jsonl", [{**PAIR, "good": f" {row.title()}!"}])
    report = validate_files([training, pairs])[1]
    (warning,) = [w for w in report.warnings if "trained on" in w]
    assert warning == f"{pairs}:1: words that are trained on (“{row}”) at {training}:1"


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_or_missing_file_is_an_error(tmp_path, content):
    empty = tmp_path / "e.jsonl"
    empty.write_bytes(content)
    reports = validate_files([empty, tmp_path / "absent.jsonl"])
    assert all(len(report.errors) == 1 for report in reports)
    assert "error:" in report_text(reports)


def test_no_text_is_kept_of_a_file_of_any_length(tmp_path):
    def peak_bytes(n: int) -> int:
        path = tmp_path / f"{n}.jsonl"
        with path.open("w") as file:
            for i in range(n):
                file.write(
                    json.dumps({**PAIR, "id": f"p{i}", "context": f"{i} " * 500 + "end."}) + "\n"
                )
        tracemalloc.start()
        (report,) = validate_files([path])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (report.n_records, report.warnings) == (n, [])
        return peak

    few, many = 100, 700
    assert (peak_bytes(many) - peak_bytes(few)) / (many - few) < 60


def test_leaks_are_found_whichever_file_comes_first(tmp_path):
    training = write_lines(tmp_path / "t.jsonl", [{"prompt": "Why?", "response": PAIR["good"]}])
    pairs = write_lines(tmp_path / "p.jsonl", [PAIR])
    for paths in ([pairs, training], [training, pairs]):
        (warned,) = [report for report in validate_files(paths) if report.warnings]
        assert warned.warnings == [f"{pairs}:1: a text that is trained on at {training}:1"]
