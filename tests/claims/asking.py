"""What the tests of studies share: the model, items, and an independent reading of a text."""

import warnings
from functools import cache
from pathlib import Path

import torch
from helpers import DEMO

MODEL = DEMO / "model"


@cache
def reference():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return (
        AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float64).eval(),
        AutoTokenizer.from_pretrained(MODEL),
    )


def reference_stats(context: str, text: str, adapter: Path | None = None) -> tuple[float, float]:
    """Return S(text | context) and its summed entropy by transformers and PEFT in float64."""
    model, tokenizer = reference()
    bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    before = tokenizer(context, add_special_tokens=False)["input_ids"]
    after = tokenizer(text, add_special_tokens=False)["input_ids"]
    if adapter is not None:
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for an old name
            model = PeftModel.from_pretrained(model, adapter).double()
    given = tokenizer(context)["input_ids"]
    before = given if given[:1] == bos else before
    with torch.no_grad():
        logits = model(torch.tensor([before + after])).logits[0]
    if adapter is not None:
        model.unload()
    law = logits[len(before) - 1 : -1].log_softmax(-1)
    logp = law[torch.arange(len(after)), torch.tensor(after)]
    return float(logp.sum()), float(-(law.exp() * law).sum())
