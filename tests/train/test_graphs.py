"""Passes by CUDA graphs: filling up changes nothing, a replay reads the graph's own tensors."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from helpers import tiny_checkpoint

from cqa.data.samples import EncodedSample
from cqa.errors import ResourceError
from cqa.kernels import attention
from cqa.model.load import load_model
from cqa.model.lora import LoraSpec, TrainableLora
from cqa.model.projection import MODULES
from cqa.train import graphs as module
from cqa.train.graphs import CudaCapture, Graphs, replayable
from cqa.train.passes import StepConfig
from cqa.train.step import backward_passes

CONFIG = StepConfig(dropout=0.2, neftune_alpha=5.0, seed=3)


def samples(*lengths: int, seed: int) -> list[EncodedSample]:
    """Random texts whose last two thirds are learned."""
    generator = torch.Generator().manual_seed(seed)
    return [
        EncodedSample(
            str(i),
            tuple(torch.randint(0, 200, (n,), generator=generator).tolist()),
            [j >= n // 3 for j in range(n)],
            slice(0, 0),
            "",
        )
        for i, n in enumerate(lengths)
    ]


@pytest.mark.parametrize("lengths", [(20, 11), (3,), (64, 1, 40), (255,), (256,)], ids=str)
def test_a_pass_is_filled_up_to_whole_buckets(lengths):
    given = replayable(samples(*lengths, seed=1), torch.device("cpu"), seed=0, step=1)
    batch = given.batch
    assert batch.n_rows % module.BUCKET_ROWS == 0
    assert batch.n_targets % module.BUCKET_TARGETS == 0
    assert batch.kept.shape == batch.target.shape
    n_targets = sum(n - max(1, n // 3) for n in lengths)
    assert given.is_label.tolist() == [1] * n_targets + [0] * (batch.n_targets - n_targets)
    assert len(batch.segments) == len(lengths) + 1


def library_of_segments(q, k, v, cu_query, cu_key, longest_query, longest_key, *, window):
    """What a library for a GPU does: causal in each segment, aligned at the bottom right."""
    outs = []
    for i in range(len(cu_query) - 1):
        query, key = slice(cu_query[i], cu_query[i + 1]), slice(cu_key[i], cu_key[i + 1])
        heads = [t.transpose(0, 1) for t in (q[query], k[key], v[key])]
        shape = heads[0].shape[1], heads[1].shape[1]
        seen = torch.ones(shape, dtype=torch.bool).tril(shape[1] - shape[0])
        out = torch.nn.functional.scaled_dot_product_attention(
            *heads, attn_mask=seen, enable_gqa=True
        )
        outs.append(out.transpose(0, 1))
    assert window == (-1, 0)
    return torch.cat(outs)


def recorded_on_cpu(function):
    """Warm up as on a device; a replay is the function again."""
    function()
    return function


def trained(folder, device: torch.device, dtype: torch.dtype) -> TrainableLora:
    spec = LoraSpec(4, 8.0, True, MODULES)
    decoder = load_model(
        folder, device=device, dtype=dtype, rank_columns=spec.rank_columns(), backend="triton"
    ).decoder
    lora = TrainableLora(decoder, spec, seed=3)
    generator = torch.Generator().manual_seed(5)
    lora.state.param.copy_(torch.randn(lora.n_params, generator=generator) / 10)
    lora.after_step()
    return lora


def assert_graphs_equal_passes(lora: TrainableLora, graphs: Graphs, allowed: float) -> None:
    """`allowed` is of the norm: where an element is small, 16 bits leave it few digits.

    The last lengths are those of the first, after others that fill the same buckets.
    """
    for step, lengths in enumerate(((12, 7), (9, 10), (12, 7)), start=1):
        given = samples(*lengths, seed=step)
        results = []
        for used in (None, graphs):
            lora.forget_gradient()
            lora.state.grad.fill_(0.25)  # of another step
            loss = backward_passes(lora.decoder, [given], CONFIG, step=step, graphs=used)
            results.append((loss, lora.state.grad.clone()))
        for one, other in zip(*results, strict=True):
            assert (other - one).norm() <= allowed * one.norm()
        assert results[0][1].abs().max() > 1e-3


@pytest.fixture
def on_cpu(tmp_path, monkeypatch) -> TrainableLora:
    """A model whose passes could be recorded, were there a device."""
    monkeypatch.setattr(module, "BUCKET_ROWS", 32)
    monkeypatch.setattr(module, "BUCKET_TARGETS", 8)
    monkeypatch.setattr(attention, "library_for", lambda q: library_of_segments)
    folder = tiny_checkpoint(tmp_path, "qwen2", num_hidden_layers=1, head_dim=8)
    return trained(folder, torch.device("cpu"), torch.float32)


def test_replays_equal_passes_of_other_texts_layouts_and_steps(on_cpu):
    graphs = Graphs(on_cpu, CONFIG, recorded_on_cpu)
    assert_graphs_equal_passes(on_cpu, graphs, 1e-5)
    assert len(graphs._recorded) == 1


def test_replay_writes_to_no_tensor_that_another_pass_reads(on_cpu):
    graphs = Graphs(on_cpu, CONFIG, recorded_on_cpu)
    batch = replayable(samples(12, 7, seed=1), torch.device("cpu"), seed=3, step=1)
    cached = batch.spans[0].cu_query
    before = cached.clone()
    for step, lengths in enumerate(((12, 7), (9, 10)), start=1):
        backward_passes(
            on_cpu.decoder, [samples(*lengths, seed=step)], CONFIG, step=step, graphs=graphs
        )
    assert torch.equal(cached, before)


def no_memory_while_recording(function):
    """The error that ends a capture hides the one that it was raised during."""
    function()
    try:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    finally:
        raise RuntimeError("operation failed due to a previous error during capture")


def broken_recording(function):
    raise RuntimeError("operation not permitted when stream is capturing")


def test_pass_whose_recording_runs_out_of_memory_is_run_without_graphs(on_cpu):
    graphs = Graphs(on_cpu, CONFIG, no_memory_while_recording)
    assert_graphs_equal_passes(on_cpu, graphs, 0)
    assert graphs.ran_out
    assert not graphs._recorded


def test_recording_that_fails_otherwise_is_an_error(on_cpu):
    graphs = Graphs(on_cpu, CONFIG, broken_recording)
    with pytest.raises(RuntimeError, match="not permitted"):
        backward_passes(on_cpu.decoder, [samples(9, seed=1)], CONFIG, step=1, graphs=graphs)


@pytest.mark.gpu
def test_replays_equal_passes_on_a_device(tmp_path):
    folder = tiny_checkpoint(tmp_path, "qwen2", num_hidden_layers=2, head_dim=16)
    lora = trained(folder, torch.device("cuda"), torch.bfloat16)
    graphs = Graphs.of(lora, CONFIG)
    assert_graphs_equal_passes(lora, graphs, 0.05)


def test_all_graphs_work_in_the_memory_of_the_first(monkeypatch):
    calls, pools = [], []

    class Graph:
        def pool(self):
            return self

        def replay(self):
            calls.append("replay")

    @contextmanager
    def graph(new, pool):
        pools.append(pool)
        calls.append("record")
        yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    fake = {
        "Stream": lambda: stream, "current_stream": lambda: stream,
        "stream": lambda side: nullcontext(), "CUDAGraph": Graph, "graph": graph,
    }  # fmt: skip
    for name, value in fake.items():
        monkeypatch.setattr(torch.cuda, name, value)
    capture = CudaCapture()
    first, *_ = replays = [capture(lambda: calls.append("pass")) for _ in range(3)]
    assert calls == ["pass", "pass", "record", "pass"] * 3
    assert pools == [None, first.__self__, first.__self__]
    replays[2]()
    assert calls[-1] == "replay"


def test_a_device_without_graphs_is_named(tmp_path):
    folder = tiny_checkpoint(tmp_path, "qwen2", num_hidden_layers=1, head_dim=8)
    lora = trained(folder, torch.device("cpu"), torch.float32)
    with pytest.raises(ResourceError, match=r"expected a GPU .* got torch.float32 on cpu"):
        Graphs.of(lora, CONFIG)
