"""Each kind of odd surrounding once; `make fuzz` draws many."""

import json
import os
import random
import shutil
import subprocess
import sys

import pytest
from fuzz import special_files
from helpers import DEMO, ROOT, write_lines
from surroundings import (
    ENVIRONMENTS,
    SPECIAL,
    commands,
    environment_case,
    html_case,
    output_case,
    surroundings,
)
from synthetic import make_folder, make_items

pytestmark = pytest.mark.slow


def test_a_special_file_in_the_place_of_any_file_is_refused_or_replaced(tmp_path):
    outcomes, failures = special_files(tmp_path)
    assert failures == []
    n_refused = sum(n for name, n in outcomes.items() if "refused" in name)
    assert n_refused > 0.9 * outcomes.total()
    assert {name.partition(":")[0] for name in outcomes} == set(SPECIAL)


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> list[list[str]]:
    return list(commands(tmp_path_factory.mktemp("inputs")))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_command_ends_with_a_message_in_any_environment(name, asked, tmp_path):
    command = asked[list(ENVIRONMENTS).index(name) % 3]
    assert environment_case(name, command, tmp_path) is None


@pytest.mark.parametrize("seed", range(3))
def test_names_that_are_markup_are_text_in_the_page(seed, tmp_path):
    assert html_case(random.Random(seed), tmp_path) is None


def test_nothing_of_the_users_is_lost_whatever_the_output_is(tmp_path):
    scores = make_folder(tmp_path / "sound", items=make_items(2), adapters=[None, "epoch-01"])
    for seed in range(6):
        (tmp_path / f"case-{seed}").mkdir()
        assert output_case(random.Random(seed), scores, tmp_path / f"case-{seed}") is None


def test_all_of_it_in_turn(tmp_path):
    outcomes, failures = surroundings(3, 0, tmp_path)
    assert failures == []
    assert sorted(outcomes) == ["environment: held", "output: held", "page: held"]


DENIED = """
import json, os, sys
from click.testing import CliRunner
from cqa_fast.main import main
for path in sys.argv[2:]:
    mode = os.stat(path).st_mode
    os.chmod(path, 0)
    found = CliRunner().invoke(main, json.loads(sys.argv[1]))
    os.chmod(path, mode)
    print(json.dumps([path, found.exit_code, found.stderr]))
"""


def test_what_a_user_may_not_read_is_said_to_be_denied_by_its_name(tmp_path):
    """Root reads everything, but for a process without that capability."""
    prefix: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root without setpriv")
        dropped = "--bounding-set=-dac_override,-dac_read_search"
        prefix = ["setpriv", dropped, "--inh-caps=-all"]
    model = shutil.copytree(DEMO / "model", tmp_path / "model")
    pair = {"id": "a", "context": "It rained.", "good": " She ran.", "bad": " She sat."}
    pairs = write_lines(tmp_path / "pairs.jsonl", [pair])
    args = ["score", "--model", model, "--pairs", pairs, "--out", tmp_path / "out"]
    names = ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json")
    paths = [*(model / name for name in names), model, pairs]
    command = [sys.executable, "-c", DENIED, json.dumps(list(map(str, args))), *map(str, paths)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'cli'}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [*prefix, *command], env=environment, capture_output=True, text=True, check=True
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [path for path, _, _ in found] == list(map(str, paths))
    for path, code, said in found:
        assert code in (2, 3, 4), said
        assert path in said
        assert "Permission denied" in said or "is not readable" in said
        assert len(said.splitlines()) <= 2
    assert not (tmp_path / "out" / "scores.jsonl").exists()
