"""Memory of a base that is spread over processes, beside that of one process.

    python bench/shard_base.py --shape qwen2.5-0.5b --ranks 2

Writes a checkpoint of random weights of the shape into a temporary folder, then loads it, scores a
short text and takes a training step of one, in one process and over each number of --ranks, on a
CPU. Prints, of the rank with the most, how much its resident memory has risen above what it was
before loading: after loading, at the peak of loading, of scoring and of training. One peak is told
from the other by resetting the kernel's mark. The text is short, so activations are little; of
training, A, B and the optimizer's state are in it, which every rank has whole.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MB = 1 << 20


def main() -> None:
    """Measure and print, or measure as one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="qwen2.5-0.5b")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2])
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder is not None:
        measure(args.folder, args.dtype)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), args.shape)
        found = {n: measured(n, args.dtype, folder) for n in (1, *args.ranks)}
    print("ranks  " + "  ".join(f"{name:>12}" for name in found[1]) + "   MB; of one process")
    for n, values in found.items():
        cells = (
            f"{value / MB:6,.0f} {value / whole:5.2f}"
            for value, whole in zip(values.values(), found[1].values(), strict=True)
        )
        print(f"{n:5d}  " + "  ".join(cells))


def write_checkpoint(folder: Path, shape: str) -> None:
    """Write a shape's config.json and random weights, in bf16, two layers a file."""
    import torch
    from safetensors.torch import save_file

    from cqa.bench.shapes import hf_config, random_weight
    from cqa.model.config import parse_config, tensor_shapes

    (folder / "config.json").write_text(json.dumps(hf_config(shape)))
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, sizes in tensor_shapes(parse_config(hf_config(shape), shape)):
        words = name.split(".")
        file = f"part-{int(words[2]) // 2 if words[1] == 'layers' else 'x'}.safetensors"
        weight = random_weight(name, sizes, torch.float32, torch.device("cpu"))
        files.setdefault(file, {})[name] = weight.bfloat16()
    for file, tensors in files.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    names = {name: file for file, tensors in files.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def measured(n: int, dtype: str, folder: str) -> dict[str, int]:
    """Return the largest rise of each kind over n processes, bytes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
    words = [__file__, "--folder", folder, "--dtype", dtype]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *(launcher if n > 1 else []), *words],
        env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == n
    return {name: max(values[name] for values in found) for name in found[0]}


def measure(folder: Path, dtype: str) -> None:
    """Load, score and train as one of the ranks, and print what that took."""
    import torch
    import torch.distributed as dist
    import torch.distributed.fsdp  # beforehand, as all else that is imported

    from cqa.data.samples import EncodedSample
    from cqa.model.load import load_model
    from cqa.model.lora import LoraSpec, TrainableLora
    from cqa.model.projection import MODULES
    from cqa.ranks import ALONE, Ranks, launched
    from cqa.score.decoder_engine import run_prefix_batch
    from cqa.score.prefix_batch import PrefixBatch
    from cqa.train.passes import StepConfig
    from cqa.train.step import take_step

    rank, count = launched()
    if count > 1:
        dist.init_process_group("gloo")
    ranks = Ranks(rank, count) if count > 1 else ALONE
    spec = LoraSpec(8, 16.0, True, MODULES)
    sample = EncodedSample("a", tuple(range(20)), (False,) * 10 + (True,) * 10, slice(0), "")
    prefixes = PrefixBatch()
    prefixes.add([(tuple(range(10)), tuple(range(20, 30)))])
    before, found = resident("VmRSS"), {}

    def took(name: str) -> None:
        found[name] = resident("VmHWM") - before
        Path("/proc/self/clear_refs").write_text("5")  # the mark begins anew

    took("")
    started = time.perf_counter()
    base = load_model(
        folder, device=torch.device("cpu"), dtype=getattr(torch, dtype),
        rank_columns=spec.rank_columns(), ranks=ranks,
    )  # fmt: skip
    took("loading")
    found["loaded"] = resident("VmRSS") - before
    run_prefix_batch(base.decoder, prefixes)
    run_prefix_batch(base.decoder, prefixes)
    took("scoring")
    lora = TrainableLora(base.decoder, spec, 0)
    for step in (1, 2):
        take_step(lora, [sample] * count, StepConfig(), step=step, lr=1e-4, ranks=ranks)
    took("training")
    del found[""]
    print(f"rank {rank}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print(json.dumps(found), flush=True)
    if count > 1:
        dist.barrier()
        dist.destroy_process_group()


def resident(field: str) -> int:
    """Return this process's resident memory, or the most that it was, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


if __name__ == "__main__":
    main()
