"""The convention in numbers: token ids and float64 log-probs of real items under real models."""

from itertools import islice

import pytest
from helpers import ON_DEVICES, read_lines, shared
from score.common import encode, load, score_all

from cqa.data.items import read_items

TOLERANCE_NATS = 1e-4


@pytest.mark.parametrize("device", ON_DEVICES)
@pytest.mark.parametrize("name", ["cqa-demo", "stories260k"])
def test_ids_and_values_match_the_stored_vectors(name, device):
    folder, lines = shared(f"models/{name}"), read_lines(shared(f"conformance/{name}.jsonl"))
    decoder, tokenizer = load(folder, device)
    items = {}
    for file in {line["file"] for line in lines}:
        found = read_items([shared(f"data/pairs/{file}.jsonl")])
        items.update({(file, item.id): item for item in islice(found, 400)})
    for line in lines:
        encoded = encode(items[line["file"], line["id"]], tokenizer, decoder.config.max_positions)
        branches = score_all(decoder, tokenizer, [encoded])
        assert list(tokenizer.null_ids) == line["null_ids"]
        assert list(tokenizer.null2_ids) == line["null2_ids"]
        for ours, theirs in zip(encoded.options, line["options"], strict=True):
            assert list(ours.context_ids) == line["context_ids"]
            assert list(ours.option_ids) == theirs["token_ids"]
            assert ours.boundary_mismatch == theirs["boundary_merge"]
            given = branches[ours.context_ids, ours.option_ids]
            null = branches[tokenizer.null_ids, ours.option_ids]
            null2 = branches[tokenizer.null2_ids, ours.option_ids]
            values = {
                "logp_given_context_nats": given.total,
                "logp_null_nats": null.total,
                "logp_null2_nats": null2.total,
                "entropy_given_context_nats": given.total_entropy,
                "entropy_null_nats": null.total_entropy,
            }
            for key, value in values.items():
                assert value == pytest.approx(theirs[key], abs=TOLERANCE_NATS, rel=0), (
                    line["id"],
                    key,
                )
            expected = theirs["token_logp_given_context_nats"]
            assert given.logp == pytest.approx(expected, abs=TOLERANCE_NATS, rel=0)
