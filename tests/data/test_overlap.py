"""What is evaluated on and trained on is found: whole texts, and 13-grams of words."""

import pytest

from cqa.data.overlap import N_WORDS, TrainedTexts
from cqa.data.samples import Sample, Turn

STORY = (
    "At the end of the pier, where the nets were hung to dry, an old man sat mending a lamp that "
    "had not been lit since the war, and no one asked him why."
)


def trained(*texts: str) -> TrainedTexts:
    return TrainedTexts(
        Sample(f"s{k}", "prompt", (Turn("user", text), Turn("assistant", "Yes.")), None, f"t:{k}")
        for k, text in enumerate(texts, start=1)
    )


def words(start: int, n: int) -> str:
    return " ".join(STORY.split()[start : start + n])


def test_a_whole_text_is_found_whatever_its_case_and_spaces():
    found = trained("Another.", STORY).overlap(["Not it.", f"  {STORY.upper()}\n"])
    assert (found.where, found.excerpt) == ("t:2", None)


def test_a_passage_inside_a_prompt_is_found_with_the_words_it_shares():
    found = trained("Other words.", f"Story: {STORY}\n\nIs it good?").overlap([words(9, 20)])
    assert found.where == "t:2"
    assert found.excerpt == "were hung to dry an old man sat mending a lamp that had"
    assert len(found.excerpt.split()) == N_WORDS


@pytest.mark.parametrize(("n", "is_found"), [(N_WORDS - 1, False), (N_WORDS, True)])
def test_thirteen_words_in_a_row_are_needed(n, is_found):
    text = f"He said: {words(3, n).replace(',', ';')} and so on."
    assert (trained(STORY).overlap([text]) is not None) is is_found


def test_words_of_two_turns_or_two_samples_are_no_row():
    first, second = words(0, 10), words(10, 10)
    sample = Sample("s", "prompt", (Turn("user", first), Turn("assistant", second)), None, "t:1")
    assert TrainedTexts([sample]).overlap([STORY]) is None
    assert trained(first, second).overlap([STORY]) is None


def test_signs_written_without_spaces_are_words():
    chinese = "她把信扔进了炉子，然后静静地坐在窗边等天亮。"
    assert trained(f"故事：{chinese}").overlap([chinese[2:18]]) is not None
    assert trained(f"故事：{chinese}").overlap([chinese[2:14]]) is None


@pytest.mark.parametrize("texts", [[], [""], ["Short."]])
def test_little_or_no_training_text_overlaps_with_nothing(texts):
    assert trained(*texts).overlap([STORY]) is None
