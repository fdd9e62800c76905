"""LoRA projections of an input that nothing precedes, against float64."""

import pytest
import torch
from kernels.lora_problem import (
    ADAPTER,
    BIAS,
    DTYPES,
    RANKS,
    SETTINGS,
    SIZES,
    Problem,
    check_base,
    check_constants,
    check_no_rows,
    check_projections,
)

pytestmark = pytest.mark.usefixtures("memory_full_of_nan")


@SIZES
@SETTINGS
@DTYPES
def test_projections_and_gradients_are_as_accurate_as_plain_torch(m, k, settings, dtype, backend):
    check_projections(Problem("copy", m, k, **settings), dtype, backend)


@RANKS
def test_ranks_of_several_tiles_are_as_accurate_as_plain_torch(rank, backend):
    check_projections(Problem("copy", 7, 40, rank=rank), torch.float32, backend)


@BIAS
@pytest.mark.parametrize("k", [13, 48])
def test_without_an_adapter_the_base_alone_is_projected(bias, k):
    check_base(Problem("copy", 7, k, bias=bias))


@BIAS
@ADAPTER
def test_constant_and_padding_columns_are_exactly_one_and_zero(bias, with_adapter):
    check_constants(Problem("copy", 5, 13, bias=bias, multiple=64), with_adapter=with_adapter)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_no_rows_give_no_gradient(p):
    check_no_rows("copy", p)
