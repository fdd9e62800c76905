"""Any causal language model as transformers computes it, with adapters as PEFT applies them.

One text at a time, so there is no padding. No code of a model's folder is run and no pickle is
read. What transformers would only warn of, weights that are missing and so left at random values,
is refused here.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cqa.errors import ModelError
from cqa.model.adapter_files import CONFIG as ADAPTER_CONFIG
from cqa.model.adapter_files import WEIGHTS as ADAPTER_WEIGHTS
from cqa.model.checkpoint import tensor_files
from cqa.model.digest import digest_files
from cqa.model.memory import ran_out
from cqa.model.peft_config import INITS
from cqa.reading import read_object

UNLIMITED = 2**31 - 1  # positions of a model that counts none, such as a state-space model
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")


@contextmanager
def _one_message(expected: str, where: Path) -> Iterator[None]:
    """Turn what transformers and PEFT raise into one `ModelError`, and silence what they print."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        if isinstance(error, ModelError) or ran_out(error):
            raise
        lines = str(error).strip().splitlines()
        reason = lines[0][:200] if lines else type(error).__name__
        raise ModelError(f"expected {expected}, got: {reason}", where=str(where)) from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


class HuggingFaceModel:
    """A base model in transformers, with one adapter at a time or none.

    Attributes:
        vocab_size: How many token ids it has.
        max_positions: Most tokens of a text.
        digest: sha256 over config.json and the safetensors files, as for our own decoder.
    """

    def __init__(self, folder: Path) -> None:
        """Read the config alone.

        Raises:
            ModelError: Files are missing or malformed, or need code of the folder's own.
        """
        from transformers import AutoConfig

        raw = read_object(folder / "config.json", ModelError)
        if raw is None:
            message = "expected a model folder with config.json, got none"
            raise ModelError(message, where=str(folder))
        where = folder / "config.json"
        if raw.get("quantization_config") is not None:
            raise ModelError("expected plain weights, got a quantised checkpoint", where=str(where))
        if (folder / ADAPTER_CONFIG).exists():
            raise ModelError(
                f"expected a base model alone, got {ADAPTER_CONFIG} beside its config.json",
                where=str(folder),
                hint="give base and adapter a folder each",
            )
        self._folder = folder
        self._files = tensor_files(folder, raw.get("transformers_weights"))
        with _one_message("a model that transformers loads without code of its own", where):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            text = config.get_text_config()
            self.vocab_size = int(text.vocab_size)
        given = [n for key in POSITIONS if isinstance(n := getattr(text, key, None), int) and n > 0]
        self.max_positions = min(given, default=UNLIMITED)
        self.digest = ""
        self._base: Any = None
        self._adapted: Any = None  # the base within PEFT's model, while one is attached
        self._adapter: Path | None = None
        self._in_use = False
        self._keeps = False  # whether it can leave out logits that are not asked for

    def open(self, device: torch.device, dtype: torch.dtype) -> None:
        """Load the weights.

        Raises:
            ModelError: They do not fit the config, or no class of transformers takes them.
        """
        from transformers import AutoModelForCausalLM

        with _one_message("a causal language model of transformers", self._folder):
            model, found = AutoModelForCausalLM.from_pretrained(
                self._folder,
                dtype=dtype,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
        for problem in ("missing_keys", "mismatched_keys"):
            if found.get(problem):
                name = sorted(map(str, found[problem]))[0]
                raise ModelError(
                    f"expected weights that are all of this architecture, got "
                    f"{problem.removesuffix('_keys')} ones: {name:.200}",
                    where=str(self._folder),
                )
        self._base = model.to(device).eval()
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.digest = digest_files([self._folder / "config.json", *set(self._files.values())])

    def use(self, adapter: Path | None) -> None:
        """Compute with an adapter from here on, or with the base.

        Raises:
            ModelError: PEFT does not read it, it does not fit this base, or would change it.
        """
        self._in_use = adapter is not None
        if adapter is None or adapter == self._adapter:
            return
        if self._adapted is not None:
            self._base, self._adapted, self._adapter = self._adapted.unload(), None, None
        self._adapted = self._attach(adapter)
        self._adapter = adapter

    def _attach(self, folder: Path) -> Any:
        """Return the base within PEFT's model, every tensor of the adapter in its place."""
        from peft import PeftConfig, PeftModel

        if not (folder / ADAPTER_CONFIG).exists() or not (folder / ADAPTER_WEIGHTS).exists():
            raise ModelError(
                f"expected an adapter with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, got none",
                where=str(folder),
                hint="pickles (adapter_model.bin) are not read",
            )
        with _one_message("an adapter that PEFT puts on this base", folder):
            config = PeftConfig.from_pretrained(folder)
            if config.is_prompt_learning or getattr(config, "init_lora_weights", True) not in INITS:
                raise ModelError(
                    "expected an adapter that leaves the base and its input as they are, got: "
                    f"{config.peft_type.value}, "
                    f"init_lora_weights {getattr(config, 'init_lora_weights', None)!r:.40}",
                    where=str(folder),
                )
            config.inference_mode = True
            model = PeftModel(self._base, config)
            found = model.load_adapter(str(folder), "default")
        for problem in ("missing", "unexpected"):
            if names := getattr(found, f"{problem}_keys"):
                raise ModelError(
                    f"expected the adapter's tensors alone and whole, got {problem} ones: "
                    f"{sorted(names)[0]:.200}",
                    where=str(folder),
                    hint="the adapter was probably made for another base model",
                )
        return model.eval()

    @torch.no_grad()
    def logits(self, ids: Sequence[int], n_last: int) -> Tensor:
        """Return the logits that predict the last tokens of a text.

        Args:
            ids: The text, without padding.
            n_last: How many of its last tokens; at least one comes before them.

        Returns:
            Shape (n_last, V), in fp32 or wider.
        """
        chosen = {"logits_to_keep": n_last + 1} if self._keeps else {}
        given = torch.tensor([list(ids)], device=self._base.device)
        if self._adapted is None or self._in_use:
            out = (self._adapted or self._base)(input_ids=given, use_cache=False, **chosen)
        else:
            with self._adapted.disable_adapter():
                out = self._adapted(input_ids=given, use_cache=False, **chosen)
        rows: Tensor = out.logits[0, -n_last - 1 : -1]
        return rows.to(torch.promote_types(rows.dtype, torch.float32))
