"""score --engine transformers: the same rows for what transformers alone computes."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from helpers import read_lines, tiny_model, tiny_run, write_lines
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import cqa
from cqa.data.tokenizer import Tokenizer
from cqa.errors import ConfigError, ModelError
from cqa.report.config import ReportConfig
from cqa.report.write import write_report
from cqa.score.config import ScoreConfig
from cqa.score.run import score

IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, "vocab_size": 304}
OTHERS = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "n_inner": 32},
    "gpt_neox": {"intermediate_size": 32, "hidden_size": 16, "num_attention_heads": 2,
                 "num_hidden_layers": 2, "max_position_embeddings": 64},
    "phi": {"intermediate_size": 32, "hidden_size": 16, "num_attention_heads": 2,
            "num_hidden_layers": 2, "max_position_embeddings": 64},
    "mamba": {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "conv_kernel": 3},
    "gemma2": {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2,
               "num_key_value_heads": 1, "head_dim": 8, "num_hidden_layers": 2,
               "attn_logit_softcapping": 0.5, "final_logit_softcapping": 2.0},
}  # fmt: skip
TARGETS = {"mamba": ["in_proj", "x_proj"]}  # PEFT refuses its other layers
PAIRS = [
    {"id": "p1", "context": "the lamp was lit", "good": " and she waited", "bad": " by the door"},
    {"id": "p2", "context": "she waited", "good": " by the door", "bad": " by the lamp was"},
]
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"
)


@pytest.fixture(scope="module")
def tokenizer_files(tmp_path_factory) -> list[Path]:
    return list(tiny_model(tmp_path_factory.mktemp("tokenizer")).glob("tokenizer*"))


def other_model(folder: Path, architecture: str, tokenizer_files: list[Path]) -> Path:
    """Write a random model that our decoder does not have."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(architecture, **{**IDS, **OTHERS[architecture]})
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    for path in tokenizer_files:
        shutil.copy(path, folder)
    return folder


def config_of(tmp_path: Path, model: Path, out: str = "scores", **changes) -> ScoreConfig:
    pairs = write_lines(tmp_path / "pairs.jsonl", PAIRS)
    settings = {"engine": "transformers", "device": "cpu", "tokens": True, **changes}
    return ScoreConfig(model=str(model), pairs=(pairs,), out=tmp_path / out, **settings)


def rows_by(config: ScoreConfig) -> dict[tuple[str, str | None], dict]:
    return {(row["id"], row["adapter"]): row for row in read_lines(config.out / "scores.jsonl")}


@torch.no_grad()
def naive(model, context: tuple[int, ...], option: tuple[int, ...]) -> list[float]:
    logp = model(torch.tensor([context + option])).logits[0].double().log_softmax(-1)
    return [float(logp[len(context) - 1 + i, t]) for i, t in enumerate(option)]


@pytest.mark.parametrize("architecture", OTHERS)
def test_scores_are_those_of_the_model_in_transformers(architecture, tokenizer_files, tmp_path):
    folder = other_model(tmp_path / "model", architecture, tokenizer_files)
    eager = {"attn_implementation": "eager"}  # the one that applies soft caps
    theirs = AutoModelForCausalLM.from_pretrained(folder, **eager).eval()
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder, **eager),
        LoraConfig(
            r=2, target_modules=TARGETS.get(architecture, "all-linear"), init_lora_weights=False
        ),
    ).eval()
    adapted.save_pretrained(tmp_path / "mine")
    config = config_of(tmp_path, folder, adapter=(tmp_path / "mine",))
    score(config)
    held, tokenizer = rows_by(config), Tokenizer(folder)
    assert len(held) == 4
    for (item, adapter), row in held.items():
        pair = next(p for p in PAIRS if p["id"] == item)
        context = tuple(tokenizer.hf.encode(pair["context"], add_special_tokens=False))
        for option in row["options"]:
            model = adapted if adapter else theirs
            expected = naive(model, context, tuple(option["token_ids"]))
            assert option["token_logp_given_context_nats"] == pytest.approx(expected, abs=1e-5)
            assert 0 < option["entropy_given_context_nats"] < 8 * math.log(304)
    n_lines = len(read_lines(config.out / "scores.jsonl"))
    score(config)
    assert len(read_lines(config.out / "scores.jsonl")) == n_lines  # nothing is computed again


def test_rows_of_both_engines_agree_and_are_told_apart(tmp_path):
    tiny_run(tmp_path)
    run = {"run": (tmp_path / "run",)}
    theirs = config_of(tmp_path, tmp_path / "model", **run)
    ours = config_of(tmp_path, tmp_path / "model", "ours", engine="cqa", **run)
    score(theirs), score(ours)
    held, expected = rows_by(theirs), rows_by(ours)
    assert held.keys() == expected.keys()
    for key, row in expected.items():
        for one, other in zip(held[key]["options"], row["options"], strict=True):
            for name, value in other.items():
                assert one[name] == (pytest.approx(value, abs=1e-4) if value else value), name
    for config, engine, invariant in ((theirs, "transformers", False), (ours, "cqa", True)):
        for model in json.loads((config.out / "meta.json").read_text())["models"]:
            assert (model["engine"], model["batch_invariant"]) == (engine, invariant)
            assert model["backend"].startswith("transformers ") != invariant
    files = write_report(theirs.out, ReportConfig(out=tmp_path / "report")).files
    page = files[0].read_text()
    assert "decoder: another batch, machine or release" in page
    with pytest.raises(ConfigError, match="expected the --engine whose scores this folder holds"):
        score(config_of(tmp_path, tmp_path / "model", "ours", **run))


def test_python_takes_the_same_engine(tmp_path):
    tiny_run(tmp_path)
    models = [
        cqa.load(tmp_path / "model", tmp_path / "run" / "epoch-02", device="cpu", engine=engine)
        for engine in ("cqa", "transformers")
    ]
    pair = PAIRS[0]["context"], PAIRS[0]["good"]
    for adapter in ({}, {"adapter": None}, {"adapter": tmp_path / "run" / "epoch-01"}):
        ours, theirs = (model.logprobs(*pair, **adapter) for model in models)
        assert theirs == pytest.approx(ours, abs=1e-5)
    assert models[1].score(PAIRS)[0].delta_i_nats == pytest.approx(
        models[0].score(PAIRS)[0].delta_i_nats, abs=1e-4
    )
    with pytest.raises(ConfigError, match="no decoder"):
        models[1].decoder  # noqa: B018


def test_an_architecture_that_we_lack_is_refused_with_the_flag_that_takes_it(
    tokenizer_files, tmp_path
):
    folder = other_model(tmp_path / "model", "gpt2", tokenizer_files)
    with pytest.raises(ModelError, match="'gpt2'") as caught:
        score(config_of(tmp_path, folder, engine="cqa"))
    assert "--engine transformers" in str(caught.value.hint)
    assert caught.value.exit_code == 4


def spoil_missing(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(name for name in tensors if "mlp" in name)]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def spoil_config(**changes):
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def spoil_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_missing, "missing"),
        (spoil_config(n_inner=40), "mismatched|size"),
        (spoil_config(model_type="own", auto_map={"AutoConfig": "x.Y"}), "without code of its own"),
        (spoil_config(quantization_config={"quant_method": "gptq"}), "quantised"),
        (spoil_config(model_type="vit"), "causal language model|without code|vocab_size"),
        (spoil_pickle, "pickle"),
    ],
    ids=["missing", "shape", "remote code", "quantised", "no text", "pickle"],
)
def test_folder_that_is_no_sound_model_is_refused(spoil, message, tokenizer_files, tmp_path):
    folder = other_model(tmp_path / "model", "gpt2", tokenizer_files)
    spoil(folder)
    config = config_of(tmp_path, folder)
    with pytest.raises(ModelError, match=message) as caught:
        score(config)
    assert caught.value.exit_code == 4
    assert not config.out.exists()


def test_adapter_that_is_not_this_base_s_is_refused(tokenizer_files, tmp_path):
    folder = other_model(tmp_path / "model", "gpt2", tokenizer_files)
    tiny_run(tmp_path / "other")
    config = config_of(tmp_path, folder, run=(tmp_path / "other" / "run",), other_base=True)
    with pytest.raises(ModelError, match="expected an adapter that PEFT puts on this base"):
        score(config)
