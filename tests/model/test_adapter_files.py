"""Adapters as other programs leave them: read where the meaning is plain, or the cause named."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import tiny_checkpoint
from model.common import CPU, our_logprobs, their_logprobs
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from cqa.errors import ModelError
from cqa.model.adapter import adapter_folder, open_adapter, read_adapter, read_spec
from cqa.model.adapter_files import CONFIG
from cqa.model.load import load_model
from cqa.model.lora import attach, widest

pytestmark = pytest.mark.filterwarnings(  # PEFT asks transformers by an older name
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)

TEXT = [list(range(3, 60)), list(range(100, 200, 3))]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied model of three layers, so that a head saved by PEFT is the embedding."""
    folder = tmp_path_factory.mktemp("base")
    return tiny_checkpoint(folder, "llama", tie_word_embeddings=True)


def hugging_face(base: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def save_with_peft(base: Path, folder: Path, **settings) -> Tensor:
    """Save an adapter of PEFT with values everywhere; return its log-probabilities."""
    config = LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 6} | settings)
    model = get_peft_model(hugging_face(base), config).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 10
    model.save_pretrained(str(folder))
    return their_logprobs(model, TEXT)


def ours(base: Path, folder: Path) -> Tensor:
    columns = widest([read_spec(folder)])
    decoder = load_model(base, device=CPU, dtype=torch.float32, rank_columns=columns).decoder
    attach(decoder, read_adapter(folder, decoder))
    return our_logprobs(decoder, TEXT)


CONFIGS = {
    "expression": {"target_modules": r".*self_attn\.(q|v)_proj"},
    "full-paths": {"target_modules": ["model.layers.0.self_attn.q_proj", "layers.2.mlp.up_proj"]},
    "layers": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0, 2]},
    "one-layer": {"target_modules": ["q_proj"], "layers_to_transform": 1},
    "layers-pattern": {
        "target_modules": ["v_proj"], "layers_to_transform": [1], "layers_pattern": "layers",
    },
    "ranks": {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 7}},
    "ranks-by-layer": {
        "target_modules": ["q_proj", "k_proj"],
        "rank_pattern": {r"layers\.1\..*k_proj": 2, "q_proj": 9}, "use_rslora": True,
    },
    "alphas": {
        "target_modules": ["o_proj", "gate_proj", "up_proj"],
        "alpha_pattern": {"up_proj": 3.5, "^model.layers.0.mlp.gate_proj": 1},
    },
    "both": {
        "target_modules": "all-linear", "rank_pattern": {"mlp.*": 3}, "use_rslora": True,
        "alpha_pattern": {"self_attn.*": 11},
    },
    "excluded": {"target_modules": "all-linear", "exclude_modules": r".*layers\.0.*|lm_head"},
    "saved-head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("settings", CONFIGS.values(), ids=CONFIGS)
def test_modules_ranks_and_scalings_are_those_of_peft(base, settings, tmp_path):
    expected = save_with_peft(base, tmp_path, **settings)
    assert (ours(base, tmp_path) - expected).abs().max() < 2e-5
    assert (expected - their_logprobs(hugging_face(base), TEXT)).abs().max() > 0.01


@pytest.fixture
def folder(base, tmp_path) -> Path:
    """An adapter of PEFT to spoil; beside it, what it gives."""
    expected = save_with_peft(base, tmp_path / "adapter", target_modules=["q_proj", "up_proj"])
    save_file({"expected": expected}, tmp_path / "expected.safetensors")
    return tmp_path / "adapter"


def edit(folder: Path, change: Callable[[str, Tensor], tuple[str, Tensor] | None]) -> None:
    """Change, rename or drop each tensor."""
    path = folder / "adapter_model.safetensors"
    changed = [change(name, tensor) for name, tensor in load_file(path).items()]
    save_file(dict(pair for pair in changed if pair), path)


def rename(pattern: str, by: str) -> Callable[[str, Tensor], tuple[str, Tensor]]:
    return lambda name, tensor: (re.sub(pattern, by, name), tensor)


NAMES = {
    "compiled": (r"^base_model\.model\.", "base_model.model._orig_mod."),
    "compiled-layers": (r"layers\.(\d)\.", r"layers.\1._orig_mod."),
    "named": (r"(lora_[AB])\.", r"\1.default."),
    "without-prefix": (r"^base_model\.model\.", ""),
    "data-parallel": ("^", "module."),
    "fsdp": (r"layers\.(\d)\.", r"layers.\1._fsdp_wrapped_module."),
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_names_that_wrappers_leave_are_read(base, folder, names):
    edit(folder, rename(*names))
    expected = load_file(folder.parent / "expected.safetensors")["expected"]
    assert (ours(base, folder) - expected).abs().max() < 2e-5


@pytest.mark.parametrize("module", ["lm_head", "model.embed_tokens"])
def test_unchanged_table_that_was_saved_with_it_is_no_obstacle(base, folder, module):
    table = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path) | {f"base_model.model.{module}.weight": table}, path)
    theirs = their_logprobs(PeftModel.from_pretrained(hugging_face(base), str(folder)), TEXT)
    assert (ours(base, folder) - theirs).abs().max() < 2e-5
    save_file(load_file(path) | {f"base_model.model.{module}.weight": table + 0.1}, path)
    with pytest.raises(ModelError, match=f"got a trained one .*{module}.weight"):
        ours(base, folder)
    save_file(load_file(path) | {f"base_model.model.{module}.weight": table[:-1].clone()}, path)
    with pytest.raises(ModelError, match="another vocabulary"):
        ours(base, folder)


def test_saved_table_has_nothing_to_be_compared_with_where_the_base_is_spread(base, folder):
    table = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.lm_head.weight": table}, path)
    decoder = load_model(base, device=torch.device("cpu"), dtype=torch.float32).decoder
    decoder.table = decoder.head = decoder.table.to("meta")
    with pytest.raises(ModelError, match="expected an adapter without lm_head of its own with"):
        read_adapter(folder, decoder)


LAYER = "base_model.model.model.layers.1.self_attn.q_proj"
SPOILT = {
    "zero-3": (
        lambda name, t: (name, t[:0] if "up_proj" in name else t),
        "an empty tensor: saved by one process of a ZeRO-3 run",
    ),
    "flat-zero-3": (lambda name, t: (name, torch.zeros(0)), "ZeRO-3"),
    "two-adapters": (
        lambda name, t: (name.replace("lora_A", "lora_A.a").replace("lora_B", "lora_B.b"), t),
        "several: a, b",
    ),
    "magnitudes": (
        lambda name, t: (name.replace("lora_A.weight", "lora_magnitude_vector"), t),
        "got base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector",
    ),
    "head": (
        lambda name, t: (name.replace(LAYER[17:], "lm_head"), t),
        "got base_model.model.lm_head.lora_A.weight",
    ),
    "other-layers": (
        rename(r"layers\.2", "layers.5"),
        "expected the 3 layers of the base, got model.layers.5",
    ),
    "half": (lambda name, t: None if name.startswith(f"{LAYER}.lora_A") else (name, t), "lora_A"),
    "none": (lambda name, t: ("x", t), "got x"),
    "empty": (lambda name, t: None, "expected an adapter's tensors, got none"),
    "quantised": (
        lambda name, t: (name, t.to(torch.float8_e4m3fn)), "a matrix of floats, got: F8_E4M3",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "said"), SPOILT.values(), ids=SPOILT)
def test_cause_is_named(base, folder, change, said):
    edit(folder, change)
    with pytest.raises(ModelError) as caught:
        ours(base, folder)
    assert said in str(caught.value)
    assert caught.value.exit_code == 4


def test_tensor_under_two_names_is_refused_by_both(base, folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    twin = {name.replace("base_model.", "base_model._orig_mod."): tensors[name].clone()}
    save_file(tensors | twin, path)
    with pytest.raises(ModelError, match=r"expected each tensor once, got .*_orig_mod.* and"):
        ours(base, folder)


def test_adapter_in_a_folder_of_its_own_is_found(base, folder, tmp_path):
    outer = tmp_path / "outer"
    shutil.copytree(folder, outer / "default")
    assert adapter_folder(outer) == outer / "default"
    assert adapter_folder(folder) == folder
    assert adapter_folder(tmp_path / "none") == tmp_path / "none"
    shutil.copytree(folder, outer / "other")
    with pytest.raises(ModelError, match="got 2 in folders of their own: default, other"):
        adapter_folder(outer)


@pytest.mark.parametrize(
    ("key", "value"),
    [("auto_mapping", {"parent_library": "x"}), ("qalora_group_size", 16), ("fan_in_fan_out", True),
     ("peft_version", "0.30"), ("loftq_config", {"loftq_bits": 4}), ("unknown", None)],
)  # fmt: skip
def test_settings_without_effect_are_no_obstacle(base, folder, key, value):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    expected = load_file(folder.parent / "expected.safetensors")["expected"]
    assert (ours(base, folder) - expected).abs().max() < 2e-5


ENDLESS = r"(?:(?:\w+\.?)+)+!"


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ENDLESS},
        {"exclude_modules": ENDLESS},
        {"rank_pattern": {ENDLESS: 2}},
        {"layers_pattern": [ENDLESS], "layers_to_transform": [0]},
    ],
    ids=["targets", "excluded", "ranks", "layers"],
)
def test_expression_that_finds_no_end_is_refused(folder, monkeypatch, settings):
    monkeypatch.setattr("cqa.model.peft_config.SECONDS", 1.0)
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(ModelError, match=r"expected expressions that .* got no end after 1 sec"):
        open_adapter(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "a{99999999999}"},
        {"target_modules": "(" * 900 + ")" * 900},
        {"rank_pattern": {"(?i)q_proj": 2}},
        {"layers_pattern": ["("], "layers_to_transform": [0]},
    ],
    ids=["overflow", "depth", "flags", "list"],
)
def test_expression_that_cannot_be_used_is_refused(folder, settings):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(ModelError, match="expected a consistent config, got: "):
        open_adapter(folder)
