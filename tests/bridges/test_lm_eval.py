"""lm-eval's tasks here and under its own Hugging Face backend: the same numbers."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from cqa_fast.main import main
from helpers import DEMO, read_lines, shared, write_lines
from hostile import STRINGS

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from cqa.bridges.lm_eval import CqaLM  # noqa: E402
from cqa.bridges.lm_eval_run import results_text  # noqa: E402
from cqa.errors import ConfigError, DataError, ResourceError  # noqa: E402
from cqa.escape import for_terminal  # noqa: E402
from cqa.train.config import TrainConfig  # noqa: E402
from cqa.train.loop import train  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of lm-eval and what it imports

QUESTIONS = [
    ("Water boils when it is", ["hot enough.", "cold.", "blue.", "late in spring."], 0),
    ("A lamp needs oil to", ["burn.", "swim.", "sing.", "walk home."], 0),
    ("Ice melts in the", ["dark.", "sun.", "frost.", "letter."], 1),
    ("Birds build nests from", ["iron.", "thunder.", "twigs.", "noon."], 2),
    ("The moon goes round the", ["lamp.", "sea.", "town.", "earth."], 3),
    ("To cross a river you take a", ["boat.", "loaf.", "stove.", "key."], 0),
]
STORIES = [
    ("She read the letter twice.", ["Then she put it in the stove.", "The stove read her twice."]),
    ("The train was late, so he", ["walked up and down the platform.", "was the train."]),
    ("They had waited all winter for", ["the road to open.", "the open to road of."]),
    ("Once upon a time there was a", ["little girl who liked to play.", "of and the to."]),
]
TASKS = {
    "local_arc": """
        doc_to_text: "Question: {{question}}\\nAnswer:"
        doc_to_target: "{{answer}}"
        doc_to_choice: "{{choices}}"
        output_type: multiple_choice
        should_decontaminate: false
    """,
    "local_hellaswag": """
        doc_to_text: "{{question}}"
        doc_to_target: "{{answer}}"
        doc_to_choice: "{{choices}}"
        output_type: multiple_choice
    """,
    "local_piqa": """
        doc_to_text: "Goal: {{question}} "
        doc_to_target: "{{answer}}"
        doc_to_choice: "{{choices}}"
        target_delimiter: ""
        output_type: multiple_choice
    """,
    "local_rolling": """
        doc_to_text: ""
        doc_to_target: "{{text}}"
        output_type: loglikelihood_rolling
    """,
}
ACCURACY = "[{metric: acc}, {metric: acc_norm}, {metric: acc_mutual_info}]"
ROLLING = "[{metric: word_perplexity}, {metric: bits_per_byte}]"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A folder of task files with their data beside them."""
    folder = tmp_path_factory.mktemp("tasks")
    arc = [{"question": q, "choices": c, "answer": a} for q, c, a in QUESTIONS]
    stories = [{"question": q, "choices": c, "answer": 0} for q, c in STORIES]
    texts = [{"text": r["context"][:400] + r["continuation"]} for r in
             read_lines(DEMO / "continuations.jsonl")[:3]]  # fmt: skip
    texts.append({"text": " ".join(row["text"] for row in texts) * 3})  # longer than any window
    held = {
        "local_arc": arc, "local_hellaswag": stories, "local_piqa": stories,
        "local_rolling": texts,
    }  # fmt: skip
    for name, rows in held.items():
        data = write_lines(folder / f"{name}.jsonl", rows)
        settings = "\n".join(line.strip() for line in TASKS[name].strip().splitlines())
        metrics = ROLLING if "rolling" in name else ACCURACY
        if name == "local_hellaswag":
            metrics = "[{metric: acc}, {metric: acc_norm}]"
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n"
            f"test_split: test\nfewshot_split: test\n{settings}\nmetric_list: {metrics}\n"
            "metadata: {version: 1.0}\n"
        )
    return folder


@pytest.mark.parametrize("name", STRINGS, ids=lambda name: ascii(name)[:20])
def test_a_task_s_name_breaks_no_line_of_the_table(name):
    def text_of(alias: str) -> str:
        held = {"task": {"alias": f" - {alias}", "acc,none": 0.5, "acc_stderr,none": 0.1}}
        return results_text(
            {"results": held, "versions": {"task": 1}, "n-shot": {"task": 0},
             "higher_is_better": {"task": {"acc": True}}}
        )  # fmt: skip

    text = text_of(name)
    assert len(text.splitlines()) == len(text_of("a").splitlines()) == 3
    assert for_terminal(text, keep="\n") == text


@pytest.fixture(scope="module", params=["demo", "stories260k"])
def folder(request) -> Path:
    return DEMO / "model" if request.param == "demo" else shared("models/stories260k")


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run")
    data = write_lines(
        out / "train.jsonl", [{"prompt": "The lamp", "response": " was lit and she waited."}] * 2
    )
    train(
        TrainConfig(
            model=str(folder), data=(data,), out=out / "run", epochs=2, rank=4, lr=3e-2,
            validation="0", warmup_ratio=0.0, device="cpu",
        )
    )  # fmt: skip
    return out / "run" / "epoch-02"


@pytest.fixture(scope="module")
def models(folder, adapter) -> dict[str, tuple[CqaLM, HFLM]]:
    """Ours and lm-eval's, by what they are: the base, or with the adapter.

    Lm-eval's is in fp64: in fp32 its own sums over thousands of tokens are off by up to 1e-3.
    """
    found = {}
    for name, path in (("base", None), ("adapter", adapter)):
        theirs = HFLM(
            pretrained=str(folder), peft=str(path) if path else None, device="cpu",
            batch_size=4, dtype="float64",
        )  # fmt: skip
        theirs.model.double()  # PEFT leaves an adapter as its file has it
        found[name] = (CqaLM(folder, path, device="cpu", batch_tokens=300), theirs)
    return found


def close_to(logp: float):
    """Return what equals a sum of log-probs to 1e-4 nats, and to fp32's precision of the sum."""
    return pytest.approx(logp, abs=1e-4, rel=torch.finfo(torch.float32).eps)


def requests(*args: tuple[str, ...]) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=a) for a in args]


def evaluate(model, tasks: Path, **settings):
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return lm_eval.simple_evaluate(
        model=model, tasks=list(TASKS), task_manager=manager,
        bootstrap_iters=0, **settings,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "adapter"])
def test_tasks_give_what_the_other_backend_gives(models, tasks, name):
    ours, theirs = (evaluate(model, tasks, num_fewshot=1) for model in models[name])
    for task in TASKS:
        mine, other = ours["results"][task], theirs["results"][task]
        for metric in (m for m in other if m.startswith(("acc", "word", "bits"))):
            if isinstance(other[metric], float):
                close = pytest.approx(other[metric], rel=1e-6)
                assert mine[metric] == (close if "rolling" in task else other[metric]), metric
        n_compared = 0
        for a, b in zip(ours["samples"][task], theirs["samples"][task], strict=True):
            flat = zip(numbers(a["resps"]), numbers(b["resps"]), strict=True)
            for x, y in flat:
                assert x == close_to(y)
                n_compared += 1
        assert n_compared >= len(ours["samples"][task])
    assert len({sample["doc_id"] for sample in ours["samples"]["local_arc"]}) == len(QUESTIONS)


def numbers(value) -> list[float]:
    """Return all numbers of nested responses, truth values as 0 and 1."""
    if isinstance(value, (list, tuple)):
        return [x for part in value for x in numbers(part)]
    return [float(value in ("True", True)) if str(value) in ("True", "False") else float(value)]


def test_the_adapter_changes_the_numbers(models):
    asked = requests(("The lamp", " was lit."))
    (base, _), (adapted, _) = models["base"], models["adapter"]
    assert base.loglikelihood(asked, disable_tqdm=True) != adapted.loglikelihood(asked)


@pytest.mark.parametrize("name", ["base", "adapter"])
def test_requests_of_every_kind_agree_in_their_order(models, name):
    """Empty contexts, trailing spaces, BOS that is written, doubles, and what is too long."""
    ours, theirs = models[name]
    bos = theirs.tokenizer.decode(theirs.prefix_token_id)
    long = "the door and the lamp " * (theirs.max_length // 3)
    asked = requests(
        ("", "The lamp was lit."),
        ("She waited", " by the door."),
        ("She waited  ", "by the door."),
        ("She waited \n", " by the door."),
        ("A", " b"),
        ("She waited", " in the rain, and"),
        (bos + "She waited", " by the door."),
        ("", bos + "She waited"),
        (long, " was lit."),
        (long, " " + "and so on " * 20),
        ("She waited", " by the door."),
    )
    found = ours.loglikelihood(asked, disable_tqdm=True)
    expected = theirs.loglikelihood(asked, disable_tqdm=True)
    for (logp, greedy), (other, other_greedy) in zip(found, expected, strict=True):
        assert logp == pytest.approx(other, abs=1e-4)
        assert greedy == other_greedy
    assert found[1] == found[-1]
    texts = requests(("She waited by the door.",), (long,), ("A",), (bos + "A lamp",))
    rolling = ours.loglikelihood_rolling(texts, disable_tqdm=True)
    other = theirs.loglikelihood_rolling(texts, disable_tqdm=True)
    for a, b in zip(rolling, other, strict=True):
        assert a == close_to(b)


def test_greedy_is_what_the_model_would_write(models):
    ours, theirs = models["base"]
    ids = theirs.tok_encode("Once upon a time")
    logits = theirs.model(torch.tensor([ids])).logits[0, -1]
    best, second = logits.topk(2).indices.tolist()
    answers = ours._loglikelihood_tokens([(None, ids, [best]), (None, ids, [second])])
    assert [greedy for _, greedy in answers] == [True, False]


def test_results_do_not_depend_on_the_budget(models):
    ours, _ = models["base"]
    asked = requests(*((f"She {verb}", end) for verb in ("sat", "ran") for end in (" by.", " off")))
    found = []
    for budget in (1, 12, 4096):
        ours.batch_tokens = budget
        found.append(ours.loglikelihood(asked, disable_tqdm=True))
    ours.batch_tokens = 300
    assert found[0] == found[1] == found[2]


def test_one_context_is_fed_once(models, monkeypatch):
    ours, _ = models["base"]
    fed = []
    run_one = ours._run_or_none
    monkeypatch.setattr(
        ours, "_run_or_none", lambda prefixes: fed.append(prefixes.n_rows) or run_one(prefixes)
    )
    context = "She waited by the door and the lamp was lit"
    ends = [" early.", " late.", " again."]
    mixed = [(context, ends[0]), ("A", " b"), (context, ends[1]), ("A", " c"), (context, ends[2])]
    ours.loglikelihood(requests(*mixed), disable_tqdm=True)
    pairs = {tuple(map(tuple, ours._encode_pair(*args))) for args in mixed}
    contexts = {context for context, _ in pairs}
    expected = sum(map(len, contexts)) + sum(len(following) - 1 for _, following in pairs)
    assert sum(fed) == expected


def test_where_memory_runs_out_passes_are_halved(models, monkeypatch):
    ours, _ = models["base"]
    asked = requests(("She sat", " by."), ("She ran", " off."), ("He", " sat."))
    expected = ours.loglikelihood(asked, disable_tqdm=True)
    import cqa.bridges.lm_eval as bridge

    run_all = bridge.run_prefix_batch

    def small(decoder, prefixes):
        if sum(map(len, prefixes.sequences.values())) > 1:
            raise MemoryError
        return run_all(decoder, prefixes)

    monkeypatch.setattr(bridge, "run_prefix_batch", small)
    assert ours.loglikelihood(asked, disable_tqdm=True) == expected

    def none(decoder, prefixes):
        raise MemoryError

    monkeypatch.setattr(bridge, "run_prefix_batch", none)
    with pytest.raises(ResourceError, match="memory for one sequence"):
        ours.loglikelihood(asked, disable_tqdm=True)


def test_what_cannot_be_scored_is_refused(models):
    ours, _ = models["base"]
    with pytest.raises(ConfigError, match="one that generates"):
        ours.generate_until(requests(("A", {})))
    with pytest.raises(DataError, match=r"continuation of 1 to \d+ tokens, got 0"):
        ours._loglikelihood_tokens([(None, [1, 2], [])])
    with pytest.raises(DataError, match="continuation of 1 to"):
        ours._loglikelihood_tokens([(None, [1], [2] * (ours.max_length + 1))])


def command(*args: object):
    return CliRunner().invoke(main, ["lm-eval", *map(str, args)])


@pytest.mark.slow
def test_the_command(tasks, tmp_path):
    model = ("--model", DEMO / "model", "--include-path", tasks, "--device", "cpu")
    out = tmp_path / "new" / "results.json"
    more = ("--limit", 2, "--num-fewshot", 1, "--out", out)
    done = command(*model, "--tasks", "local_arc,local_rolling", *more, "--json")
    assert done.exit_code == 0, (done.stderr, done.exception)
    results = json.loads(done.stdout)
    assert results == json.loads(out.read_text())
    assert results["n-samples"]["local_arc"]["effective"] == 2
    assert results["n-shot"]["local_arc"] == 1
    assert 0 <= results["results"]["local_arc"]["acc,none"] <= 1
    shown = command(*model, "--tasks", "local_arc", "--limit", 1)
    assert shown.stdout.startswith("|")
    assert "local_arc" in shown.stdout


def test_the_command_refuses_in_one_message(tasks, monkeypatch):
    model = ("--model", DEMO / "model", "--device", "cpu")
    done = command(*model, "--tasks", "local_arc")
    assert (done.exit_code, "got: local_arc" in done.stderr) == (2, True)
    done = command(*model, "--tasks", "x", "--include-path", tasks / "none")
    assert (done.exit_code, "folder of task files" in done.stderr) == (2, True)
    done = command(*model, "--tasks", "x", "--limit", 1.5)
    assert done.exit_code == 2
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    done = command(*model, "--tasks", "x")
    assert (done.exit_code, "cqa-fast[lm-eval]" in done.stderr) == (2, True)
