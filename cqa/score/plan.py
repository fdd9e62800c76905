"""An analysis plan: written before scoring, read by score, kept in meta.json by its digest."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cqa.data.jsonl import check_columns
from cqa.errors import ConfigError
from cqa.files import new_file, read_json
from cqa.schema.plan import READING, AnalysisPlan
from cqa.score.config import PlanConfig
from cqa.score.items import add_to_digest, paths_of, read_all
from cqa.stats.roles import choose_roles

SETTINGS = (  # of score that a plan fixes, by the same names
    "primary", "control", "null_token", "boundary", "score_eos", "template", "margin", "cutoff",
    "choose", "choose_on", "epochs",
)  # fmt: skip


def write_plan(config: PlanConfig) -> AnalysisPlan:
    """Write a plan to `config.out`; return it.

    Raises:
        ConfigError: The file is there already, or a group that is named is not.
        DataError: The items are malformed.
    """
    if os.path.lexists(config.out):
        raise ConfigError(
            "expected a new file, got one that is there", where=str(config.out),
            hint="a plan is not changed once it is written; name another --out",
        )  # fmt: skip
    total, counts, groups = hashlib.sha256(), Counter[str](), dict[str, None]()
    check_columns(paths_of(config), config.columns)
    for item in read_all(config):
        add_to_digest(total, item)
        counts[item.group] += 1
        if item.kind != "continuation":
            groups.setdefault(item.group)
    roles = choose_roles(groups, config)
    plan = AnalysisPlan(
        primary=roles.primary,
        control=roles.control,
        reading=READING,
        null_token=config.null_token,
        boundary=config.boundary,
        score_eos=config.score_eos,
        template=config.template,
        margin=config.margin,
        cutoff=config.cutoff,
        choose=config.choose,
        choose_on=None if config.choose_on is None else str(config.choose_on),
        epochs=config.epochs,
        adapters=config.adapters,
        n_items=dict(counts),
        items_digest=total.hexdigest(),
    )
    with new_file(config.out) as path:
        path.write_text(plan_json(plan), encoding="utf-8")
    return plan


def plan_json(plan: AnalysisPlan) -> str:
    """Return a plan as its file holds it."""
    import json

    return json.dumps(plan.to_json(), indent=2, ensure_ascii=False) + "\n"


def read_plan(path: Path) -> AnalysisPlan:
    """Read a plan.

    Raises:
        DataError: The file is missing, or is no plan.
        ConfigError: It asks for another reading of dI than the deciding tests have.
    """
    plan = AnalysisPlan.from_json(read_json(path), str(path))
    if plan.reading != READING:
        raise ConfigError(
            f"expected reading to be: {READING}, got: {plan.reading}", where=str(path)
        )
    return plan


def kept_plan(path: Path) -> dict[str, Any]:
    """Return a plan as meta.json keeps it, with the digest of its file."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"file_digest": digest, **read_plan(path).to_json()}


def planned_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the plan that is named among those given; they win over it."""
    path = given.get("plan")
    if path is None:
        return {}
    held = read_plan(Path(path)).to_json()
    settings = {key: held[key] for key in SETTINGS if held[key] not in (None, [], ())}
    if not given.get("run"):
        settings.pop("epochs", None)
    return settings
