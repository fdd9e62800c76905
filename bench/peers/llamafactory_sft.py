"""LLaMA-Factory's own trainer with the paper's recipe: one optimizer step a call.

Its environment is made by `make bench-peers`. Not every torch has a CPU build of torchaudio; text
needs none of it, so an empty module stands in where it is missing.
"""

import json
import sys
import types
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

# its environment has no cqa-fast: child.py is found as a file
sys.path.append(str(Path(__file__).parents[2] / "cqa" / "study" / "bench" / "peers"))
from child import answer, settings

if find_spec("torchaudio") is None:
    stand_in = types.ModuleType("torchaudio")
    stand_in.__spec__ = ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = stand_in

import time

from llamafactory.train.tuner import run_exp
from transformers import TrainerCallback


class Steps(TrainerCallback):
    """Waits for a line before each step; answers after it."""

    def on_step_begin(self, args, state, control, **_):
        """Wait for the call."""
        if state.global_step == 0:
            answer({"ready": True})
        if not sys.stdin.readline():
            sys.exit()
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        """Tell how long it took."""
        answer({"seconds": time.perf_counter() - self.started, "value": None})


folder = Path(settings["folder"])
records = [json.loads(line) for line in Path(settings["data"]).read_text("utf-8").splitlines()]
rows = [{"instruction": r["prompt"], "input": "", "output": r["response"]} for r in records]
(folder / "samples.json").write_text(json.dumps(rows), "utf-8")
(folder / "dataset_info.json").write_text('{"samples": {"file_name": "samples.json"}}', "utf-8")
run_exp(
    {
        "stage": "sft", "do_train": True, "finetuning_type": "lora",
        "model_name_or_path": settings["model"], "template": "empty",
        "dataset": "samples", "dataset_dir": str(folder), "output_dir": str(folder / "out"),
        "lora_rank": 32, "lora_alpha": 32, "use_rslora": True, "lora_dropout": 0.05,
        "lora_target": "all", "neftune_noise_alpha": 5, "cutoff_len": 1024,
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2,
        "learning_rate": 2e-4, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1,
        "num_train_epochs": 12, "save_strategy": "no", "report_to": "none", "use_cpu": True,
        "bf16": False, "fp16": False, "seed": 0,
    },
    callbacks=[Steps()],
)  # fmt: skip
