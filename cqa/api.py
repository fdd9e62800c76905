"""The Python interface: what `import cqa` offers. `docs/api.md` shows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cqa.config import read_keywords
from cqa.errors import ConfigError
from cqa.schema.events import ScoreEvent, TrainEvent

if TYPE_CHECKING:
    import pandas

    from cqa.model.load import Device, Dtype
    from cqa.score.config import EngineName
    from cqa.score.resident import Model
    from cqa.score.run import ScoreResult
    from cqa.train.loop import TrainResult


def load(
    model: str | Path,
    adapter: str | Path | None = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    *,
    null_token: str | None = None,
    template: str = "plain",
    allow_special: bool = False,
    engine: EngineName = "cqa",
) -> Model:
    """Load a base model and, if one is named, an adapter.

    Args:
        model: A folder in Hugging Face format, or a hub id.
        adapter: A folder in PEFT format; None is the base.
        device: auto (CUDA if a GPU is there), cpu or cuda.
        dtype: auto (bf16 on CUDA, fp32 on a CPU), fp32 or bf16.
        null_token: Token that stands for no context; None is BOS, else <|endoftext|>, else EOS.
        template: plain, chat (the tokenizer's template) or a Jinja file.
        allow_special: Take control tokens that are written in a text as such.
        engine: cqa, or transformers for architectures that cqa lacks; see `score --engine`.

    Raises:
        ConfigError: A setting has no such value.
        ModelError: Model, tokenizer and adapter do not fit together, or are not supported.
        ResourceError: There is not enough memory.
    """
    from cqa.score.resident import Model

    return Model(
        model,
        adapter,
        device=device,
        dtype=dtype,
        null_token=null_token,
        template=template,
        allow_special=allow_special,
        engine=engine,
    )


def read_scores(folder: str | Path) -> pandas.DataFrame:
    """Return a folder of scores as a tidy table: a row for each item, adapter and option.

    Its columns are those of the report's `tables/scores_long.csv`; the base is called `base`. What
    does not exist (dI of a continuation, ddI of the base) is NaN or None.

    Args:
        folder: What `cqa-fast score` wrote.

    Raises:
        DataError: A file is missing or damaged.
        ConfigError: pandas is not installed.
    """
    from cqa.report.long_table import LongRow, long_rows
    from cqa.report.source import read_source

    try:
        import pandas
    except ImportError:
        raise ConfigError(
            "expected pandas for a DataFrame, got none", hint="pip install 'cqa-fast[pandas]'"
        ) from None
    rows = long_rows(read_source(Path(folder)))
    return pandas.DataFrame.from_records(list(rows), columns=LongRow._fields)


def train(
    *,
    preset: str | None = None,
    resume: bool = False,
    on_event: Callable[[TrainEvent], None] = lambda _: None,
    **settings: Any,
) -> TrainResult:
    """Fine-tune a LoRA, as `cqa-fast train` does.

    Args:
        preset: Named settings to start from, such as paper; what `settings` says wins.
        resume: Continue the run in `out` from its last state, with its settings.
        on_event: Called with every event; see `cqa.schema.events`.
        settings: Those of the command, with underscores: model, data, out, epochs, lr …

    Returns:
        The run's folder, its number of steps, and the names of its epochs.

    Raises:
        CqaError: Anything that the user can mend; see `cqa.errors`.
    """
    from cqa.study.config import CallbackTrainConfig
    from cqa.study.in_loop_eval import train_with_callbacks
    from cqa.train.config import PRESETS
    from cqa.train.earlier import taken_over

    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"expected preset to be {' | '.join(PRESETS)}, got: {preset}")
    chosen = PRESETS[preset] if preset is not None else {}
    under = taken_over(CallbackTrainConfig, {"resume": resume, **chosen, **settings})
    config = read_keywords(CallbackTrainConfig, under, chosen, settings)
    return train_with_callbacks(config, resume=resume, on_event=on_event)


def score(
    *, on_event: Callable[[ScoreEvent], None] = lambda _: None, **settings: Any
) -> ScoreResult | None:
    """Score files of items under a base and its adapters, as `cqa-fast score` does.

    Args:
        on_event: Called with what happens; see `cqa.schema.events`.
        settings: Those of the command, with underscores: model, run, epochs, pairs, out …

    Returns:
        The counts, and the statistics as summary.json holds them (`to_json()`); None with
        shard_base on all processes but the first.

    Raises:
        CqaError: Anything that the user can mend; see `cqa.errors`.
    """
    from cqa.score.anywhere import score_anywhere
    from cqa.score.config import ScoreConfig

    return score_anywhere(read_keywords(ScoreConfig, settings), on_event=on_event)


def report(scores: str | Path, **settings: Any) -> list[Path]:
    """Write a report on a folder of scores, as `cqa-fast report` does.

    Args:
        scores: What `score` wrote.
        settings: Those of the command, with underscores: out, run, cutoff, margin …

    Returns:
        The paths of all files, the page first.

    Raises:
        CqaError: Anything that the user can mend; see `cqa.errors`.
    """
    from cqa.report.config import ReportConfig
    from cqa.report.write import write_report

    return write_report(Path(scores), read_keywords(ReportConfig, settings)).files
