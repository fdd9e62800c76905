"""How much memory is free; and memory that runs out is told from every other failure."""

import numpy as np
import pytest
import torch

from cqa.errors import DataError, ResourceError
from cqa.model import memory
from cqa.model.memory import free_memory_bytes, give_back, ran_out, reported

TOO_MUCH = {  # real demands that no machine can meet
    "torch": lambda: torch.empty(1 << 55, dtype=torch.uint8),
    "torch-beyond-64-bits": lambda: torch.empty(1 << 62, dtype=torch.float64),
    "numpy": lambda: np.empty(1 << 55, dtype=np.uint8),
    "python": lambda: bytearray(1 << 55),
}
SAID = {  # what devices say that are not available
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    "c++": RuntimeError("std::bad_alloc"),
    "driver": RuntimeError("CUDA error: out of memory"),
    "windows": RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to"),
}
OTHER = {
    "shapes": lambda: torch.ones(2, 3) @ torch.ones(2, 3),
    "device": lambda: (_ for _ in ()).throw(RuntimeError("CUDA error: an illegal memory access")),
    "not-torch": lambda: (_ for _ in ()).throw(ValueError("std::bad_alloc")),
    "bad-data": lambda: (_ for _ in ()).throw(DataError("not enough memory")),
    "bad-key": lambda: {}["can't allocate memory"],
}


def error_of(act) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        act()
    return caught.value


@pytest.mark.parametrize("act", TOO_MUCH.values(), ids=TOO_MUCH)
def test_real_lack_of_memory_is_recognised(act):
    assert ran_out(error_of(act))


@pytest.mark.parametrize("error", SAID.values(), ids=SAID)
def test_lack_of_memory_of_other_devices_is_recognised(error):
    assert ran_out(error)


@pytest.mark.parametrize("act", OTHER.values(), ids=OTHER)
def test_other_failures_are_not_taken_for_it(act):
    assert not ran_out(error_of(act))


@pytest.mark.parametrize("act", TOO_MUCH.values(), ids=TOO_MUCH)
def test_it_becomes_one_message_with_a_hint_and_its_cause(act):
    with (
        pytest.raises(
            ResourceError, match=r"^expected enough memory for tea, got none\n"
        ) as caught,
        reported("tea", "a smaller pot"),
    ):
        act()
    assert caught.value.exit_code == 6
    assert caught.value.hint == "a smaller pot"
    assert ran_out(caught.value.__cause__)


@pytest.mark.parametrize("act", OTHER.values(), ids=OTHER)
def test_other_failures_pass_unchanged(act):
    expected = error_of(act)
    with pytest.raises(type(expected)) as caught, reported("tea", "a smaller pot"):
        act()
    assert str(caught.value) == str(expected)


def test_message_from_within_is_not_replaced_by_a_vaguer_one():
    with (
        pytest.raises(ResourceError, match="for the cup"),
        reported("tea", "a smaller pot"),
        reported("the cup", "none"),
    ):
        TOO_MUCH["torch"]()


@pytest.mark.parametrize("initialised", [True, False])
def test_only_a_device_in_use_is_asked_to_give_back(monkeypatch, initialised):
    asked = []
    monkeypatch.setattr(memory.torch.cuda, "is_initialized", lambda: initialised)
    monkeypatch.setattr(memory.torch.cuda, "empty_cache", lambda: asked.append(1))
    give_back()
    assert asked == [1] * initialised


@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [("3000", "1000", 2000), ("1000", "3000", 0), ("max", "0", None), (None, None, None)],
    ids=["under", "over", "unlimited", "no-container"],
)
def test_free_memory_is_that_of_the_container(monkeypatch, tmp_path, limit, used, free):
    for name, text in (("limit", limit), ("used", used)):
        if text is not None:
            (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "LIMITS", [(str(tmp_path / "limit"), str(tmp_path / "used"))])
    found = free_memory_bytes()
    assert found == free if free is not None else found > 10**6
