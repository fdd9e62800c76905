"""Cases that several ops are tested in."""

import pytest
import torch

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
ADAPTER = pytest.mark.parametrize("with_adapter", [False, True], ids=["base", "adapter"])
