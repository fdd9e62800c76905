"""The random generator: published algorithm, fair masks, streams that do not touch each other."""

import math

import numpy as np
import pytest
import torch

from cqa.kernels.philox import (
    DEAL,
    DRAW,
    DROPOUT,
    INIT,
    NEFTUNE,
    ORDER,
    SPLIT,
    Dropout,
    permutation,
    philox_words_ref,
    row_words_ref,
    stream_of,
    uniforms,
    wide_uniforms,
)

SEED = 0x0123456789ABCDEF


def plain_philox(seed: int, step: int, stream: int, index: int) -> list[int]:
    """Philox4x32-10 as in Salmon et al. 2011, section 3.3, in unbounded ints."""
    low = 0xFFFFFFFF
    c = [index & low, index >> 32, stream, step]
    k = [seed & low, seed >> 32]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & low, (p0 >> 32) ^ c[3] ^ k[1], p0 & low]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return c


def words(seed: int, step: int, stream: int, indices: list[int]) -> list[list[int]]:
    return philox_words_ref(seed, step, stream, np.array(indices, dtype=np.uint64)).tolist()


def dropout(
    p: float = 0.1, *, seed: int = 3, step: int = 5, rows: int | list[int] = 400
) -> Dropout:
    numbers = list(range(rows)) if isinstance(rows, int) else rows
    return Dropout(p, seed, step, torch.tensor(numbers, dtype=torch.int64))


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        (0, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (2**64 - 1, 2**128 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            0x299F31D0A4093822,
            0x0370734413198A2E85A308D3243F6A88,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_words_are_those_of_the_random123_test_vectors(key, counter, expected):
    index, stream, step = counter & (2**64 - 1), counter >> 64 & 0xFFFFFFFF, counter >> 96
    assert words(key, step, stream, [index]) == [[int(word, 16) for word in expected.split()]]


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (0, "b850222e c58cb04b 14a7a020 7a84fff9"),
        (5 * 10**9, "c86a5cd2 eadb65a1 6de92368 dd4b6953"),
    ],
    ids=["first", "beyond-32-bits"],
)
def test_words_are_the_recorded_ones(index, expected):
    assert words(SEED, 0, 0, [index]) == [[int(word, 16) for word in expected.split()]]


@pytest.mark.parametrize("seed", [0, 1, SEED, 2**64 - 1], ids=hex)
@pytest.mark.parametrize(("step", "stream"), [(0, 0), (7, 1 << 24 | 195), (2**32 - 1, 2**32 - 1)])
def test_words_agree_with_plain_integers(seed, step, stream):
    indices = [0, 1, 2**32 - 1, 2**32, 2**63 + 12345]
    expected = [plain_philox(seed, step, stream, index) for index in indices]
    assert words(seed, step, stream, indices) == expected


def test_words_do_not_depend_on_the_other_indices_of_the_call():
    index = np.arange(20_000, dtype=np.uint64)  # several internal chunks
    every = philox_words_ref(SEED, 2, 9, index)
    np.testing.assert_array_equal(
        every[8_190:8_195], philox_words_ref(SEED, 2, 9, index[8_190:8_195])
    )
    np.testing.assert_array_equal(every[::-1], philox_words_ref(SEED, 2, 9, index[::-1]))


def test_rows_own_consecutive_counters():
    rows = torch.tensor([4, 0, 7])
    counters = [row * 3 + call for row in (4, 0, 7) for call in range(3)]
    expected = np.array(words(SEED, 1, 2, counters)).reshape(3, 12)
    np.testing.assert_array_equal(row_words_ref(SEED, 1, 2, rows, 3), expected)


def test_streams_of_kinds_and_numbers_are_distinct():
    kinds = (DROPOUT, NEFTUNE, INIT, ORDER, SPLIT, DEAL, DRAW)
    numbers = (0, 1, 195, 2**24 - 1)
    assert len({stream_of(kind, number) for kind in kinds for number in numbers}) == 28


@pytest.mark.parametrize("count", [0, 1, 2, 4, 5, 97])
def test_permutation_holds_every_element_once(count):
    order = permutation(SEED, 0, stream_of(ORDER), count)
    assert sorted(order) == list(range(count))


@pytest.mark.parametrize(
    "other", [(SEED + 1, 0, 0), (SEED, 1, 0), (SEED, 0, 1)], ids=["seed", "step", "stream"]
)
def test_permutation_changes_with(other):
    assert permutation(SEED, 0, 0, 97) == permutation(SEED, 0, 0, 97)
    assert permutation(SEED, 0, 0, 97) != permutation(*other, 97)


def test_permutation_sends_elements_everywhere_equally_often():
    n, draws = 6, 3_000
    counts = np.zeros((n, n))
    for step in range(draws):
        counts[np.arange(n), permutation(SEED, step, 0, n)] += 1
    expected = draws / n
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 60  # 25 degrees of freedom: P < 1e-4


@pytest.mark.parametrize("count", [0, 1, 3, 4, 1001])
def test_uniforms_are_fp32_multiples_of_two_to_the_minus_24_below_one(count):
    u = uniforms(SEED, 4, 5, count)
    assert u.shape == (count,)
    assert u.dtype == np.float32
    assert ((u >= 0) & (u < 1)).all()
    scaled = u.astype(np.float64) * 2**24
    np.testing.assert_array_equal(scaled, np.round(scaled))


def test_uniforms_are_the_top_bits_of_the_words_in_order():
    expected = [(word >> 8) / 2**24 for row in words(SEED, 4, 5, [0, 1, 2]) for word in row]
    np.testing.assert_array_equal(uniforms(SEED, 4, 5, 10), expected[:10])


def test_uniforms_fill_the_unit_interval_evenly():
    n = 100_000
    counts, _ = np.histogram(uniforms(SEED, 0, 0, n), bins=64, range=(0, 1))
    chi_squared = ((counts - n / 64) ** 2 / (n / 64)).sum()
    assert chi_squared < 115  # 63 degrees of freedom: P < 1e-4


def lanes_of_row_six() -> list[int]:
    """The lanes of module 11, 13 columns, seed 3 and step 5."""
    flat = [w for row in words(3, 5, stream_of(DROPOUT, 11), [12, 13]) for w in row]
    return [half for word in flat for half in (word & 0xFFFF, word >> 16)][:13]


def test_mask_compares_16_bit_lanes_low_half_first():
    threshold = round(65536 * 0.3)
    expected = [lane >= threshold for lane in lanes_of_row_six()]
    assert dropout(0.3, rows=[6]).keep(11, 13)[0].tolist() == expected


def test_lane_at_the_threshold_is_kept():
    for column, lane in enumerate(lanes_of_row_six()):
        assert dropout(lane / 65536, rows=[6]).keep(11, 13)[0, column]
        assert not dropout((lane + 1) / 65536, rows=[6]).keep(11, 13)[0, column]


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_keep_rate_is_within_four_standard_deviations(p):
    keep = dropout(p).keep(0, 1001)
    n, expected = keep.numel(), 1 - round(65536 * p) / 65536
    deviation = math.sqrt(n * expected * (1 - expected))
    assert abs(int(keep.sum()) - n * expected) < 4 * deviation


@pytest.mark.parametrize("p", [0.0, 0.05, 0.1, 1 / 3, 0.5, 0.9])
def test_scale_restores_the_expectation_exactly(p):
    drop = dropout(p)
    kept_lanes = sum(lane >= drop.threshold for lane in range(65536))
    assert kept_lanes / 65536 * drop.scale == pytest.approx(1, abs=1e-15)
    assert drop.scale == pytest.approx(1 / (1 - p), rel=2e-4)


def test_nothing_is_dropped_at_zero():
    assert dropout(0.0).keep(0, 64).all()


@pytest.mark.parametrize(
    ("other", "module"),
    [(dropout(), 1), (dropout(seed=4), 0), (dropout(step=6), 0), (dropout(seed=3 + 2**32), 0)],
    ids=["module", "seed", "step", "high-half-of-seed"],
)
def test_masks_are_uncorrelated_between(other, module):
    a = dropout().keep(0, 512).flatten().double().numpy()
    b = other.keep(module, 512).flatten().double().numpy()
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(a.size)


def test_masks_are_uncorrelated_between_neighbouring_rows_and_columns():
    keep = dropout().keep(0, 512).double().numpy()
    for a, b in ((keep[1:], keep[:-1]), (keep[:, 1:], keep[:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / math.sqrt(a.size)


@pytest.mark.parametrize("n_cols", [1, 8, 13, 64])
def test_mask_of_a_row_depends_only_on_its_number(n_cols):
    whole = dropout(0.5, rows=50).keep(2, n_cols)
    some = [49, 3, 3, 20]
    assert torch.equal(dropout(0.5, rows=some).keep(2, n_cols), whole[some])


def test_numbers_of_rows_may_lie_apart():
    rows = torch.arange(20)[::2]
    apart, expected = Dropout(0.5, 3, 5, rows), Dropout(0.5, 3, 5, rows.clone())
    assert torch.equal(apart.keep(2, 40), expected.keep(2, 40))


def test_select_takes_rows_by_index_not_by_number():
    rows = [30, 10, 20]
    kept = torch.tensor([2, 0])
    drop = dropout(0.5, rows=rows)
    assert torch.equal(drop.select(kept).keep(2, 40), drop.keep(2, 40)[kept])
    assert drop.select(kept).rows.tolist() == [20, 30]


def test_mask_is_the_same_every_time():
    assert torch.equal(dropout().keep(7, 33), dropout().keep(7, 33))


def test_wide_uniforms_are_the_first_53_bits_of_two_words():
    indices = [0, 5, 2**40 + 3]
    stream = stream_of(DRAW)
    drawn = wide_uniforms(SEED, 6, stream, np.array(indices, dtype=np.uint64))
    for u, index in zip(drawn, indices, strict=True):
        first, second, *_ = plain_philox(SEED, 6, stream, index)
        assert u == (first >> 5 << 26 | second >> 6) / 2**53
