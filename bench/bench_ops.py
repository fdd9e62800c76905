"""Each native op against its PyTorch reference, forward and backward, at the 0.5 B shape."""

import pytest
import torch
from compare import record

from cqa.bench.config import Window
from cqa.bench.kernels import TOLERANCE, difference
from cqa.bench.ops import Bench, ops_of
from cqa.bench.shapes import BenchModel
from cqa.bench.timing import compare_interleaved
from cqa.kernels.backend import native_problem

pytestmark = pytest.mark.skipif(native_problem() is not None, reason="no native ops")
BENCH_MODEL = BenchModel("qwen2.5-0.5b", None, 32, "cpu", torch.float32)
OPS = list(ops_of(Bench.of(BENCH_MODEL, Window.parse("100+200,160+260"), 0.05)))


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def bench_against_the_reference(benchmark, op):
    def both_ways(backend):
        out = op.run(backend)
        if op.inputs:
            torch.autograd.grad(out, op.inputs, torch.ones_like(out))

    assert difference(op, "native") <= TOLERANCE[torch.float32]
    result = compare_interleaved(lambda: both_ways("native"), lambda: both_ways("reference"))
    record(benchmark, "reference", result)
    benchmark.pedantic(lambda: both_ways("native"), rounds=3)
