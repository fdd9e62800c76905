"""Loading streams: the peak stays under the weights and two tensors, whatever a file holds."""

import json
import subprocess
import sys

from helpers import tiny_checkpoint

SCRIPT = """
import json, sys, torch
from pathlib import Path
from cqa.model.load import load_model

def resident(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

before = resident("VmRSS")
base = load_model(Path(sys.argv[1]), device=torch.device("cpu"), dtype=getattr(torch, sys.argv[2]))
tensors = [base.decoder.table, base.decoder.head, base.decoder.norm]
for layer in base.decoder.layers:
    tensors += [layer.input_norm, layer.post_norm, *(p.weight for p in layer.projections)]
weights = sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())
print(json.dumps({"peak": resident("VmHWM") - before, "weights": weights}))
"""


def test_peak_memory_is_under_weights_and_two_tensors(tmp_path):
    folder = tiny_checkpoint(
        tmp_path, "llama", hidden_size=768, intermediate_size=2048, num_hidden_layers=6,
        num_attention_heads=12, num_key_value_heads=4, vocab_size=8000,
    )  # fmt: skip
    file_bytes, largest_bytes = (folder / "model.safetensors").stat().st_size, 8000 * 768 * 4
    slack = 24 * 2**20  # what torch and safetensors themselves bring in on first use
    assert file_bytes > 2 * (2 * largest_bytes + slack)
    for dtype, part in (("float32", 1), ("bfloat16", 2)):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(folder), dtype],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        measured = json.loads(done.stdout)
        assert abs(measured["weights"] - file_bytes / part) < 2**20
        assert measured["peak"] <= measured["weights"] + 2 * largest_bytes + slack
