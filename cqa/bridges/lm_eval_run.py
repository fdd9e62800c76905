"""`cqa-fast lm-eval`: tasks of lm-eval under a base or an adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from cqa.bridges.config import LmEvalConfig
from cqa.config import input_paths
from cqa.errors import ConfigError, CqaError, DataError
from cqa.files import reported, write_json
from cqa.output_folder import check_output_file
from cqa.text import named

T = TypeVar("T")


def evaluate(config: LmEvalConfig) -> dict[str, Any]:
    """Evaluate tasks; return lm-eval's own results, without the samples.

    Raises:
        ConfigError: lm-eval is not installed, or a task is unknown or generates text.
        DataError: A task's data cannot be read.
        CqaError: As scoring raises it.
    """
    if config.out is not None:
        check_output_file(config.out, ["results", "versions"], input_paths(config))
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import handle_non_serializable
    except ImportError:
        raise ConfigError(
            "expected lm-eval, got none", hint="pip install 'cqa-fast[lm-eval]'"
        ) from None
    from cqa.bridges.lm_eval import CqaLM

    include = str(config.include_path) if config.include_path else None
    if config.include_path is not None and not config.include_path.is_dir():
        raise ConfigError("expected a folder of task files, got none", where=include)
    tasks = _told(lambda: TaskManager(include_path=include), "task files", DataError)
    unknown = [name for name in config.tasks if not tasks.match_tasks([name])]
    if unknown:
        raise ConfigError(
            f"expected tasks that lm-eval knows, got: {unknown[0]}",
            hint="lm-eval ls tasks lists them; --include-path names a folder of others",
        )
    lm = CqaLM(
        config.model,
        config.adapter,
        batch_tokens=config.batch_tokens,
        device=config.device,
        dtype=config.dtype,
    )
    found = _told(
        lambda: lm_eval.simple_evaluate(
            model=lm,
            tasks=list(config.tasks),
            num_fewshot=config.num_fewshot,
            limit=config.limit,
            task_manager=tasks,
            log_samples=False,
        ),
        "tasks that can be evaluated",
        DataError,
    )
    text = json.dumps(found, default=handle_non_serializable)
    results: dict[str, Any] = json.loads(text, parse_constant=lambda _: None)  # JSON has no NaN
    if config.out is not None:
        with reported(config.out):
            config.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(config.out, results)
    return results


def results_text(results: dict[str, Any]) -> str:
    """Return lm-eval's own table of results; a task's name is on the one line of its row."""
    from lm_eval.utils import make_table

    def shown(tasks: dict[str, Any]) -> dict[str, Any]:
        return {
            task: row | {"alias": named(str(row.get("alias", task)))} for task, row in tasks.items()
        }

    return str(make_table(results | {"results": shown(results["results"])})).strip()


def _told(work: Callable[[], T], expected: str, kind: type[CqaError]) -> T:
    """Do the work; what lm-eval raises, which may be anything, becomes one message."""
    try:
        return work()
    except (CqaError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise kind(f"expected {expected}, got {type(error).__name__}: {reason:.300}") from error
