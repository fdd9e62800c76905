"""docs/scale.md: its commands parse, and its tables are the arithmetic that they say."""

import re
import shlex
import subprocess

import pytest
from cqa_fast.main import main
from helpers import ROOT

from cqa.score.shard import read_shard
from cqa.study.config import ScaleConfig
from cqa.study.scale_runs import cells_of, steps_of
from cqa.train.config import TARGETS

TEXT = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
VALUES = {
    "SLURM_ARRAY_TASK_ID": "3", "SLURM_NNODES": "2", "SLURM_JOB_ID": "77", "first": "node-1",
    "SLURM_JOB_NODELIST": "node-[1-2]",
}  # fmt: skip
OPTIONS_OF_SLURM = {
    "job-name", "array", "gpus", "cpus-per-task", "mem", "time", "signal", "requeue", "dependency",
    "nodes", "ntasks-per-node", "gpus-per-node",
}  # fmt: skip


SIZES = {  # parameters of a layer, and of the head
    name: (2 * h * h + 2 * h * kv + 3 * h * inner, vocab * h)
    for name, h, kv, inner, vocab in [
        ("Qwen2.5-0.5B", 896, 128, 4864, 151_936),
        ("Qwen2.5-7B", 3584, 512, 18_944, 152_064),
        ("Qwen2.5-72B", 8192, 1024, 29_568, 152_064),
    ]
}


def commands() -> list[list[str]]:
    """Return the words of every call of the program, after the program's name."""
    found = []
    for line in "".join(BLOCKS).replace("\\\n", " ").splitlines():
        filled = re.sub(r"\$(\w+)", lambda match: VALUES.get(match[1], ""), line)
        words = [word for word in shlex.split(filled, comments=True) if word != "&"]
        for name in ("cqa-fast", "cqa_fast"):
            if name in words:
                found.append(words[words.index(name) + 1 :])
    return found


def table(heading: str) -> list[list[str]]:
    """Return the rows of the table whose first heading this is."""
    lines = TEXT[TEXT.index(f"| {heading} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def number(text: str) -> float:
    return float(re.sub(r"[^\d.e]", "", text))


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_are_sound_for_a_shell(block):
    subprocess.run(["bash", "-n"], input=block, text=True, check=True)
    if block.startswith("#!"):
        assert block.startswith("#!/bin/bash\n#SBATCH ")
        for options in re.findall(r"^#SBATCH (.*)$", block, flags=re.MULTILINE):
            names = [word.removeprefix("--").partition("=")[0] for word in options.split()]
            assert all(word.startswith("--") for word in options.split())
            assert set(names) <= OPTIONS_OF_SLURM


def test_calls_of_the_program_parse():
    found = commands()
    assert {words[0] for words in found} == {"score", "merge", "train", "scale"}
    assert len(found) == 12
    for name, *args in found:
        context = main.commands[name].make_context(name, list(args))
        if shard := context.params.get("shard"):
            read_shard(shard)


def test_torchrun_takes_what_it_is_given():
    from torch.distributed.run import get_args_parser

    lines = "".join(BLOCKS).replace("\\\n", " ").splitlines()
    calls = [line[line.index("torchrun") :] for line in lines if "torchrun" in line]
    assert len(calls) == 4
    for call in calls:
        parsed = get_args_parser().parse_args(shlex.split(call)[1:])
        assert parsed.module
        assert parsed.training_script == "cqa_fast"
        assert parsed.training_script_args[0] == ("score" if " score " in call else "train")


def test_array_and_shards_have_one_number():
    (block,) = [block for block in BLOCKS if "SLURM_ARRAY_TASK_ID/" in block]
    assert re.search(r"--array=1-(\d+)", block)[1] == re.search(r"TASK_ID/(\d+)", block)[1]


def test_tokens_and_hours_of_scoring_are_the_arithmetic():
    rows = table("job")
    assert len(rows) == 4
    for job, per_item, models, total, hours in rows:
        n_items, context, *options = map(number, re.findall(r"\d[\d,]*", job)[: 3 + ("×" in job)])
        n_options, length = (options[0], options[1]) if "×" in job else (1, options[0])
        assert number(per_item) == context + 3 * n_options * length
        assert number(total) == pytest.approx(n_items * number(per_item) * number(models), rel=5e-3)
        assert number(hours) == pytest.approx(number(total) / 3600, rel=5e-3)


def test_steps_of_a_study_are_those_of_its_defaults(tmp_path):
    config = ScaleConfig(model="m", data=(tmp_path / "d",), pairs=(tmp_path / "p",), out=tmp_path)
    cells = {arm: cells_of(config, arm) for arm in ("epoch", "step")}
    own = [cell for cell in cells["step"] if cell not in cells["epoch"]]
    both = [*cells["epoch"], *own]
    expected = [
        [len(group), sum(steps_of(config, cell.size, cell.epochs) for cell in group)]
        for group in (cells["epoch"], own, both)
    ]
    assert [[number(n), number(steps)] for _, n, steps in table("arm")] == expected
    assert max(steps_of(config, cell.size, cell.epochs) for cell in both) == 600


def test_bytes_of_weights_and_gradient_are_the_arithmetic():
    for name, n_parameters, gigabytes, *shares in table("base"):
        total = number(n_parameters)
        assert number(gigabytes) == pytest.approx(2 * total / 1e9, abs=0.06)
        layer, head = SIZES[name]
        for n_ranks, share in zip((4, 8), shares, strict=True):
            held = total / n_ranks + max(2 * layer, head)
            assert number(share) == pytest.approx(2 * held / 1e9, abs=0.06)
    hidden, inner, keys, layers, rank = 3584, 18944, 512, 28, 32
    sizes = {
        "q": hidden, "k": keys, "v": keys, "o": hidden, "gate": inner, "up": inner, "down": hidden,
    }  # fmt: skip
    assert set(sizes) == set(TARGETS)
    inputs = {name: inner if name == "down" else hidden for name in sizes}
    n = layers * rank * sum(inputs[name] + sizes[name] for name in sizes)
    assert int(re.search(r"(\d+) MB a step", TEXT)[1]) == round(4 * n / 1e6)
