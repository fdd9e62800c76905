"""Results as JSON objects: keys, their order, what is merged, and what is left out."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from cqa.schema.written import Result, merged, stored_as, unwritten


@dataclass(frozen=True, slots=True)
class Means(Result):
    before: float | None
    after: float | None


@dataclass(frozen=True, slots=True)
class Whole(Result):
    n: int
    nats: Means = field(metadata=merged("nats_before", "nats_after"))
    own: Means = field(metadata=merged())
    small: float | None = field(metadata=stored_as("0.2"))
    by_name: Mapping[str, Means]
    parts: tuple[tuple[Means, float | None], ...]
    unknown: float | None
    caveat: str | None = None
    secret: str | None = field(metadata=unwritten(), default="s")


WHOLE = Whole(
    n=2,
    nats=Means(1.0, None),
    own=Means(None, 2.0),
    small=0.5,
    by_name={"a": Means(3.0, 4.0)},
    parts=((Means(5.0, 6.0), None),),
    unknown=None,
)


def test_a_result_is_written_in_the_order_of_its_fields():
    assert json.dumps(WHOLE.to_json()) == (
        '{"n": 2, "nats_before": 1.0, "nats_after": null, "before": null, "after": 2.0, '
        '"0.2": 0.5, "by_name": {"a": {"before": 3.0, "after": 4.0}}, '
        '"parts": [[{"before": 5.0, "after": 6.0}, null]], "unknown": null}'
    )


def test_a_default_of_none_is_written_where_it_holds_something_else():
    held = Whole(**{name: getattr(WHOLE, name) for name in Whole.__slots__} | {"caveat": "c"})
    assert held.to_json() == WHOLE.to_json() | {"caveat": "c"}


def test_what_is_merged_may_be_left_out():
    @dataclass(frozen=True, slots=True)
    class Loose(Result):
        n: int
        means: Means | None = field(metadata=merged(), default=None)

    assert Loose(1).to_json() == {"n": 1}
    assert Loose(1, Means(2.0, None)).to_json() == {"n": 1, "before": 2.0, "after": None}


def test_as_many_keys_as_parts_are_needed():
    @dataclass(frozen=True, slots=True)
    class Wrong(Result):
        means: Means = field(metadata=merged("only"))

    with pytest.raises(ValueError, match="longer"):
        Wrong(Means(1.0, 2.0)).to_json()
