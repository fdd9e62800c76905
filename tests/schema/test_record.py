"""Records: what is written is read again, and what does not fit gets one clear message."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pytest

from cqa.errors import DataError
from cqa.schema.record import Record
from cqa.schema.written import stored_as


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner(Record):
    n: int
    share: float | None = None

    def problem(self):
        return f"expected n from 0, got {self.n}" if self.n < 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer(Record):
    class_: Literal["flat", "wrong"] = field(metadata=stored_as("class"))
    name: str | None
    inner: Inner
    parts: tuple[Inner, ...]
    ci95: tuple[float, float] | None
    by_name: Mapping[str, float]
    sure: bool
    seen: tuple[str, ...] | None = None


FULL = Outer(
    class_="flat",
    name=None,
    inner=Inner(n=1),
    parts=(Inner(n=2, share=0.5),),
    ci95=(-1.0, 2.5),
    by_name={"a": 0.1},
    sure=True,
    seen=("é",),
)
TEXT = (
    '{"class": "flat", "name": null, "inner": {"n": 1}, "parts": [{"n": 2, "share": 0.5}], '
    '"ci95": [-1.0, 2.5], "by_name": {"a": 0.1}, "sure": true, "seen": ["\\u00e9"]}'
)


def test_a_record_is_written_in_the_order_of_its_fields_without_what_is_not_there():
    assert json.dumps(FULL.to_json()) == TEXT


def test_a_record_is_read_as_it_was_written():
    assert Outer.from_json(json.loads(TEXT), "f:1") == FULL


def test_unknown_keys_are_passed_over_and_missing_optional_ones_are_none():
    value = json.loads(TEXT) | {"new": 1}
    del value["name"], value["ci95"], value["seen"]
    read = Outer.from_json(value, "f:1")
    assert (read.name, read.ci95, read.seen) == (None, None, None)


def test_a_whole_number_is_a_number():
    value = json.loads(TEXT) | {"by_name": {"a": 2}}
    assert repr(Outer.from_json(value, "f:1").by_name["a"]) == "2.0"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"class": "odd"}, "expected `class` to be flat or wrong, got: 'odd'"),
        ({"class": ["flat"]}, "expected `class` to be flat or wrong, got: ['flat']"),
        ({"name": 3}, "expected `name` to be text or null, got: 3"),
        ({"sure": 1}, "expected `sure` to be true or false, got: 1"),
        ({"inner": None}, "expected `inner` to be an object, got: None"),
        ({"inner": {}}, "expected `inner.n`, got none"),
        ({"inner": {"n": True}}, "expected `inner.n` to be a whole number, got: True"),
        ({"inner": {"n": 1.0}}, "expected `inner.n` to be a whole number, got: 1.0"),
        ({"inner": {"n": -1}}, "expected n from 0, got -1 in `inner`"),
        ({"parts": [{"n": 1}, 2]}, "expected `parts[1]` to be an object, got: 2"),
        ({"parts": [{"n": 1, "share": "x"}]}, "`parts[0].share` to be a finite number or null"),
        ({"ci95": [1]}, "expected `ci95` to be an array of 2 or null, got: [1]"),
        ({"ci95": [1, None]}, "expected `ci95[1]` to be a finite number, got: None"),
        ({"by_name": {"a": 10**400}}, "expected `by_name.a` to be a finite number, got: 1000"),
        ({"by_name": {"a": float("nan")}}, "expected `by_name.a` to be a finite number, got: nan"),
    ],
)
def test_what_does_not_fit_is_told_with_its_place(changed, message):
    with pytest.raises(DataError) as caught:
        Outer.from_json(json.loads(TEXT) | changed, "f.jsonl:7")
    assert str(caught.value).startswith("f.jsonl:7: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_what_is_no_object_is_refused(value):
    with pytest.raises(DataError, match="expected an object, got"):
        Outer.from_json(value, "f:1")


def test_a_type_that_json_has_not_is_a_bug():
    @dataclass(frozen=True, slots=True)
    class Odd(Record):
        value: complex

    with pytest.raises(TypeError, match="complex"):
        Odd.from_json({"value": 1}, "f:1")
