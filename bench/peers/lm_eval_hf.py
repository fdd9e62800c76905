"""The same sums with lm-eval's Hugging Face backend: one load for each model."""

from child import serve, settings
from lm_eval.models.huggingface import HFLM

requests = [((None, None), context, option) for context, option in settings["pairs"]]
adapters = settings.get("adapters", ())


def load(adapter: str | None = None) -> HFLM:
    """Return a model."""
    return HFLM(
        pretrained=settings["model"], peft=adapter, device="cpu", dtype="float32",
        batch_size=settings["batch_size"],
    )  # fmt: skip


def scores(lm: HFLM) -> list[float]:
    """Return log P(option | context) of every pair."""
    return [logp for logp, _ in lm._loglikelihood_tokens(requests, disable_tqdm=True)]


def with_loading() -> list[float]:
    """Score under the base and under each adapter."""
    return [value for adapter in (None, *adapters) for value in scores(load(adapter))]


if adapters:
    serve(with_loading)
else:
    loaded = load()
    serve(lambda: scores(loaded))
