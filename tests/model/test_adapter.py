"""Adapters: ours in PEFT and PEFT's in ours, swapped without a trace, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import DEMO, read_lines, tiny_checkpoint
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from cqa.errors import ModelError
from cqa.kernels.token_logprobs import token_logprobs
from cqa.layout import pack_documents
from cqa.model.adapter import read_adapter, read_spec, write_adapter
from cqa.model.decoder import Decoder
from cqa.model.load import load_model
from cqa.model.lora import Adapter, LoraSpec, attach, widest
from cqa.model.projection import MODULES

pytestmark = pytest.mark.filterwarnings(  # PEFT asks transformers by an older name
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)

MODEL = DEMO / "model"
CPU = torch.device("cpu")
SPECS = {
    "rslora-all": LoraSpec(8, 16.0, True, MODULES),
    "plain-all": LoraSpec(8, 16.0, False, MODULES),
    "q-v": LoraSpec(3, 5.0, True, ("q", "v")),
    "o": LoraSpec(4, 8.0, False, ("o",)),
    "k-up": LoraSpec(5, 2.5, True, ("k", "up")),
    "gate-down": LoraSpec(1, 1.0, True, ("gate", "down")),
    "rank-32": LoraSpec(32, 32.0, True, MODULES),
}


def loaded(specs: list[LoraSpec], folder: Path = MODEL) -> Decoder:
    """A decoder with just the room that these adapters need."""
    columns = widest(specs) if specs else None
    return load_model(folder, device=CPU, dtype=torch.float32, rank_columns=columns).decoder


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return loaded([*SPECS.values()])


@pytest.fixture(scope="module")
def documents() -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    samples = read_lines(DEMO / "train.jsonl")[:3]
    return [
        tokenizer(s["prompt"] + s["response"]).input_ids[: 70 + 9 * i]
        for i, s in enumerate(samples)
    ]


def random_adapter(decoder: Decoder, spec: LoraSpec) -> Adapter:
    """An adapter far from zero, its own for each rank."""
    generator = torch.Generator().manual_seed(spec.rank)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.05

    weights = {}
    for projection in decoder.projections():
        for member in projection.members:
            if member.name in spec.targets:
                n = member.width
                a, b = normal(spec.rank, projection.columns.features), normal(n, spec.rank)
                weights[projection.layer, member.name] = (a, b)
    return Adapter(spec, weights)


@torch.no_grad()
def our_logprobs(decoder: Decoder, documents: list[list[int]]) -> Tensor:
    batch = pack_documents([(ids, [True] * len(ids)) for ids in documents])
    return token_logprobs(decoder.hidden(batch), decoder.head, batch.target)


@torch.no_grad()
def their_logprobs(model: torch.nn.Module, documents: list[list[int]]) -> Tensor:
    parts = []
    for ids in map(torch.tensor, documents):
        logp = model(ids[None]).logits[0, :-1].log_softmax(-1)
        parts.append(logp.gather(1, ids[1:, None]).squeeze(1))
    return torch.cat(parts)


def hf_base(folder: Path = MODEL) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def write(folder: Path, adapter: Adapter) -> Path:
    folder.mkdir(exist_ok=True)
    write_adapter(folder, adapter.spec, adapter.weights, "some/base", 0.05)
    return folder


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_peft_gives_the_log_probs_that_we_give(decoder, documents, spec, tmp_path):
    adapter = random_adapter(decoder, spec)
    attach(decoder, adapter)
    ours = our_logprobs(decoder, documents)
    base = hf_base()
    plain = their_logprobs(base, documents)
    theirs = their_logprobs(
        PeftModel.from_pretrained(base, str(write(tmp_path, adapter))).eval(), documents
    )
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
    assert (theirs - plain).abs().max() > 0.05


@pytest.mark.parametrize("spec", [SPECS["rslora-all"], SPECS["q-v"]], ids=["all", "q-v"])
def test_adapter_written_and_read_is_the_same(decoder, spec, tmp_path):
    adapter = random_adapter(decoder, spec)
    again = read_adapter(write(tmp_path, adapter), decoder)
    assert again.spec == spec
    assert again.weights.keys() == adapter.weights.keys()
    for key, pair in adapter.weights.items():
        assert all(map(torch.equal, again.weights[key], pair))


PEFT_CONFIGS = {
    "list": {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 8},
    "rslora": {"target_modules": ["down_proj", "o_proj", "k_proj"], "r": 3, "use_rslora": True},
    "all-linear": {"target_modules": "all-linear", "r": 2, "lora_alpha": 3},
    "gaussian": {"target_modules": ["up_proj"], "r": 2, "init_lora_weights": "gaussian"},
}


def save_with_peft(folder: Path, base: torch.nn.Module, **settings) -> PeftModel:
    """Save an adapter made by PEFT alone, its B random instead of zero."""
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(str(folder))
    return model


@pytest.mark.parametrize("settings", PEFT_CONFIGS.values(), ids=PEFT_CONFIGS)
def test_we_give_the_log_probs_of_an_adapter_saved_by_peft(decoder, documents, settings, tmp_path):
    model = save_with_peft(tmp_path, hf_base(), **settings)
    attach(decoder, read_adapter(tmp_path, decoder))
    theirs = their_logprobs(model, documents)
    torch.testing.assert_close(our_logprobs(decoder, documents), theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_adapter_of_peft_that_was_split_off_its_base_is_refused(decoder, init, tmp_path):
    save_with_peft(tmp_path, hf_base(), target_modules=["q_proj"], r=4, init_lora_weights=init)
    with pytest.raises(ModelError, match=f"init_lora_weights.*'{init}'"):
        read_adapter(tmp_path, decoder)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "olmo2", "gemma3_text"])
def test_adapters_of_peft_fit_other_architectures(architecture, tmp_path):
    folder = tiny_checkpoint(tmp_path / "base", architecture)
    model = save_with_peft(tmp_path / "adapter", hf_base(folder), target_modules="all-linear", r=4)
    spec = read_spec(tmp_path / "adapter")
    decoder = loaded([spec], folder)
    attach(decoder, read_adapter(tmp_path / "adapter", decoder))
    ids = [list(range(3, 60)), list(range(100, 200, 3))]
    torch.testing.assert_close(
        our_logprobs(decoder, ids), their_logprobs(model, ids), atol=5e-5, rtol=0
    )


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_swapped_adapter_scores_as_in_a_decoder_that_held_no_other(decoder, documents, spec):
    alone = loaded([spec])
    attach(alone, random_adapter(alone, spec))
    expected = our_logprobs(alone, documents)
    for other in SPECS.values():
        attach(decoder, random_adapter(decoder, other))
    attach(decoder, random_adapter(decoder, spec))
    assert torch.equal(our_logprobs(decoder, documents), expected)


def test_detached_decoder_scores_as_one_loaded_without_room_for_adapters(decoder, documents):
    attach(decoder, random_adapter(decoder, SPECS["rank-32"]))
    adapted = our_logprobs(decoder, documents)
    decoder.detach_adapter()
    base = our_logprobs(decoder, documents)
    assert torch.equal(base, our_logprobs(loaded([]), documents))
    assert not torch.equal(base, adapted)


def test_room_is_that_of_the_widest_adapter_of_each_module():
    specs = [SPECS["q-v"], SPECS["gate-down"], LoraSpec(9, 9.0, False, ("v", "o"))]
    expected = {"q": 3, "k": 0, "v": 9, "o": 9, "gate": 1, "up": 0, "down": 1}
    assert widest(specs) == expected


@pytest.mark.parametrize(
    ("rslora", "scaling"), [(True, 32 / 32**0.5), (False, 1.0)], ids=["rslora", "plain"]
)
def test_scaling_divides_alpha_by_the_rank_or_its_root(rslora, scaling):
    assert LoraSpec(32, 32.0, rslora, MODULES).scaling == scaling


@pytest.fixture
def folder(decoder, tmp_path) -> Path:
    """A sound adapter folder, to be spoilt."""
    return write(tmp_path / "adapter", random_adapter(decoder, SPECS["rslora-all"]))


LAYER_3 = "base_model.model.model.layers.3.self_attn.k_proj"
LAYER_9 = "base_model.model.model.layers.9.mlp.up_proj"


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def drop_key(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{LAYER_3}.lora_B.weight"]


def add_key(tensors: dict[str, Tensor]) -> None:
    tensors[f"{LAYER_9}.lora_A.weight"] = torch.ones(8, 192)


def reshape(tensors: dict[str, Tensor]) -> None:
    tensors[f"{LAYER_3}.lora_A.weight"] = torch.ones(8, 896)


def zero_b(tensors: dict[str, Tensor]) -> None:
    for name in tensors:
        if "lora_B" in name:
            tensors[name].zero_()


def put_nan(tensors: dict[str, Tensor]) -> None:
    tensors[f"{LAYER_3}.lora_A.weight"][2, 5] = float("nan")


def put_inf(tensors: dict[str, Tensor]) -> None:
    tensors[f"{LAYER_3}.lora_B.weight"][1, 0] = float("inf")


def put_integers(tensors: dict[str, Tensor]) -> None:
    tensors[f"{LAYER_3}.lora_B.weight"] = torch.ones(64, 8, dtype=torch.int32)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop_key, "expected model.layers.3.self_attn.k_proj.lora_B, got none"),
        (add_key, f"expected {LAYER_9[17:]}.lora_B, got none"),
        (
            reshape,
            rf"{LAYER_3}.lora_A.weight of shape \(8, 192\), got: \(8, 896\)\nhint: .* another",
        ),
        (zero_b, "B is all zero"),
        (put_nan, f"expected finite floats in {LAYER_3}.lora_A"),
        (put_inf, f"expected finite floats in {LAYER_3}.lora_B"),
        (
            put_integers,
            rf"expected {LAYER_3}.lora_B.weight as a matrix of floats, got: I32 \(64, 8\)",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_tensors_that_do_not_fit_are_refused(decoder, folder, edit, message):
    edit_tensors(folder, edit)
    with pytest.raises(ModelError, match=message) as caught:
        read_adapter(folder, decoder)
    assert caught.value.exit_code == 4
    assert caught.value.where == str(folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "LoRA of the projections alone, got use_dora: True"),
        ({"modules_to_save": ["norm"]}, "LoRA of the projections alone, got modules_to_save: norm"),
        ({"modules_to_save": ["lm_head"]}, "expected lm_head as modules_to_save says, got none"),
        (
            {"rank_pattern": {"q_proj": 4}},
            r"q_proj.lora_A.weight and its B of rank 4 as .*\(8, 192\)",
        ),
        ({"rank_pattern": {"q_proj(": 4}}, "a consistent config, got: .*unterminated"),
        ({"alpha_pattern": {"q_proj": 0}}, "a consistent config, got: q_proj 0"),
        ({"layers_to_transform": [0]}, r"expected no tensor .*layers.1.self_attn.q_proj.lora_A"),
        ({"layers_to_transform": "0"}, "layers_to_transform '0'"),
        ({"lora_bias": True}, "LoRA of the projections alone, got lora_bias: True"),
        ({"trainable_token_indices": [1]}, "alone, got trainable_token_indices"),
        ({"use_qalora": True}, "LoRA of the projections alone, got use_qalora: True"),
        ({"bias": "all"}, "expected bias none, got: 'all'"),
        ({"peft_type": "IA3"}, "expected peft_type LORA, got: 'IA3'"),
        ({"task_type": "SEQ_CLS"}, "expected task_type CAUSAL_LM, got: 'SEQ_CLS'"),
        ({"target_modules": r".*\.(q|v)_proj"}, "expected no tensor .*k_proj.lora_A.weight: adapt"),
        ({"target_modules": r".*\.(q|v_proj"}, "a consistent config, got: .*unterminated"),
        ({"target_modules": ["q_proj", "lm_head"]}, "got target_modules with lm_head"),
        ({"target_modules": []}, "expected `target_modules`, got none"),
        ({"target_modules": [["q_proj"]]}, "a consistent config, got: target_modules"),
        ({"r": 0}, "a consistent config, got: r 0"),
        ({"r": 10**19}, "a consistent config, got: r 10000000000000000000, more than 100,000"),
        ({"r": True}, "a consistent config, got: r True"),
        ({"lora_alpha": "16"}, "a consistent config, got: lora_alpha '16'"),
        ({"lora_alpha": float("nan")}, "a consistent config, got: lora_alpha nan"),
        ({"lora_alpha": float("inf")}, "a consistent config, got: lora_alpha inf"),
        ({"lora_alpha": 10**400}, "a consistent config, got: lora_alpha 1000"),
        ({"lora_alpha": 0}, "a consistent config, got: lora_alpha 0"),
        ({"use_rslora": "false"}, "a consistent config, got: use_rslora 'false'"),
        ({"r": 4}, r"lora_A.weight and its B of rank 4 as .* got: \(8, 512\) and \(192, 8\)"),
        ({"target_modules": ["q_proj"]}, "expected no tensor base_model"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_adapters_that_are_more_than_plain_lora_are_refused(decoder, folder, changes, message):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ModelError, match=message):
        read_adapter(folder, decoder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 100_000], ids=["empty", "torn", "array", "deep"]
)
def test_config_that_is_no_json_object_is_refused(decoder, folder, text):
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(ModelError, match="expected a JSON "):
        read_adapter(folder, decoder)


def test_folder_without_config_is_refused(decoder, folder):
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match=r"with adapter_config.json, got none") as caught:
        read_adapter(folder, decoder)
    assert (caught.value.where, caught.value.hint) == (str(folder), None)


def test_folder_of_adapters_is_told_from_one(decoder, folder):
    with pytest.raises(ModelError, match=f"got none\nhint: it holds adapters, such as {folder}"):
        read_adapter(folder.parent, decoder)


def test_pickled_weights_are_not_read(decoder, folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(
        ModelError, match=r"expected adapter_model.safetensors, got none\nhint: pickle"
    ):
        read_adapter(folder, decoder)


def test_torn_weights_are_refused(decoder, folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="expected a safetensors file"):
        read_adapter(folder, decoder)


def test_adapter_made_for_another_base_is_refused(decoder, tmp_path):
    folder = tiny_checkpoint(tmp_path / "base", "qwen2")
    save_with_peft(tmp_path / "adapter", hf_base(folder), target_modules=["q_proj"])
    with pytest.raises(ModelError, match="made for another base model"):
        read_adapter(tmp_path / "adapter", decoder)
