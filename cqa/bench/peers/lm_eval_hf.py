"""The same sums with lm-eval's Hugging Face backend: one load for each model."""

from __future__ import annotations

from typing import Any

from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from cqa.assets import DEMO
from cqa.bench.peers.child import serve, settings
from cqa.bench.peers.hugging_face import base_model
from cqa.bench.shapes import BenchModel

bench_model = BenchModel.told(settings)
asked = [((None, None), context, option) for context, option in settings["pairs"]]
adapters = settings.get("adapters", ())


def load(adapter: str | None = None) -> Any:
    """Return a model."""
    if bench_model.model is None:  # ids are given, so its tokenizer is not asked for any
        tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
        model = base_model(bench_model)
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings["batch_size"])
    return HFLM(
        pretrained=bench_model.model, peft=adapter, device=bench_model.device,
        dtype=str(bench_model.dtype).removeprefix("torch."), batch_size=settings["batch_size"],
    )  # fmt: skip


def scores(lm: Any) -> list[float]:
    """Return log P(option | context) of every pair."""
    return [logp for logp, _ in lm._loglikelihood_tokens(asked, disable_tqdm=True)]


def with_loading() -> list[float]:
    """Score under the base and under each adapter."""
    return [value for adapter in (None, *adapters) for value in scores(load(adapter))]


if adapters:
    serve(with_loading)
else:
    loaded = load()
    serve(lambda: scores(loaded))
