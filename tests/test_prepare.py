"""examples/real_run/prepare.py: our files from the sources', in the sources' own formats."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT, read_lines

from cqa.data.items import read_items

RANKINGS = "Writing_Alignment/preference_ranking/batch1"
TASKS = "scripts/eval/local_data"
ORDERS = {  # how each judge was shown the three texts, and how they ranked them
    "ada": (["model", "human", "machine"], [2, 1, 3]),
    "ben": (["machine", "model", "human"], [3, 2, 1]),
    "cyd": (["human", "machine", "model"], [3, 1, 2]),
}
TEXTS = {"model": "The rain fell softly. ", "human": "It rained.", "machine": "Rain, softly."}
WHOSE = {"model": "AI-generated", "human": "Human-edited", "machine": "AI-edited"}


@pytest.fixture
def sources(tmp_path):
    """The three repositories in small."""
    files: dict[str, object] = {
        "art/Art_or_Artifice/tests/ttcw_all_tests.json": [
            {"ttcw_idx": 1, "torrance_dimension": "Fluency", "category": "Ending",
             "question": "Is the end earned?", "full_prompt": ""}
        ],
        "art/Art_or_Artifice/stories/ttcw_short_stories.json": [
            {"story_idx": 0, "story_id": f"0_{who}", "plot": "A lamp goes out.", "content": ""}
            for who in ("NewYorker", "Claude")
        ],
        "art/Art_or_Artifice/annotations/ttcw_annotations.json": [
            {"story_idx": 0, "story_id": f"0_{who}", "expert_idx": expert, "ttcw_idx": 1,
             "category": "Ending", "binary_verdict": "No",
             "explanation": f"Too soon, {expert}. " + "So it goes. " * words}
            for who in ("NewYorker", "Claude") for expert, words in ((7, 20), (8, 18), (9, 20))
        ],
    }  # fmt: skip
    for judge, (shown, ranked) in ORDERS.items():
        labels = [f"Response {i}" for i in (1, 2, 3)]
        files[f"art/{RANKINGS}/{judge}.json"] = [
            {"instruction": "Describe the weather.", "responses": [TEXTS[who] for who in shown],
             "mapping": {n: WHOSE[w] for n, w in zip(labels, shown, strict=True)},
             "id": "gene_1", "instruction_id": 1}
        ]  # fmt: skip
        places = {f"rank_{i}": f"Response {r}" for i, r in enumerate(ranked, 1)}
        files[f"art/{RANKINGS}/{judge}_rankings.json"] = [{"instruction_id": 1, **places}]
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    for name, rows in {
        "world_knowledge/arc_easy": [
            {"query": "Question: What is wet?\n", "choices": ["sand", "a sea", "ash"], "gold": 1}
        ],
        "commonsense_reasoning/openbook_qa": [
            {"query": "A stove is", "choices": ["hot", "wet", "a verb"], "gold": 0}
        ],
        "commonsense_reasoning/piqa": [
            {"query": "Question: Cut bread.\n", "choices": ["spoon", "knife"], "gold": 1}
        ],
    }.items():
        path = tmp_path / "tasks" / TASKS / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "fig/data/filtered/dev.csv"
    path.parent.mkdir(parents=True)
    path.write_text(
        ",startphrase,ending1,ending2,labels,valid,qid\n"
        '0,He is a lamp,"He is bright, and warm",He is dim,0,1,4\n'
        '1,He is a cellar,"He is bright, and warm",He is dim,1,1,4\n'
    )
    return tmp_path


def prepare(folder, *settings):
    script = ROOT / "examples" / "real_run" / "prepare.py"
    command = [sys.executable, script, "out", *settings]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_all_files_are_made_and_are_ours(sources):
    named = ["--creativity-eval", "art", "--fig-qa", "fig", "--llm-foundry", "tasks"]
    done = prepare(sources, *named, "--explanations", "2")
    assert done.returncode == 0, done.stderr
    (edit,) = read_lines(sources / "out/pairs/literary_expert_edits.jsonl")
    assert (edit["good"], edit["bad"]) == (" It rained.", " The rain fell softly.")
    assert (edit["expert_votes_for_good"], edit["expert_votes"]) == (2, 3)
    light, dark = read_lines(sources / "out/pairs/literary_figurative.jsonl")
    assert (light["good"], dark["good"]) == (" He is bright, and warm", " He is dim")
    assert light["id"] != dark["id"]
    assert light["source_id"] == dark["source_id"]
    (arc,) = read_lines(sources / "out/pairs/factual_arc_easy.jsonl")
    assert (arc["context"], arc["options"][arc["answer"]]) == (
        "Question: What is wet?\nAnswer:",
        " a sea",
    )
    (piqa,) = read_lines(sources / "out/pairs/factual_piqa.jsonl")
    assert (piqa["good"], piqa["bad"]) == (" knife", " spoon")
    assert len(list(read_items(sorted((sources / "out/pairs").glob("*.jsonl"))))) == 6
    samples = read_lines(sources / "out/train/expert_explanations_105.jsonl")
    assert [s["id"] for s in samples] == [
        "0_Claude-1-7",
        "0_Claude-1-9",
    ]  # reasons of 60 words or more
    assert samples[0]["prompt"] == "Story: A lamp goes out.\n\nQuestion: Is the end earned?\n"
    assert (
        samples[0]["response"] == "Too soon, 7. " + "So it goes. " * 19 + "So it goes.\nAnswer: No"
    )


def test_a_source_that_lacks_a_file_is_one_message(sources):
    (sources / "fig/data/filtered/dev.csv").unlink()
    done = prepare(sources, "--fig-qa", "fig")
    assert done.returncode == 1
    assert done.stderr.startswith("error: expected pairs/literary_figurative from the source")
    assert "Traceback" not in done.stderr
