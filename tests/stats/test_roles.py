"""Which group is the subject and which the control: named, of the paper's names, or guessed."""

import pytest

from cqa.errors import ConfigError
from cqa.schema.summary import Roles
from cqa.stats.config import AnalysisConfig
from cqa.stats.roles import choose_roles


def roles(groups: str, **named: str) -> Roles:
    return choose_roles(groups.split(), AnalysisConfig(**named))


@pytest.mark.parametrize(
    ("groups", "named", "primary", "control"),
    [
        ("factual literary", {}, "literary", "factual"),
        ("poems factual", {"primary": "poems"}, "poems", "factual"),
        ("poems news literary", {"primary": "news", "control": "poems"}, "news", "poems"),
        ("factual literary", {"primary": "factual", "control": "literary"}, "factual", "literary"),
        ("news literary", {"control": "news"}, "literary", "news"),
        ("poems", {}, "poems", None),
        ("literary", {}, "literary", None),
        ("", {}, None, None),
    ],
)
def test_named_groups_and_the_papers_names_need_no_caveat(groups, named, primary, control):
    assert roles(groups, **named) == Roles(primary, control, None)


@pytest.mark.parametrize(
    ("groups", "named", "found"),
    [
        (
            "poems news",
            {},
            Roles(
                "poems",
                None,
                "poems is taken as the subject, as none was named (--primary names it); no control "
                "was found among poems, news (--control names it)",
            ),
        ),
        (
            "poems factual",
            {},
            Roles(
                "poems",
                "factual",
                "poems is taken as the subject, as none was named (--primary names it)",
            ),
        ),
        (
            "literary news",
            {},
            Roles(
                "literary",
                None,
                "no control was found among literary, news (--control names it)",
            ),
        ),
        (
            "news poems",
            {"control": "news"},
            Roles(
                "poems",
                "news",
                "poems is taken as the subject, as none was named (--primary names it)",
            ),
        ),
    ],
)
def test_what_is_guessed_is_said_with_the_flag_that_names_it(groups, named, found):
    assert roles(groups, **named) == found


@pytest.mark.parametrize("flag", ["primary", "control"])
def test_a_group_that_is_not_there_is_refused_with_those_that_are(flag):
    with pytest.raises(ConfigError) as caught:
        roles("poems news", **{flag: "prose"})
    assert str(caught.value) == (
        f"expected --{flag} to name a group of pairs (poems, news), got: prose"
    )
    with pytest.raises(ConfigError, match="there is none"):
        roles("", **{flag: "prose"})


def test_one_group_cannot_be_both():
    with pytest.raises(ConfigError, match="expected primary and control to differ, got: news"):
        AnalysisConfig(primary="news", control="news")
