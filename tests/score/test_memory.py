"""Scoring a long text needs little more memory than the weights."""

import json
import subprocess
import sys

import pytest

LIMIT_BYTES = 600 * 10**6
SCRIPT = """
import json, random
import torch
from cqa.bench.shapes import hf_config
from cqa.layout import Tree, pack_trees
from cqa.model.config import parse_config
from cqa.model.decoder import Decoder
from cqa.kernels.token_logprobs import token_stats

def resident(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

torch.set_num_threads(2)
config = parse_config(hf_config("qwen2.5-0.5b"), "the half-billion shape")
decoder = Decoder(config, rank_columns={}, dtype=torch.float32, device=torch.device("cpu"))
for tensor in (decoder.table, decoder.norm):
    tensor.uniform_(-0.02, 0.02)
for layer in decoder.layers:
    for norm in layer.norms:
        norm.fill_(1)
    for projection in layer.projections:
        projection.weight.uniform_(-0.02, 0.02)
with torch.no_grad():
    def score(n_context, n_option):
        ids = tuple(random.Random(0).randrange(151936) for _ in range(n_context + 2 * n_option))
        options = (ids[n_context : n_context + n_option], ids[n_context + n_option :])
        batch, _ = pack_trees([Tree(ids[:n_context], options)])
        return token_stats(decoder.hidden_for_scoring(batch), decoder.head, batch.target)
    score(20, 10)  # what is allocated once: thread pools, packing buffers
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak so far
    before = resident("VmRSS")
    stats = score(3500, 250)
    assert torch.isfinite(stats.logp).all()
    print(json.dumps({"extra_bytes": resident("VmHWM") - before}))
"""


@pytest.mark.slow
def test_a_4000_token_item_of_the_half_billion_shape_fits_in_600_mb():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=400
    )
    assert json.loads(done.stdout)["extra_bytes"] <= LIMIT_BYTES
