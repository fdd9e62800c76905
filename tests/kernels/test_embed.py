"""Embedding noise, against NEFTune's law and the counter-based generator."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cqa.kernels.embed import Noise, embed
from cqa.kernels.launch import INTERPRETED
from cqa.kernels.philox import NEFTUNE, philox_words_ref, stream_of


def noise_of(alpha: float, lengths: list[int], *, seed: int = 5, step: int = 2, first: int = 0):
    rows = torch.arange(first, first + len(lengths))
    return Noise(alpha, seed, step, rows, torch.tensor(lengths))


def noisy(noise: Noise, n_cols: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Noise alone: all embeddings are zero."""
    ids = torch.zeros(len(noise.rows), dtype=torch.int64)
    return embed(ids, torch.zeros(3, n_cols, dtype=dtype), noise)


def test_embedding_without_noise_is_a_look_up():
    table = torch.randn(11, 6)
    ids = torch.tensor([3, 3, 0, 10])
    assert torch.equal(embed(ids, table), torch.stack([table[i] for i in ids]))


@pytest.mark.parametrize("n_cols", [1, 6, 64])
def test_noise_is_the_counter_based_uniform_scaled_by_the_sample_length(n_cols):
    lengths, calls = [4, 4, 9], -(-n_cols // 4)
    out = noisy(noise_of(5.0, lengths, first=7), n_cols).double()
    for i, length in enumerate(lengths):
        index = np.arange((7 + i) * calls, (8 + i) * calls, dtype=np.uint64)
        words = philox_words_ref(5, 2, stream_of(NEFTUNE), index).reshape(-1)[:n_cols]
        u = torch.from_numpy((words >> 8).astype(np.float64)).to(out) / 2**23 - 1
        expected = 5.0 / math.sqrt(length * n_cols) * u
        torch.testing.assert_close(out[i], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("length", [1, 50, 3000])
def test_noise_has_the_moments_of_its_uniform_law(length):
    n_cols, alpha = 96, 5.0
    bound = alpha / math.sqrt(length * n_cols)
    u = noisy(noise_of(alpha, [length] * 1000), n_cols).double() / bound
    n = u.numel()
    assert u.abs().max() <= 1 + 1e-6
    assert u.abs().max() > 0.999
    assert abs(u.mean()) < 4 * math.sqrt(1 / 3 / n)
    assert abs(u.square().mean() - 1 / 3) < 4 * math.sqrt(4 / 45 / n)


def test_noise_follows_the_row_number_and_own_length_not_the_packing():
    together = noisy(noise_of(5.0, [4, 4, 9, 9, 30]), 16)
    apart = noisy(noise_of(5.0, [9, 9], first=2), 16)
    assert torch.equal(together[2:4], apart)
    other_length = noisy(noise_of(5.0, [36, 36], first=2), 16)
    torch.testing.assert_close(other_length * 2, apart, rtol=1e-6, atol=0)


@pytest.mark.parametrize("other", [{"seed": 6}, {"step": 3}, {"first": 40}], ids=str)
def test_noise_is_uncorrelated_between(other):
    a, b = (noisy(noise_of(5.0, [7] * 40, **kw), 96).flatten() for kw in ({}, other))
    assert abs(torch.corrcoef(torch.stack((a, b)))[0, 1]) < 4 / math.sqrt(a.numel())


def test_noise_is_added_in_fp32_and_rounded_once(backend):
    if backend == "triton" and INTERPRETED:
        pytest.skip("the interpreter rounds to bf16 towards zero")
    table, ids = torch.randn(3, 64).bfloat16(), torch.tensor([1])
    noise = noise_of(5.0, [7])
    expected = (table[ids].float() + noisy(noise, 64)).bfloat16()
    assert torch.equal(embed(ids, table, noise), expected)
