r"""Make the study's files from the files that their authors published.

    git clone https://github.com/salesforce/creativity_eval
    git clone https://github.com/nightingal3/Fig-QA
    git clone https://github.com/mosaicml/llm-foundry
    python prepare.py OUT --creativity-eval creativity_eval --fig-qa Fig-QA \
        --llm-foundry llm-foundry

Each source that is named gives its files in OUT, whole:

    creativity_eval, BSD-3
        train/expert_explanations_105.jsonl: writers' verdicts on stories by models, with reasons of
            60 words or more (TTCW); --explanations of them, at even distances
        pairs/literary_expert_edits.jsonl: a model's paragraph and a writer's edit of it (LAMP);
            good is what most of the judges ranked higher
    Fig-QA, MIT and CC BY-SA 4.0
        pairs/literary_figurative.jsonl: a figure of speech with its reading and the opposite one
    llm-foundry, Apache-2.0, which holds copies of
        pairs/factual_{arc_easy,openbookqa,piqa}.jsonl: ARC and OpenBookQA (AI2), PIQA
"""

import argparse
import csv
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Records = Iterator[dict[str, Any]]
RANKINGS = "Writing_Alignment/preference_ranking"
TTCW = "Art_or_Artifice"
LEAST_WORDS = 60  # of a reason: shorter ones say little but yes or no
COPIES = {"arc_easy": "arc_easy", "openbookqa": "openbook_qa", "piqa": "piqa"}


def main() -> None:
    """Read the command line and write what the named sources give."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--creativity-eval", type=Path)
    parser.add_argument("--fig-qa", type=Path)
    parser.add_argument("--llm-foundry", type=Path)
    parser.add_argument("--explanations", type=int, default=105)
    given = parser.parse_args()
    files: dict[str, Callable[[], Records]] = {}
    if given.creativity_eval:
        root, n = given.creativity_eval, given.explanations
        files["train/expert_explanations_105"] = lambda: spread(list(explanations(root)), n)
        files["pairs/literary_expert_edits"] = lambda: expert_edits(root)
    if given.fig_qa:
        files["pairs/literary_figurative"] = lambda: figurative(given.fig_qa)
    if given.llm_foundry:
        for task in COPIES:
            files[f"pairs/factual_{task}"] = lambda task=task: factual(given.llm_foundry, task)
    for name, records in files.items():
        try:
            lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records()]
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            sys.exit(f"error: expected {name} from the source's own files, got: {error!r}")
        path = given.out / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")
        print(f"{path}: {len(lines)} records")


def read(path: Path) -> Any:
    """Return what a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def explanations(root: Path) -> Records:
    """Yield each verdict on a story by a model, with the expert's reason."""
    tests = {test["ttcw_idx"]: test for test in read(root / TTCW / "tests/ttcw_all_tests.json")}
    stories = read(root / TTCW / "stories/ttcw_short_stories.json")
    plots = {story["story_id"]: story["plot"].strip() for story in stories}
    for verdict in read(root / TTCW / "annotations/ttcw_annotations.json"):
        name, number, reason = verdict["story_id"], verdict["ttcw_idx"], verdict["explanation"]
        if name.endswith("_NewYorker") or len(reason.split()) < LEAST_WORDS:
            continue
        test = tests[number]
        yield {
            "id": f"{name}-{number}-{verdict['expert_idx']}",
            "prompt": f"Story: {plots[name]}\n\nQuestion: {test['question']}\n",
            "response": f"{reason.strip()}\nAnswer: {verdict['binary_verdict']}",
            "category": test["category"],
            "dimension": test["torrance_dimension"],
            "source_id": name,
        }


def spread(records: list[dict[str, Any]], n: int) -> Records:
    """Yield n records at even distances, or all of them."""
    n = min(n, len(records))
    return (records[i * len(records) // n] for i in range(n))


def expert_edits(root: Path) -> Records:
    """Yield a model's paragraph and the writer's edit where most judges agree on the better one."""
    for batch in sorted((root / RANKINGS).glob("batch*")):
        judged: dict[str, list[bool]] = defaultdict(list)
        texts: dict[str, tuple[str, str, str]] = {}
        for path in sorted(batch.glob("*_rankings.json")):
            ranks = {r["instruction_id"]: r for r in read(path)}
            for shown in read(path.with_name(path.name.replace("_rankings", ""))):
                # each judge saw the texts in an order of their own
                label = {whose: name for name, whose in shown["mapping"].items()}
                model, human = label["AI-generated"], label["Human-edited"]
                rank = ranks[shown["instruction_id"]]
                order = [rank["rank_1"], rank["rank_2"], rank["rank_3"]]
                judged[shown["id"]].append(order.index(human) < order.index(model))
                at = [int(name.removeprefix("Response ")) - 1 for name in (human, model)]
                edit, original = (shown["responses"][i] for i in at)
                texts[shown["id"]] = shown["instruction"], edit, original
        for name, (instruction, edit, original) in texts.items():
            votes = sum(judged[name])
            if 2 * votes == len(judged[name]):
                continue
            better, worse = (edit, original)[:: 1 if 2 * votes > len(judged[name]) else -1]
            yield {
                "id": f"lamp-{name}",
                "context": instruction,
                "good": f" {better.strip()}",
                "bad": f" {worse.strip()}",
                "group": "literary",
                "lang": "en",
                "expert_votes_for_good": max(votes, len(judged[name]) - votes),
                "expert_votes": len(judged[name]),
                "source": f"salesforce/creativity_eval {RANKINGS}",
            }


def figurative(root: Path) -> Records:
    """Yield each figure of speech of the development set with its two readings."""
    path = root / "data/filtered/dev.csv"
    seen: dict[str, int] = defaultdict(int)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            right = int(row["labels"])
            readings = row["ending1"], row["ending2"]
            number = seen[row["qid"]]
            seen[row["qid"]] += 1
            yield {
                "id": f"figqa-dev-{row['qid']}-{number}",
                "context": row["startphrase"],
                "good": f" {readings[right]}",
                "bad": f" {readings[1 - right]}",
                "group": "literary",
                "lang": "en",
                "source_id": f"figqa-{row['qid']}",  # both figures share their readings
                "source": "nightingal3/Fig-QA",
            }


def shortest(root: Path, name: str) -> Path:
    """Return where a repository has a file: of several copies the one of the shortest path."""
    found = sorted(root.rglob(name), key=lambda path: (len(path.parts), path))
    if not found:
        raise FileNotFoundError(f"no {name} in {root}")
    return found[0]


def factual(root: Path, task: str) -> Records:
    """Yield the questions of a task, as pairs where there are two options."""
    path = shortest(root, f"{COPIES[task]}.jsonl")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        question = row["query"] + ("Answer:" if row["query"].startswith("Question:") else "")
        options = [f" {choice}" for choice in row["choices"]]
        right = row["gold"]
        known = {"group": "factual", "lang": "en", "source": f"mosaicml/llm-foundry {path.name}"}
        item = {"id": f"{task}-{number}", "context": question}
        if len(options) == 2:
            yield item | {"good": options[right], "bad": options[1 - right]} | known
        else:
            yield item | {"options": options, "answer": right} | known


if __name__ == "__main__":
    main()
