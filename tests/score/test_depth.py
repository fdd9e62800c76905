"""How many calls lie between token ids and log-probabilities, in a score that is traced."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
from helpers import DEMO, ROOT

from cqa.kernels.backend import Backend
from cqa.model.load import open_model
from cqa.score.decoder_engine import DecoderEngine
from cqa.score.prefix_batch import PrefixBatch

MOST_CALLS = 16  # nested; how many rooms a reader goes through
CODE = str(ROOT / "cqa") + "/"


def deepest_calls(call: Callable[[], object]) -> list[str]:
    """Return the longest chain of this package's functions that a call hands its work down."""
    chain: list[str] = []
    deepest: list[str] = []

    def observe(frame: FrameType, event: str, _: object) -> None:
        nonlocal deepest
        if not frame.f_code.co_filename.startswith(CODE):
            return
        if event == "call":
            chain.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_qualname}")
            deepest = max(deepest, list(chain), key=len)
        elif event == "return":
            chain.pop()

    before = sys.getprofile()
    sys.setprofile(observe)
    try:
        call()
    finally:
        sys.setprofile(before)
    return deepest


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_token_ids_become_log_probabilities_in_few_calls(backend: Backend):
    base = open_model(DEMO / "model", "cpu", "fp32", rank_columns={})
    base.decoder.backend = backend
    engine = DecoderEngine(DEMO / "model", [], device="cpu", dtype="fp32", base=base)
    prefixes = PrefixBatch()
    prefixes.add([((1, 2, 3), (4, 5)), ((1,), (4, 5))])
    calls = deepest_calls(lambda: engine.run(prefixes))
    assert calls[:2] == ["decoder_engine.DecoderEngine.run", "decoder_engine.run_prefix_batch"]
    assert any(call.startswith(("matmul", "aug_")) for call in calls), calls
    assert len(calls) <= MOST_CALLS, "\n".join(calls)
