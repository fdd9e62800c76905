"""Whom a folder's study was ever asked: the tests correct for all of them.

It is written before anything is computed, so that neither a study that was stopped nor a result
that was removed makes an adapter forgotten that somebody has looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cqa.errors import ConfigError, ModelError
from cqa.files import inside, read_json, write_json
from cqa.schema.claims import StudyModels, StudyResult
from cqa.schema.meta import ScoredModel

ASKED, RESULT = "asked.json", "study.json"
_OWN_FOLDER = ("model", "tokenizer", "template")  # of another, rows are another study's


def check_same_study(out: Path, study: str) -> None:
    """Refuse the folder of another study, whose result would be replaced.

    Raises:
        ConfigError: It is.
        DataError: What the folder holds cannot be read.
    """
    held = _held(out)
    if held is not None and held.study != study:
        raise ConfigError(
            f"expected a new folder or one of study {study}, got one of study {held.study:.40}",
            where=str(out), hint="name another --out",
        )  # fmt: skip


def check_same_base(out: Path, base: ScoredModel) -> None:
    """Refuse the folder of another base, tokenizer or template.

    Raises:
        DataError: What the folder holds cannot be read.
        ModelError: It is.
    """
    held = _held(out)
    for asked in held.models[:1] if held is not None else ():
        other = [name for name in _OWN_FOLDER if getattr(asked, name) != getattr(base, name)]
        if other:
            raise ModelError(
                f"expected the {other[0]} that this folder's study was begun with, got another",
                where=str(out), hint="name another --out",
            )  # fmt: skip


def remembered(out: Path, study: str, models: Sequence[ScoredModel]) -> list[ScoredModel]:
    """Write down whom a command asks beside those before, and return those before.

    Those are of the same base, code and device, under other names.
    """
    keys = {model.model_key for model in models}
    names = {model.adapter for model in models}
    held = _held(out)
    earlier = [
        model
        for model in (held.models if held is not None else ())
        if model.model_key not in keys
        and model.adapter not in names
        and not model.differs_from(models[0])
    ]
    asked = StudyModels(study=study, models=(*models, *earlier))
    write_json(inside(out, ASKED), asked.to_json())
    return earlier


def _held(out: Path) -> StudyModels | None:
    path = inside(out, ASKED)
    if path.exists():
        return StudyModels.from_json(read_json(path), str(path))
    path = inside(out, RESULT)  # of a version that wrote nothing else
    if not path.exists():
        return None
    result = StudyResult.from_json(read_json(path), str(path))
    return StudyModels(study=result.study, models=result.models)
