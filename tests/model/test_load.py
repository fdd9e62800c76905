"""Loading a base model: what is not understood is refused by name, what is, is read exactly."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from model.common import (
    CPU,
    INDEX,
    WEIGHTS,
    edit_config,
    edit_tensors,
    load,
    our_logprobs,
    refusal,
    their_logprobs,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from cqa.errors import ModelError, ResourceError
from cqa.kernels.token_logprobs import token_logprobs
from cqa.layout import pack_documents
from cqa.model.checkpoint import UNWANTED, WANTED, locate
from cqa.model.load import load_model, pick_device, pick_dtype
from cqa.model.lora import LoraSpec, TrainableLora


def test_sound_model_is_loaded(model):
    decoder = load(model).decoder
    tensors = load_file(model / WEIGHTS)
    assert torch.equal(decoder.table, tensors["model.embed_tokens.weight"])
    gate_up = decoder.layers[0].gate_up.weight[:, : decoder.config.hidden_size]
    halves = [tensors[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up")]
    assert torch.equal(gate_up, torch.cat(halves))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", '{"model_type": "llama"}', "[" * 100_000, "\ud800"],
    ids=["empty", "cut", "array", "number", "bare", "nested", "not-utf-8"],
)
def test_malformed_config_is_refused(model, text):
    (model / "config.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    refusal(model)


def test_missing_config_is_refused(model):
    (model / "config.json").unlink()
    assert "config.json" in refusal(model)


def test_missing_weights_are_refused(model):
    (model / WEIGHTS).unlink()
    assert WEIGHTS in refusal(model)


def test_pickle_is_refused_and_not_opened(model):
    (model / WEIGHTS).unlink()
    (model / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert "pickle" in refusal(model)


def drop(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.pop(name)


def replace(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: tensor})


Q, NORM = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        (drop(Q), Q),
        (drop("lm_head.weight"), "lm_head.weight"),
        (replace("model.layers.1.mlp.up_proj.weight", torch.zeros(80, 48)), "model.layers.1"),
        (replace("model.layers.0.self_attn.q_proj.bias", torch.zeros(48)), "q_proj.bias"),
        (replace(Q, torch.zeros(48, 47)), Q),
        (replace(Q, torch.zeros(48 * 48)), Q),
        (replace(NORM, torch.zeros(1)), NORM),
        (replace(Q, torch.zeros(48, 48, dtype=torch.int64)), Q),
        (replace(NORM, torch.zeros(48, dtype=torch.bool)), NORM),
    ],
    ids=[
        "missing",
        "missing-head",
        "further-layer",
        "further-bias",
        "wrong-shape",
        "flat",
        "would-broadcast",
        "integers",
        "booleans",
    ],
)
def test_tensor_is_refused_by_name(model, edit, name):
    edit_tensors(model, edit)
    assert name in refusal(model)


@pytest.mark.parametrize("keep", [0, 4, 100, -1], ids=lambda n: f"first-{n}-bytes")
def test_truncated_weights_are_refused(model, keep):
    path = model / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    refusal(model)


def shard(folder: Path) -> dict[str, str]:
    """Split the weights in two files; return the weight map."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    places = {}
    for i, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, folder / f"shard-{i}.safetensors")
        places |= dict.fromkeys(part, f"shard-{i}.safetensors")
    write_index(folder, places)
    return places


def write_index(folder: Path, weight_map: object, name: str = INDEX) -> None:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards_are_read_by_their_index(model, checkpoints):
    shard(model)
    expected = load(checkpoints["llama"]).decoder
    assert torch.equal(load(model).decoder.layers[0].qkv.weight, expected.layers[0].qkv.weight)


@pytest.mark.parametrize(
    "file",
    ["../x.safetensors", "{folder}/shard-0.safetensors", "sub/x.safetensors", "..", "", "none", 3],
)
def test_index_that_points_outside_its_folder_is_refused(model, file):
    places = shard(model)
    for outside in (model.parent, model / "sub"):
        outside.mkdir(exist_ok=True)
        shutil.copy(model / "shard-0.safetensors", outside / "x.safetensors")
    place = file.format(folder=model) if isinstance(file, str) else file
    write_index(model, places | {min(places): place})
    assert repr(place) in refusal(model)


@pytest.mark.parametrize("weight_map", [None, [], "shard-0.safetensors", {}], ids=str)
def test_malformed_index_is_refused(model, weight_map):
    shard(model)
    write_index(model, weight_map)
    refusal(model)


def test_index_that_is_not_json_is_refused(model):
    shard(model)
    (model / INDEX).write_text("{")
    assert "expected a JSON object" in refusal(model)


def test_two_sets_of_weights_are_refused_by_their_names(model):
    whole = load_file(model / WEIGHTS)
    shard(model)
    save_file(whole, model / WEIGHTS)
    message = refusal(model)
    assert WEIGHTS in message
    assert INDEX in message


def test_index_of_the_one_file_is_no_second_set(model):
    write_index(model, dict.fromkeys(load_file(model / WEIGHTS), WEIGHTS))
    assert_as_transformers(model)


@pytest.mark.parametrize("name", ["other.safetensors", "other.safetensors.index.json"])
def test_weights_that_the_config_names_are_read(model, name):
    shutil.copy(model / WEIGHTS, model / "other.safetensors")
    edit_tensors(model, lambda tensors: tensors[NORM].mul_(2))
    names = dict.fromkeys(load_file(model / WEIGHTS), "other.safetensors")
    write_index(model, names, "other.safetensors.index.json")
    edit_config(model, transformers_weights=name)
    expected = load_file(model / "other.safetensors")[NORM]
    assert torch.equal(load(model).decoder.norm, expected)
    assert_as_transformers(model)


@pytest.mark.parametrize("name", ["../x.safetensors", "none.safetensors", "config.json", 3, ""])
def test_weights_that_the_config_names_elsewhere_are_refused(model, name):
    edit_config(model, transformers_weights=name)
    message = refusal(model)
    assert "transformers_weights" in message
    assert repr(name) in message


def test_tensor_in_two_shards_is_refused_by_their_names(model):
    places = shard(model)
    second = load_file(model / "shard-1.safetensors")
    name = min(name for name, file in places.items() if file == "shard-0.safetensors")
    save_file(
        second | {name: load_file(model / "shard-0.safetensors")[name]},
        model / "shard-1.safetensors",
    )
    message = refusal(model)
    assert all(part in message for part in (name, "shard-0.safetensors", "shard-1.safetensors"))


def test_tensor_that_a_shard_holds_beside_its_index_is_read(model):
    places = shard(model)
    write_index(model, {name: file for name, file in places.items() if name != HEAD})
    edit_config(model, tie_word_embeddings=True)
    assert_as_transformers(model)


def test_index_that_names_the_wrong_shard_is_refused(model):
    places = shard(model)
    write_index(model, places | {min(places): "shard-1.safetensors"})
    assert f"expected tensor {min(places)}" in refusal(model)


def test_truncated_shard_is_refused(model):
    shard(model)
    path = model / "shard-1.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refusal(model)


HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
TEXT = [list(range(3, 60)), list(range(100, 200, 3))]


def assert_as_transformers(folder: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    difference = our_logprobs(load(folder).decoder, TEXT) - their_logprobs(theirs, TEXT)
    assert difference.abs().max() < 1e-5


@pytest.mark.parametrize("shift", [0.0, 0.05], ids=["equal", "other"])
def test_head_that_a_tied_model_brings_is_used(model, shift):
    def bring(tensors: dict[str, Tensor]) -> None:
        table = tensors[TABLE]
        noise = torch.randn(table.shape, generator=torch.Generator().manual_seed(0))
        tensors[HEAD] = table + shift * noise

    edit_tensors(model, bring)
    edit_config(model, tie_word_embeddings=True)
    decoder = load(model).decoder
    assert torch.equal(decoder.head, load_file(model / WEIGHTS)[HEAD])
    assert_as_transformers(model)


def test_training_with_a_head_of_its_own_follows_the_gradient_of_that_head(model):
    edit_config(model, tie_word_embeddings=True)
    decoder = load_model(model, device=CPU, dtype=torch.float32, rank_columns={"q": 2}).decoder
    lora = TrainableLora(decoder, LoraSpec(2, 4.0, False, ("q",)), 0)
    a, b = lora.weights[0, "q"]
    generator = torch.Generator().manual_seed(1)
    b.copy_(torch.randn(b.shape, generator=generator) / 10)
    lora.after_step()
    batch = pack_documents([(tuple(TEXT[0]), [True] * len(TEXT[0]))])
    loss = -token_logprobs(decoder.hidden(batch), decoder.head, batch.target).mean()
    loss.backward()
    theirs = AutoModelForCausalLM.from_pretrained(model)
    q_proj = theirs.model.layers[0].self_attn.q_proj
    their_b = b.clone().requires_grad_()
    with torch.no_grad():
        base = q_proj.weight.clone()
    del q_proj.weight
    q_proj.weight = base + 2.0 * their_b @ a
    ids = torch.tensor(TEXT[:1])
    theirs(ids, labels=ids, use_cache=False).loss.backward()
    ours = lora.state.grad[b.storage_offset() :][: b.numel()].view(b.shape)
    torch.testing.assert_close(ours, their_b.grad, atol=1e-6, rtol=1e-4)


def test_rotary_buffers_of_old_checkpoints_are_ignored(model):
    expected = load(model).decoder.layers[0].qkv.weight
    edit_tensors(model, replace("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4)))
    assert torch.equal(load(model).decoder.layers[0].qkv.weight, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_other_dtypes_are_converted(model, dtype):
    edit_tensors(model, lambda t: t.update({name: x.to(dtype) for name, x in t.items()}))
    expected = load_file(model / WEIGHTS)[NORM].float()
    assert torch.equal(load(model).decoder.norm, expected)


def test_digest_follows_config_and_weights(model):
    before = load(model).digest
    assert load(model).digest == before
    edit_tensors(model, replace(NORM, torch.ones(48)))
    after = load(model).digest
    edit_config(model, transformers_version="0")
    assert len({before, after, load(model).digest}) == 3


def test_weights_in_the_makers_own_format_are_not_downloaded():
    held = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "consolidated.safetensors",
        "consolidated-00001.safetensors",
        "original/params.json",
        "pytorch_model.bin",
    ]
    wanted = filter_repo_objects(held, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED))
    assert list(wanted) == held[:2]


def test_folder_is_its_own_place(model):
    assert locate(str(model)) == model


@pytest.mark.parametrize(
    "name", ["./none", "/none/at/all", "~/none", "none", "a/b/c", "{folder}/config.json"]
)
def test_path_that_is_no_folder_is_refused(model, name):
    with pytest.raises(ModelError, match="no such folder"):
        locate(name.format(folder=model))


@pytest.mark.parametrize("name", ["nobody/nothing", "no body/nothing", "nobody/--"])
@pytest.mark.parametrize("offline", [True, False], ids=["offline", "online"])
def test_hub_id_that_is_not_available_is_refused_with_a_hint(name, offline, monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("nobody answers")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    with pytest.raises(ModelError) as caught:
        locate(name)
    assert caught.value.exit_code == 4
    assert caught.value.where == name
    assert ("HF_HUB_OFFLINE" in caught.value.hint) is offline


@pytest.mark.parametrize("weights", [True, False])
def test_a_hub_id_without_weights_has_the_rest(model, monkeypatch, weights):
    asked = []

    def snapshot(name, *, allow_patterns, ignore_patterns):
        asked.append((name, "*.safetensors" in ignore_patterns))
        assert "*.json" in allow_patterns
        return str(model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert locate("some/thing", weights=weights) == model
    assert asked == [("some/thing", not weights)]


def test_device_and_dtype_are_resolved(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == CPU
    assert pick_dtype("auto", CPU) == torch.float32
    assert pick_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert pick_dtype("bf16", CPU) == torch.bfloat16
    with pytest.raises(ResourceError, match="expected a CUDA device"):
        pick_device("cuda")
