"""A decoder spread over processes computes the bits of a whole one, which is beside it here."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT, tiny_checkpoint

CASES = {  # what differs in the weights that are spread
    "qwen2": {"tie_word_embeddings": True, "vocab_size": 5000},  # bias; three pieces of a tied head
    "llama": {},  # nothing tied, no bias
    "gemma3_text": {"head_dim": 8},  # norms of 1 + w, a scaled embedding
    "qwen3_moe": {
        "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8,
    },
}  # fmt: skip
SCRIPT = """
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import cqa.model.spread
from cqa.layout import pack_documents
from cqa.model.load import load_model
from cqa.model.lora import Adapter, LoraSpec, attach
from cqa.ranks import Ranks

cqa.model.spread.PIECE_BYTES = 1
torch.distributed.init_process_group("gloo")
ranks = Ranks(dist.get_rank(), dist.get_world_size())
for folder in map(Path, sys.argv[1:]):
    for backend, dtype in [("native", "float32"), ("native", "bfloat16"), ("reference", "float32")]:
        columns = {"q": 4, "v": 4, "o": 4}
        given = {"device": torch.device("cpu"), "dtype": getattr(torch, dtype), "backend": backend}
        whole, spread = (
            load_model(folder, rank_columns=columns, **given, **more).decoder
            for more in ({}, {"ranks": ranks})
        )
        generator = torch.Generator().manual_seed(ranks.rank)
        ids = tuple(torch.randint(0, 200, (5 + 4 * ranks.rank,), generator=generator).tolist())
        mask = tuple(k > 1 for k in range(len(ids)))
        batch = pack_documents([(ids, mask)])
        weights = {
            (p.layer, m.name): (torch.full((4, p.columns.features), 0.01), torch.ones(m.width, 4))
            for p in whole.projections() for m in p.members if m.name in columns
        }
        adapter = Adapter(LoraSpec(4, 8.0, True, tuple(columns)), weights)
        seen = []
        for state in ("base", "adapter", "silenced", "base"):
            found = []
            for decoder in (whole, spread):
                decoder.detach_adapter() if state == "base" else attach(decoder, adapter)
                if state == "silenced":
                    decoder.silence_adapter()
                hidden = decoder.hidden_for_scoring(batch)
                found.append((hidden, decoder.token_stats(hidden, batch.target).logp))
            for ours, theirs in zip(*found, strict=True):
                assert torch.equal(ours, theirs), (folder.name, backend, dtype, state)
            seen.append(found[0][1])
        assert not torch.equal(seen[0], seen[1])
        assert torch.equal(seen[0], seen[3])
        held = [p.weight for p in spread.projections()]
        total = sum(p.weight.shape[0] for p in whole.projections())
        mine = torch.tensor(sum(weight.shape[0] for weight in held))
        assert total / 3 < int(mine) <= total / 2 + len(held), (total, mine)
        dist.all_reduce(mine)
        assert int(mine) == total
print("all equal", flush=True)
"""


def test_every_pass_of_a_spread_decoder_has_the_bits_of_a_whole_one(tmp_path):
    folders = [tiny_checkpoint(tmp_path / name, name, **more) for name, more in CASES.items()]
    script = tmp_path / "spread.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node=2", str(script), *map(str, folders)],
        env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all equal") == 2


@pytest.mark.parametrize(("n_rows", "count"), [(7, 3), (2, 3), (1, 2), (8, 2), (211, 5)])
def test_parts_of_the_rows_are_disjoint_and_complete(n_rows, count):
    from cqa.model.spread import own_part
    from cqa.ranks import Ranks

    found = [own_part(n_rows, Ranks(k, count)) for k in range(count)]
    assert [row for first, end in found for row in range(first, end)] == list(range(n_rows))
