"""Contexts that end in a space, and options that lack theirs."""

import pytest

from cqa.data.spacing import Spacing, ends_in_space, lacks_space

UNSPACED = [
    ("a little sparrow", "The girl", True),
    ("It rained.", "She ran.", True),
    ("Answer:", "Yes", True),
    ("кот", "спит", True),
    ("It rained.", " She ran.", False),
    ("It rained.\n", "She ran.", False),
    ('He said "', "Come", False),
    ("A well-", "known man", False),
    ("5", "km", False),
    ("She sat", ", and rose", False),
    ("下雨了", "她走了", False),
    ("雨。", "她走了", False),
    ("ฝน", "ตก", False),
    ("", "She", False),
]


@pytest.mark.parametrize(("before", "after", "lacks"), UNSPACED)
def test_a_space_is_missed_where_words_would_run_together(before, after, lacks):
    assert lacks_space(before, after) is lacks


def test_a_space_at_the_end_is_one_and_a_line_end_is_none():
    assert [ends_in_space(t) for t in ("a ", "a\t", "a\u00a0", "a\n", "a", "")] == (
        [True] * 3 + [False] * 3
    )


def test_both_are_counted_with_the_first_of_each():
    spacing = Spacing()
    spacing.add("a", "It rained. ", ("She ran.",))
    spacing.add("b", "It rained.", (" She ran.", "She sat."))
    spacing.add("c", "It rained.", ("She ran.", "She sat."))
    spacing.add("d", "It rained.", (" She ran.", " She sat."))
    assert spacing.warnings("context", "option") == [
        "1 of 4 contexts ends in a space, `a` first; write it at the start of the option instead, "
        "where tokenizers have it",
        "2 of 4 options meet the context without a space, `b` first; nothing is inserted, so the "
        "option has to start with one",
    ]
    assert Spacing().warnings("context", "option") == []
