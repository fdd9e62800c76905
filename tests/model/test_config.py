"""config.json: every setting means what transformers makes of it, or is refused by name."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY
from model.common import edit_config, load, our_logprobs, refusal, their_logprobs
from transformers import AutoConfig, AutoModelForCausalLM

from cqa.errors import ModelError
from cqa.model.config import DecoderConfig, parse_config, read_config

TEXT = [list(range(3, 100))]


def parsed(folder: Path) -> DecoderConfig:
    """Read a config without its weights."""
    path = folder / "config.json"
    return parse_config(json.loads(path.read_text()), str(path))


HUGE = 10**30
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": "qwen2_moe"}, "qwen2_moe"),
        ({"model_type": ...}, "None"),
        ({"model_type": ["llama"]}, "llama"),
        ({"auto_map": {"AutoModel": "modeling.Model"}}, "remote code"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"per_layer_config": {"0": {"head_dim": 4}}}, "per_layer_config"),
        ({"configuration_files": ["config.4.0.0.json"]}, "configuration_files"),
        ({"text_config": {"hidden_size": 8}}, "text_config"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"attention_dropout": 0.1}, "0.1"),
        ({"attention_bias": None}, "attention_bias"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_parameters": ..., "rope_scaling": {"type": "longrope"}}, "longrope"),
        ({"rope_parameters": "linear"}, "linear"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "factor"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "freq_factor"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "big"}}, "rope_theta 'big'"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": HUGE**10}}, "rope_theta 1000"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e300}}, "rope_theta 1e+300"),
        ({"rope_parameters": YARN | {"rope_theta": 1}}, "no angles"),
        ({"rope_parameters": YARN | {"beta_slow": -1}}, "no angles"),
        ({"rope_parameters": YARN | {"attention_factor": "0.8"}}, "attention_factor '0.8'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
        ({"rope_theta": 5e5}, "rope_theta 500000.0 beside rope_theta 10000.0"),
        ({"rope_scaling": YARN}, "both rope_parameters and rope_scaling"),
        ({"rope_parameters": YARN, "original_max_position_embeddings": 32}, "32 beside"),
        ({"rope_parameters": YARN | {"type": "linear"}}, "type 'linear' beside rope_type 'yarn'"),
        ({"layer_types": ["chunked_attention"]}, "chunked_attention"),
        ({"hidden_size": ...}, "hidden_size"),
        ({"hidden_size": "48"}, "hidden_size '48'"),
        ({"hidden_size": HUGE}, "hidden_size 1000"),
        ({"hidden_size": 96}, "of shape (211, 96) as the config says, got: (211, 48)"),
        ({"intermediate_size": HUGE}, "intermediate_size 1000"),
        ({"vocab_size": "many"}, "vocab_size 'many'"),
        ({"vocab_size": -1}, "vocab_size -1"),
        ({"vocab_size": HUGE}, "vocab_size 1000"),
        ({"num_hidden_layers": ...}, "num_hidden_layers"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0"),
        ({"num_hidden_layers": HUGE}, "num_hidden_layers 1000"),
        ({"num_hidden_layers": 9000}, "9000 layers"),
        ({"num_attention_heads": 0}, "num_attention_heads 0"),
        ({"num_attention_heads": 5}, "48 for 5 heads"),
        ({"num_key_value_heads": 4}, "4 key/value heads"),
        ({"max_position_embeddings": HUGE}, "max_position_embeddings 1000"),
        ({"head_dim": 7}, "odd head_dim 7"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps 'small'"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"hidden_size": int("9" * 4000)}, "hidden_size 9999"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_config_is_refused(model, changes, said):
    edit_config(model, **changes)
    message = refusal(model)
    assert said in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sliding_window": HUGE, "use_sliding_window": True}, "sliding_window 1000"),
        ({"sliding_window": 0, "use_sliding_window": True}, "sliding_window 0"),
        ({"max_window_layers": None, "use_sliding_window": True}, "max_window_layers None"),
        ({"layer_types": ["sliding_attention"], "use_sliding_window": False}, "no sliding window"),
        ({"layer_types": ["full_attention"] * 2}, "2 layer_types for 1 layers"),
        ({"num_key_value_heads": ...}, "32 key/value heads (what a config without"),
        ({"head_dim": None}, "head_dim"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_config_of_a_qwen_is_refused(checkpoints, tmp_path, changes, said):
    folder = Path(shutil.copytree(checkpoints["qwen2"], tmp_path / "model"))
    edit_config(folder, **changes)
    assert said in refusal(folder)


def test_layer_types_of_a_mistral_count_where_all_programs_agree(checkpoints, tmp_path):
    folder = Path(shutil.copytree(checkpoints["mistral"], tmp_path / "model"))
    edit_config(folder, sliding_window=8, layer_types=["sliding_attention"])
    assert read_config(folder).windows == (8,)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    difference = our_logprobs(load(folder).decoder, TEXT) - their_logprobs(theirs, TEXT)
    assert difference.abs().max() < 1e-5
    for kinds, window in ((["full_attention"], 8), (["sliding_attention"], None)):
        edit_config(folder, sliding_window=window, layer_types=kinds)
        assert "a Mistral with layer_types" in refusal(folder)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_config_that_is_no_regular_file_is_refused(model, kind):
    path = model / "config.json"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    assert refusal(model) == f"expected a regular file, got a {kind}"


def test_folder_of_an_adapter_is_told_from_that_of_a_base(model):
    (model / "adapter_config.json").write_text("{}")
    assert "adapter_config.json beside its config.json" in refusal(model)
    (model / "config.json").unlink()
    with pytest.raises(ModelError, match="holds an adapter: name its base with --model"):
        read_config(model)


def test_spellings_of_rope_are_read_alike(model):
    scaling = {"factor": 4.0, "original_max_position_embeddings": 64}
    edit_config(model, rope_parameters={"rope_type": "yarn", "rope_theta": 5e5, **scaling})
    new = read_config(model).rope
    for changes in (
        {"rope_scaling": {"type": "yarn", **scaling}},
        {"rope_scaling": {"type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 64},
        {"rope_parameters": {"rope_type": "yarn", **scaling}, "rope_scaling": None},
    ):
        edit_config(model, **{"rope_parameters": ..., "rope_theta": 5e5} | changes)
        assert read_config(model).rope == new


@pytest.mark.parametrize(
    "rope",
    [
        YARN | {"rope_theta": 3.0},  # every dimension turns often: low is beyond the last
        YARN | {"beta_fast": 1, "beta_slow": 32},
        YARN | {"beta_fast": 4.5, "beta_slow": 0.25, "truncate": False},
        YARN | {"mscale": 0.7, "mscale_all_dim": 1.3},
    ],
    ids=["small-theta", "crossed", "no-truncation", "mscale"],
)
def test_yarn_is_that_of_transformers(model, rope):
    edit_config(model, rope_parameters={"rope_theta": 1e4} | rope)
    theirs = AutoModelForCausalLM.from_pretrained(model)
    difference = our_logprobs(load(model).decoder, TEXT) - their_logprobs(theirs, TEXT)
    assert difference.abs().max() < 1e-5


WINDOWS: list[dict[str, Any]] = [
    {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
    {"use_sliding_window": True, "sliding_window": 8},
    {"use_sliding_window": True, "sliding_window": None},
    {"use_sliding_window": True, "max_window_layers": 2},
    {"use_sliding_window": True, "layer_types": None, "max_window_layers": -1},
    {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 2},
    {"use_sliding_window": ..., "sliding_window": 8, "max_window_layers": 2},
    {
        "use_sliding_window": True,
        "sliding_window": 8,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
    },
]


@pytest.mark.parametrize("changes", WINDOWS, ids=str)
@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_windows_are_those_of_transformers(checkpoints, name, changes, tmp_path):
    folder = Path(shutil.copytree(checkpoints[name], tmp_path / name))
    edit_config(folder, layer_types=..., max_window_layers=..., sliding_window=...)
    edit_config(folder, num_hidden_layers=4, **changes)
    theirs = AutoConfig.from_pretrained(folder)
    expected = [theirs.sliding_window if "sliding" in kind else None for kind in theirs.layer_types]
    assert list(parsed(folder).windows) == expected


def test_a_window_that_is_only_implied_is_4096(checkpoints, tmp_path):
    folder = Path(shutil.copytree(checkpoints["qwen2"], tmp_path / "model"))
    edit_config(folder, layer_types=..., sliding_window=...)
    edit_config(folder, num_hidden_layers=4, use_sliding_window=True, max_window_layers=2)
    assert parsed(folder).windows == (None, None, 4096, 4096)


OF_ONE_ARCHITECTURE = [
    ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 5}, "5 experts a token of 4"),
    ("qwen3_moe", {"num_experts": 16, "num_local_experts": 8}, "which differ"),
    ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step 0"),
    ("qwen3_moe", {"mlp_only_layers": [0.5]}, "mlp_only_layers [0.5]"),
    ("qwen3_moe", {"layer_types": ["full_attention"] * 3}, "layer_types"),
    ("smollm3", {"no_rope_layers": [1, 2, 1]}, "no_rope_layers [1, 2, 1]"),
    ("smollm3", {"no_rope_layers": [1]}, "1 no_rope_layers for 3 layers"),
    ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval 0"),
    ("smollm3", {"layer_types": ["sliding_attention"] * 3}, "no sliding window in use"),
    ("smollm3", {"pad_token_id": 211}, "pad_token_id 211"),
    ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma3_text", {"hidden_activation": "gelu"}, "hidden_activation gelu_pytorch_tanh"),
    ("gemma3_text", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar 0"),
    ("gemma3_text", {"sliding_window": None}, "no sliding window in use"),
    ("gemma3_text", {"rope_parameters": {"rope_theta": 1e6}}, "full_attention"),
    (
        "gemma3_text",
        {"sliding_window_pattern": 2, "layer_types": ["full_attention"] * 3},
        "sliding_window_pattern",
    ),
]


@pytest.mark.parametrize(("name", "changes", "said"), OF_ONE_ARCHITECTURE, ids=str)
def test_setting_of_one_architecture_is_refused(name, changes, said):
    with pytest.raises(ModelError) as caught:
        parse_config(TINY | {"model_type": name, "pad_token_id": None} | changes, "config.json")
    assert said in caught.value.message
    elsewhere = "final_logit_softcapping" in changes  # where transformers has one meaning of it
    assert ("--engine transformers" in (caught.value.hint or "")) is elsewhere


@pytest.mark.parametrize("name", ["qwen2", "llama", "mistral", "qwen3", "olmo2", "smollm3"])
def test_defaults_are_those_of_transformers(name, tmp_path):
    required = TINY | {"model_type": name, "num_attention_heads": 32, "hidden_size": 512}
    required["pad_token_id"] = None  # some defaults are beyond a small vocabulary
    del required["num_key_value_heads"]
    (tmp_path / "config.json").write_text(json.dumps(required))
    ours, theirs = parsed(tmp_path), AutoConfig.from_pretrained(tmp_path)
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.tied == theirs.tie_word_embeddings
    assert ours.n_kv_heads == theirs.num_key_value_heads
    assert ours.rope.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.windows == (getattr(theirs, "sliding_window", None),) * 3
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 512 // 32)
