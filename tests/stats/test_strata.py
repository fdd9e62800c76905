"""Dates of every precision on either side of a cutoff."""

import pytest

from cqa.errors import ConfigError
from cqa.stats.strata import read_cutoff, span, stratum


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("2024-06-30", "2024-06-30", "2024-06-30"),
        ("2024-06-30T12:00:00Z", "2024-06-30", "2024-06-30"),
        ("2024-02", "2024-02-01", "2024-02-29"),
        ("2023-12", "2023-12-01", "2023-12-31"),
        ("1851", "1851-01-01", "1851-12-31"),
    ],
)
def test_a_date_spans_the_days_it_may_mean(text, first, last):
    assert [str(day) for day in span(text)] == [first, last]


@pytest.mark.parametrize("text", ["", "June 2024", "2024-13", "2024-02-30", "24-06-30", "9999"])
def test_what_is_no_date_spans_nothing(text):
    assert span(text) is None


@pytest.mark.parametrize(
    ("published_at", "expected"),
    [
        ("2024-06-30", "before"), ("2024-07-01", "after"), ("2024-06", "before"),
        ("2024-07", "after"), ("2024", "unknown"), ("2023", "before"), ("2025", "after"),
        (None, "unknown"), ("last year", "unknown"),
    ],
)  # fmt: skip
def test_stratum_is_unknown_unless_the_date_decides(published_at, expected):
    assert stratum(published_at, read_cutoff("2024-06")) == expected


def test_cutoff_that_is_no_date_is_refused():
    with pytest.raises(ConfigError, match="expected cutoff to be a date such as 2024-06-30, got"):
        read_cutoff("soon")
