"""What is copied before LoRA's projections; the projections are tested in test_aug_op."""

import pytest
import torch
from kernels.lora_problem import Problem, augment
from kernels.marks import ADAPTER, DTYPES

from cqa.kernels.aug_columns import AugColumns
from cqa.kernels.copy_shrink import copy_shrink
from cqa.kernels.shrink import Shrink

pytestmark = pytest.mark.usefixtures("memory_full_of_nan")


@DTYPES
@ADAPTER
def test_every_bit_is_copied(dtype, with_adapter):
    problem = Problem("copy", 70, 300)
    t = problem.tensors(dtype)
    shrink = Shrink(t["a"], problem.modules, problem.dropout) if with_adapter else None
    assert torch.equal(augment(problem, t, shrink)[:, :300], t["x"])


def test_without_adapter_and_bias_there_is_nothing_to_append():
    x = torch.randn(3, 16)
    assert copy_shrink(x, AugColumns(16, False, 4, 16), None) is x
