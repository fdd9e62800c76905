"""Some hundred of the cases that `make fuzz` runs by the thousand."""

from pathlib import Path

import pytest
from differential.cases import Folders, run_case

N_BLOCKS, BLOCK = 8, 25


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("sound"))


@pytest.mark.parametrize("block", range(N_BLOCKS))
@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_folder_is_read_as_transformers_and_peft_read_it_or_refused(folders, kind, block, tmp_path):
    outcomes = {
        number: run_case(folders, kind, f"0/{number}", Path(tmp_path / "case"))
        for number in range(block * BLOCK, (block + 1) * BLOCK)
    }
    assert {number: failure for number, (_, failure) in outcomes.items() if failure} == {}
    taken = [outcome for outcome, _ in outcomes.values() if outcome == "equal"]
    assert len(taken) >= BLOCK // 5  # refusing everything would be no reading
