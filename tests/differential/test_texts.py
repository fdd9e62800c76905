"""Some hundred of the cases of `text_changes`."""

import pytest
from differential.text_changes import Models, run_case
from helpers import DEMO, shared, tiny_model

N_BLOCKS, BLOCK = 4, 60


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    folders = {"nfc": tiny_model(folder / "nfc"), "demo": DEMO / "model"}
    return Models({**folders, "llama": shared("models/stories260k")}, folder)


@pytest.mark.parametrize("block", range(N_BLOCKS))
def test_texts_are_learned_and_scored_as_they_were_meant_or_refused_by_all(models, block, tmp_path):
    cases = range(block * BLOCK, (block + 1) * BLOCK)
    outcomes = [run_case(models, number, tmp_path) for number in cases]
    assert BLOCK // 5 < outcomes.count("taken") < 4 * BLOCK // 5
