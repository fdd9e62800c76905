"""Loading a base model: what is not understood is refused by name, what is, is read exactly."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from cqa.errors import ModelError, ResourceError
from cqa.model.checkpoint import locate
from cqa.model.config import read_config
from cqa.model.load import load_model, pick_device, pick_dtype

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        name: tiny_checkpoint(folder / name, name, num_hidden_layers=1)
        for name in ("qwen2", "llama", "mistral", "qwen3")
    }


@pytest.fixture
def model(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A sound one-layer Llama to spoil."""
    return Path(shutil.copytree(checkpoints["llama"], tmp_path / "model"))


def load(folder: Path):
    return load_model(folder, device=CPU, dtype=torch.float32)


def edit_config(folder: Path, **changes: Any) -> None:
    """Change settings; a setting of `...` is removed."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def refusal(folder: Path) -> str:
    """Load a spoiled model; return what the user reads."""
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert caught.value.exit_code == 4
    assert str(folder) in str(caught.value.where)
    return caught.value.message


def test_sound_model_is_loaded(model):
    decoder = load(model).decoder
    tensors = load_file(model / WEIGHTS)
    assert torch.equal(decoder.table, tensors["model.embed_tokens.weight"])
    gate_up = decoder.layers[0].gate_up.weight[:, : decoder.config.hidden_size]
    halves = [tensors[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up")]
    assert torch.equal(gate_up, torch.cat(halves))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": "qwen3_moe"}, "qwen3_moe"),
        ({"model_type": ...}, "None"),
        ({"model_type": ["llama"]}, "llama"),
        ({"auto_map": {"AutoModel": "modeling.Model"}}, "remote code"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"attention_dropout": 0.1}, "0.1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_parameters": ..., "rope_scaling": {"type": "longrope"}}, "longrope"),
        ({"rope_parameters": "linear"}, ""),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "factor"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "freq_factor"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "big"}}, ""),
        ({"hidden_size": ...}, "hidden_size"),
        ({"hidden_size": "48"}, ""),
        ({"vocab_size": "many"}, ""),
        ({"vocab_size": -1}, ""),
        ({"num_hidden_layers": ...}, "num_hidden_layers"),
        ({"num_hidden_layers": 0}, ""),
        ({"num_attention_heads": 0}, ""),
        ({"num_key_value_heads": 4}, "4 key/value heads"),
        ({"head_dim": 7}, ""),
        ({"rms_norm_eps": "small"}, ""),
    ],
    ids=str,
)
def test_config_is_refused(model, changes, said):
    edit_config(model, **changes)
    assert said in refusal(model)


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


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


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
    assert "weight_map" in refusal(model)


def test_index_that_names_the_wrong_shard_is_refused(model):
    places = shard(model)
    write_index(model, places | {min(places): "shard-1.safetensors"})
    assert f"expected tensor {min(places)}" in refusal(model)


def test_truncated_shard_is_refused(model):
    shard(model)
    path = model / "shard-1.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refusal(model)


def test_tied_model_may_carry_its_head_twice(model):
    edit_config(model, tie_word_embeddings=True)
    decoder = load(model).decoder
    assert decoder.head is decoder.table


def test_rotary_buffers_of_old_checkpoints_are_ignored(model):
    edit_tensors(model, replace("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4)))
    load(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_other_dtypes_are_converted(model, dtype):
    edit_tensors(model, lambda t: t.update({name: x.to(dtype) for name, x in t.items()}))
    expected = load_file(model / WEIGHTS)[NORM].float()
    assert torch.equal(load(model).decoder.norm, expected)


def test_both_spellings_of_rope_are_read_alike(model):
    scaling = {"factor": 4.0, "original_max_position_embeddings": 64}
    edit_config(model, rope_parameters={"rope_type": "yarn", "rope_theta": 5e5, **scaling})
    new = read_config(model).rope
    edit_config(
        model, rope_parameters=..., rope_theta=5e5, rope_scaling={"type": "yarn", **scaling}
    )
    old = read_config(model).rope
    assert {key: old[key] for key in new} == new


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 8},
        {"use_sliding_window": True, "sliding_window": None},
        {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 2},
        {"use_sliding_window": ..., "sliding_window": 8, "max_window_layers": 2},
        {
            "use_sliding_window": True,
            "sliding_window": 8,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
        },
    ],
    ids=["from-layer-2", "everywhere", "beyond-the-last", "no-width", "off", "unset", "by-layer"],
)
@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_windows_are_those_of_transformers(checkpoints, name, changes, tmp_path):
    folder = Path(shutil.copytree(checkpoints[name], tmp_path / name))
    edit_config(folder, layer_types=..., max_window_layers=...)
    edit_config(folder, num_hidden_layers=4, **changes)
    theirs = AutoConfig.from_pretrained(folder)
    expected = [theirs.sliding_window if "sliding" in kind else None for kind in theirs.layer_types]
    assert list(read_config(folder).windows) == expected


@pytest.mark.parametrize("name", ["qwen2", "llama", "mistral", "qwen3"])
def test_defaults_are_those_of_transformers(checkpoints, name, tmp_path):
    folder = Path(shutil.copytree(checkpoints[name], tmp_path / name))
    required = {
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
    }
    config = json.loads((folder / "config.json").read_text())
    edit_config(folder, **dict.fromkeys(config.keys() - required, ...))
    ours, theirs = read_config(folder), AutoConfig.from_pretrained(folder)
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.tied == theirs.tie_word_embeddings
    assert ours.rope["rope_theta"] == theirs.rope_parameters["rope_theta"]
    assert ours.windows == (getattr(theirs, "sliding_window", None),)
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 48 // 6)


def test_digest_follows_config_and_weights(model):
    before = load(model).digest
    assert load(model).digest == before
    edit_tensors(model, replace(NORM, torch.ones(48)))
    after = load(model).digest
    edit_config(model, transformers_version="0")
    assert len({before, after, load(model).digest}) == 3


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


def test_device_and_dtype_are_resolved(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == CPU
    assert pick_dtype("auto", CPU) == torch.float32
    assert pick_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert pick_dtype("bf16", CPU) == torch.bfloat16
    with pytest.raises(ResourceError, match="expected a CUDA device"):
        pick_device("cuda")
