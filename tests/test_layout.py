"""Packing: every asked token is predicted once, by a row that has seen just what precedes it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cqa.layout import PackedBatch, Segment, Tree, pack_documents, pack_trees, pack_whole_options

IDS = st.integers(0, 9)


@st.composite
def documents(draw) -> list[tuple[list[int], list[bool]]]:
    texts = draw(st.lists(st.lists(IDS, min_size=1, max_size=9), min_size=1, max_size=5))
    return [
        (ids, draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))) for ids in texts
    ]


TREES = st.lists(
    st.builds(
        Tree,
        context=st.lists(IDS, min_size=1, max_size=6).map(tuple),
        options=st.lists(st.lists(IDS, min_size=1, max_size=5).map(tuple), max_size=4).map(tuple),
    ),
    min_size=1,
    max_size=4,
)


def segment_of(batch: PackedBatch, row: int) -> Segment:
    (segment,) = [s for s in batch.segments if s.start <= row < s.stop]
    return segment


def visible(batch: PackedBatch, row: int) -> list[int]:
    """The rows that a row attends to."""
    segment = segment_of(batch, row)
    return [*range(segment.prefix_start, segment.prefix_stop), *range(segment.start, row + 1)]


def predictions(batch: PackedBatch) -> list[tuple[list[int], int]]:
    """For each target: the text that the row which predicts it has seen, and the target."""
    rows = batch.kept[batch.target_rows].tolist()
    return [
        (batch.input_ids[visible(batch, row)].tolist(), token)
        for row, token in zip(rows, batch.target.tolist(), strict=True)
    ]


def check_rows(batch: PackedBatch) -> None:
    """Segments tile the rows, positions count what is seen, and kept rows are those announced."""
    bounds = [(s.start, s.stop) for s in batch.segments]
    assert [a for a, _ in bounds] + [batch.n_rows] == [0] + [b for _, b in bounds]
    for row in range(batch.n_rows):
        assert batch.position_ids[visible(batch, row)].tolist() == list(
            range(len(visible(batch, row)))
        )
    for segment in batch.segments:
        kept_nothing = segment.kept_start == segment.kept_stop
        assert kept_nothing or segment.start <= segment.kept_start < segment.kept_stop
        assert segment.kept_stop <= segment.stop
    expected = [row for s in batch.segments for row in range(s.kept_start, s.kept_stop)]
    assert batch.kept.tolist() == expected


@settings(deadline=None)
@given(documents())
def test_documents_predict_every_learned_token_once_from_its_own_past(docs):
    batch = pack_documents(docs)
    check_rows(batch)
    expected = [
        (ids[:i], ids[i]) for ids, loss_mask in docs for i in range(1, len(ids)) if loss_mask[i]
    ]
    assert predictions(batch) == expected
    assert batch.input_ids.tolist() == [token for ids, _ in docs for token in ids]


@settings(deadline=None)
@given(documents())
def test_documents_keep_the_run_from_the_first_to_the_last_asked_row(docs):
    batch = pack_documents(docs)
    for segment, (_, loss_mask) in zip(batch.segments, docs, strict=True):
        asked = [segment.start + i for i, flag in enumerate(loss_mask[1:]) if flag]
        kept = list(range(segment.kept_start, segment.kept_stop))
        assert kept == (list(range(asked[0], asked[-1] + 1)) if asked else [])


@settings(deadline=None)
@given(TREES)
def test_trees_predict_every_option_token_once_from_context_and_option(trees):
    batch, places = pack_trees(trees)
    check_rows(batch)
    assert [len(options) for options in places] == [len(tree.options) for tree in trees]
    found = predictions(batch)
    covered = []
    for tree, slices in zip(trees, places, strict=True):
        for option, place in zip(tree.options, slices, strict=True):
            expected = [([*tree.context, *option[:i]], token) for i, token in enumerate(option)]
            assert found[place] == expected
            covered += range(batch.n_targets)[place]
    assert covered == list(range(batch.n_targets))


@settings(deadline=None)
@given(TREES)
def test_trees_feed_each_context_once_and_no_last_token_of_an_option(trees):
    batch, _ = pack_trees(trees)
    fed = [
        token
        for tree in trees
        for part in (tree.context, *(option[:-1] for option in tree.options))
        for token in part
    ]
    assert batch.input_ids.tolist() == fed
    assert batch.n_rows == sum(tree.n_rows for tree in trees)


@settings(deadline=None)
@given(TREES)
def test_trees_keep_the_last_row_of_contexts_and_all_rows_of_options(trees):
    batch, _ = pack_trees(trees)
    for s in batch.segments:
        is_context = s.prefix_stop == s.prefix_start
        assert (s.kept_start, s.kept_stop) == (s.stop - 1 if is_context else s.start, s.stop)


@settings(deadline=None)
@given(TREES)
def test_whole_options_have_a_row_for_every_token_after_its_own_past(trees):
    batch, rows = pack_whole_options(trees)
    check_rows(batch)
    assert [len(options) for options in rows] == [len(tree.options) for tree in trees]
    everything = range(batch.n_rows)
    for tree, of_tree in zip(trees, rows, strict=True):
        for option, place in zip(tree.options, of_tree, strict=True):
            assert batch.input_ids[place.context].tolist() == list(tree.context)
            assert batch.input_ids[place.own].tolist() == list(option)
            assert batch.kept[place.kept].tolist() == list(everything[place.own])
            seen = visible(batch, place.own.stop - 1)
            assert seen == [*everything[place.context], *everything[place.own]]


def test_documents_by_hand():
    batch = pack_documents(
        [
            ([5, 6, 7, 8], [False, False, True, True]),
            ([9], [True]),
            ([1, 2, 3, 4, 5], [True, True, False, True, False]),
        ]
    )
    assert batch.segments == (Segment(0, 4, 1, 3), Segment(4, 5, 4, 4), Segment(5, 10, 5, 8))
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9, 1, 2, 3, 4, 5]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 0, 0, 1, 2, 3, 4]
    assert batch.kept.tolist() == [1, 2, 5, 6, 7]
    assert batch.target_rows.tolist() == [0, 1, 2, 4]
    assert batch.target.tolist() == [7, 8, 2, 4]
    assert (batch.n_rows, batch.n_targets) == (10, 4)


def test_trees_by_hand():
    batch, places = pack_trees([Tree((5, 6), ((7, 8, 9), (4,))), Tree((1,), ((2, 3),))])
    assert batch.segments == (
        Segment(0, 2, 1, 2),
        Segment(2, 4, 2, 4, 0, 2),
        Segment(4, 5, 4, 5),
        Segment(5, 6, 5, 6, 4, 5),
    )
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 1, 2]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 0, 1]
    assert batch.kept.tolist() == [1, 2, 3, 4, 5]
    assert batch.target_rows.tolist() == [0, 1, 2, 0, 3, 4]
    assert batch.target.tolist() == [7, 8, 9, 4, 2, 3]
    assert places == [[slice(0, 3), slice(3, 4)], [slice(4, 6)]]


@pytest.mark.parametrize("name", ["input_ids", "position_ids", "kept", "target_rows", "target"])
def test_index_tensors_are_int64_and_move_together(name):
    batch, _ = pack_trees([Tree((5, 6), ((7, 8),))])
    assert getattr(batch, name).dtype == torch.int64
    assert getattr(batch.to(torch.device("meta")), name).device.type == "meta"
