"""Each kind of odd surrounding once; `make fuzz` draws many."""

import random

import pytest
from fuzz import special_files
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
