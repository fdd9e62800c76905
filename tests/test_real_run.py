"""examples/real_run: the items it chooses, and the run that continues and ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import DEMO, ROOT, read_lines, write_lines

SCRIPTS = ROOT / "examples" / "real_run"
PASSAGE = {"id": "1", "context": "one two three four", "good": " five six seven", "bad": " x"}


def chosen(tmp_path, items, *settings):
    """What choose.py leaves of some items."""
    source = write_lines(tmp_path / "items.jsonl", items)
    command = [sys.executable, SCRIPTS / "choose.py", source, tmp_path / "out.jsonl", *settings]
    subprocess.run(command, check=True, capture_output=True)
    return read_lines(tmp_path / "out.jsonl")


def test_the_first_items_within_the_characters_are_chosen(tmp_path):
    items = [{"id": str(i), "context": "abc", "options": ["d", "ef"], "answer": 0} for i in (1, 2)]
    assert chosen(tmp_path, items) == items
    assert chosen(tmp_path, items, "--characters", "12") == items
    assert chosen(tmp_path, items, "--characters", "11") == items[:1]


@pytest.mark.parametrize(
    ("cut", "context", "good"),
    [
        ("9", "four", " five six"),
        ("10", "three four", " five six"),
        ("99", PASSAGE["context"], PASSAGE["good"]),
        ("2", "ur", " f"),
    ],
)
def test_passages_are_cut_in_whole_words(tmp_path, cut, context, good):
    expected = PASSAGE | {"context": context, "good": good}
    assert chosen(tmp_path, [PASSAGE], "--cut", cut) == [expected]


@pytest.mark.slow
def test_a_run_continues_with_more_items_and_then_does_nothing(tmp_path):
    data = tmp_path / "data"
    rows = read_lines(DEMO / "train.jsonl")[:4]
    for folder in ("train", "pairs", "continuations"):
        (data / folder).mkdir(parents=True)
    write_lines(data / "train" / "expert_explanations_105.jsonl", rows)
    for group in ("literary", "factual"):
        write_lines(data / "pairs" / f"{group}_x.jsonl", read_lines(DEMO / f"{group}.jsonl")[:6])
    for name in ("literary", "factual"):
        texts = read_lines(DEMO / "continuations.jsonl")[:2]
        write_lines(
            data / "continuations" / f"{name}.jsonl",
            [t | {"id": name + t["id"], "group": name} for t in texts],
        )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    settings = {
        "EPOCHS": "2", "SEEDS": "0,1", "PLACEBO": "1", "SCORED": "1,2", "MORE": "2",
        "NULLS": "1", "CUT": "120", "JOBS": "2",
    }  # fmt: skip

    def run(characters: str) -> str:
        environment = os.environ | settings | {"PATH": path, "CHARACTERS": characters}
        command = [SCRIPTS / "run.sh", DEMO / "model", data, tmp_path / "out"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("1000")
    first = read_lines(tmp_path / "out/scores/scores.jsonl")
    run("2000")
    second = read_lines(tmp_path / "out/scores/scores.jsonl")
    assert len(second) > len(first)
    assert second[: len(first)] == first
    adapters = {row["adapter"] for row in second}
    assert adapters == {None, "epoch-01", "seed-0/epoch-02", "seed-1/epoch-02", "placebo/epoch-02"}
    verdict = json.loads((tmp_path / "out/scores/summary.json").read_text())["verdict"]
    assert "placebo" in {finding["name"] for finding in verdict["findings"]}
    assert run("2000") == f"{tmp_path}/out/report/report.html\n"


def test_items_of_studies_are_made_of_passages_and_of_figures(tmp_path):
    """A context is its last two sentences; of two meanings of a figure the first is taken."""
    data = tmp_path / "data" / "pairs"
    data.mkdir(parents=True)
    long = {"good": " It rained on. " * 30, "bad": " It was dry. " + "word " * 99}
    passages = [
        {"id": "p1", "context": "One came. Two left. Three sat down. Four slept.", **long},
        {"id": "p2", "context": "Too short. To be parted. So it is not.", **long},
    ]
    figures = [
        {"id": f"f-{n}-{k}", "context": "As calm as", "good": " a", "bad": " b"}
        for n in (1, 2) for k in (0, 1)
    ]  # fmt: skip
    write_lines(data / "literary_true_continuation.jsonl", passages)
    write_lines(data / "literary_figurative.jsonl", figures)
    copa = {"context": "It froze because", "good": " it was cold.", "bad": " it was late."}
    write_lines(data / "narrative_copa.jsonl", [{"id": f"bcopa-{n}", **copa} for n in (1, 2)])
    command = [sys.executable, str(SCRIPTS / "study_items.py"), str(data.parent)]
    subprocess.run([*command, str(tmp_path / "out")], check=True)
    (item,) = read_lines(tmp_path / "out" / "conditions.jsonl")
    assert (item["condition"], item["context"]) == (
        "One came. Two left.",
        "Three sat down. Four slept.",
    )
    assert item["good"].endswith("It rained on.")
    assert len(item["good"]) <= 220
    assert item["bad"] == " It was dry."
    (constrained,) = read_lines(tmp_path / "out" / "constrained.jsonl")
    assert (constrained["id"], len(constrained["constraints"])) == ("bcopa-1", 2)
    works = read_lines(tmp_path / "out" / "works.jsonl")
    assert [(w["id"], w["work"][:8]) for w in works] == [("p1", "It raine"), ("p2", "It raine")]
    found = read_lines(tmp_path / "out" / "figurative.jsonl")
    assert [(i["id"], i["source_id"]) for i in found] == [("f-1-0", "f-1"), ("f-2-0", "f-2")]
