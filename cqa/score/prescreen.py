"""Where expert reasoning is worth most: decision points that a base does not yet get (§3.3.1).

    p        = softmax over a point's options of S(x|y)         what the model would choose
    value    = KL(P_expert || p), nats                          -ln p(right) if the expert is sure
    class    = internalised   p(right) reaches `high`
               wrong          p of a wrong option does
               flat           none does

The paper gives the three cases and the value; the number that "high probability" stands for is
ours, and a setting. A point may carry the expert's own distribution as `expert`, one probability
per option in file order; without it the expert is sure of the right one.
"""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from cqa.config import command_line, describe, given_settings, input_paths
from cqa.data.items import Item, read_items
from cqa.data.jsonl import check_columns, parse_object, raw_lines, take_id
from cqa.data.unique import Fingerprints, file_line_id
from cqa.errors import DataError
from cqa.files import discard, new_file, read_json, write_json
from cqa.interrupt import continued_by
from cqa.model.load import BaseModel
from cqa.output_folder import check_output
from cqa.schema.events import ScoreEvent
from cqa.schema.meta import Meta
from cqa.schema.prescreen import Point, PointClass, PrescreenSummary, RankedPoint
from cqa.schema.rows import ItemRow, OptionScore
from cqa.score.checked import Checked
from cqa.score.config import PrescreenConfig, ScoreConfig, Unit
from cqa.score.encoded import left_out_text
from cqa.score.run import score
from cqa.score_folder import META, SCORES, full_key, parse_row, placed_rows
from cqa.text import aligned, part_name

RANKED, SELECTED, SUMMARY = "prescreen.jsonl", "selected.jsonl", "prescreen.json"
CLASSES: tuple[PointClass, ...] = get_args(PointClass)
UNITS: dict[Unit, Callable[[OptionScore], int]] = {  # what a log-probability is divided by
    "sum": lambda option: 1,
    "token": lambda option: option.n_tokens,
    "byte": lambda option: option.n_bytes,
    "char": lambda option: option.n_chars,
}
SHOWN = 10


def prescreen(
    config: PrescreenConfig,
    *,
    base: BaseModel | None = None,
    checked: Checked | None = None,
    on_event: Callable[[ScoreEvent], None] = lambda _: None,
) -> PrescreenSummary | None:
    """Score decision points under the base, rank them by value, and write the most valuable.

    Only a value and a place in the file are kept of a point, besides `expert` where it has one.
    What `config.too_long` leaves out is no point: it is named, and in no count or share.

    Args:
        config: The settings; `ray` does not count here.
        base: `config.model` if it is loaded already.
        checked: Of a shard of a job whose points another process has read and checked.
        on_event: Called with the events of `cqa.score.run.score`.

    Returns:
        The summary; None of a shard, whose points are ranked when it is merged.

    Raises:
        CqaError: Anything that the user can mend; see cqa.errors.
    """
    check_output(config.out, "prescreen" if config.shard is None else "shard", input_paths(config))
    if checked is None:
        check_points(config)
    again = command_line(PrescreenConfig, "prescreen", given_settings(config))
    with continued_by(again):
        score(scoring_of(config), base=base, kind="prescreen", checked=checked, on_event=on_event)
    if config.shard is None:
        return rank_points(config)
    write_json(config.out / SUMMARY, {"settings": describe(config)})
    return None


def scoring_of(config: PrescreenConfig) -> ScoreConfig:
    """Return the scoring run that a prescreening is."""
    return ScoreConfig(
        model=config.model,
        out=config.out,
        pairs=config.pairs,
        shard=config.shard,
        columns=config.columns,
        template=config.template,
        allow_special=config.allow_special,
        too_long=config.too_long,
        batch_tokens=config.batch_tokens,
        device=config.device,
        dtype=config.dtype,
        summary=False,
    )


def check_points(config: PrescreenConfig) -> None:
    """Read what experts say of the points: a malformed line ends the run before any work."""
    _read_experts(config.pairs, config.columns)


def rank_points(config: PrescreenConfig) -> PrescreenSummary:
    """Rank the points of a folder whose scores are complete, and write what `prescreen` writes."""
    ids, experts = _read_experts(config.pairs, config.columns)
    meta = Meta.from_json(read_json(config.out / META), str(config.out / META))
    model_key = meta.models[0].model_key

    scores, seen = config.out / SCORES, Fingerprints()
    values, places = array("d"), array("Q")
    counts: dict[str, Counter[PointClass]] = {}
    n_other_per_byte = 0
    for place, row in placed_rows(scores):
        if row.model_key == model_key and row.full_key in ids and seen.add(row.id):
            point = point_of(row, config, experts.get(row.id))
            values.append(point.value_nats)
            places.append(place)
            counts.setdefault(point.group, Counter())[point.class_] += 1
            n_other_per_byte += point.class_ != point.class_per_byte
    order = np.argsort(-np.frombuffer(values), kind="stable")
    points = _read_in_order(scores, (places[i] for i in order), config, experts)
    top = _write_ranked(config, points)
    discard(config.out / SELECTED)
    if config.budget is not None:
        _write_selected(config, [ranked.point.id for ranked in top[: config.budget]])
    summary = _summarise(config, np.frombuffer(values)[order], counts, top, n_other_per_byte, meta)
    write_json(config.out / SUMMARY, {"settings": describe(config), **summary.to_json()})
    return summary


def _read_experts(
    paths: Sequence[Path], columns: Sequence[str]
) -> tuple[Fingerprints, dict[str, list[float]]]:
    """Read the keys and ids of all points, and the distributions of those that carry one."""
    check_columns(paths, columns)
    ids, experts = Fingerprints(), {}
    for item in read_items(paths, columns=columns):
        ids.add(full_key(item))
        if "expert" in item.extra:
            experts[item.id] = _expert(item)
    return ids, experts


def _expert(item: Item) -> list[float]:
    given, n = item.extra["expert"], len(item.options)
    numbers = isinstance(given, list) and all(
        isinstance(p, (int, float)) and not isinstance(p, bool) and 0 <= p <= 1 for p in given
    )
    if not numbers or len(given) != n or abs(math.fsum(given) - 1) > 1e-6:
        raise DataError(
            f"expected `expert` to be {n} probabilities that sum to 1, got: {given!r:.80}",
            where=item.where,
        )
    if item.answer is not None and given[item.answer] < max(given):
        raise DataError(
            f"expected the expert to favour the right option, got: {given!r:.80}", where=item.where
        )
    return [float(p) for p in given]


def point_of(row: ItemRow, config: PrescreenConfig, expert: Sequence[float] | None = None) -> Point:
    """Return what is said of a decision point, from its row of scores.

    Args:
        row: The item's row under the base.
        config: The settings; `per` and `high` count.
        expert: The expert's probability of each option; None is certainty of the right one.
    """
    answer = row.answer
    if answer is None:
        raise ValueError(f"expected a choice, got the continuation `{row.id}`")
    logp = {unit: _log_p(row.options, unit) for unit in UNITS}
    used = logp[config.per]
    p = [math.exp(value) for value in used]
    return Point(
        id=row.id,
        group=row.group,
        class_=_class_of(used, answer, config.high),
        class_per_byte=_class_of(logp["byte"], answer, config.high),
        value_nats=-used[answer] if expert is None else _kl(expert, used),
        p_right=p[answer],
        p_best_wrong=max(value for k, value in enumerate(p) if k != answer),
        h_cand_nats=-math.fsum(x * y for x, y in zip(p, used, strict=True)),
        n_options=len(p),
        p_right_per={unit: math.exp(values[answer]) for unit, values in logp.items()},
    )


def _class_of(log_p: Sequence[float], answer: int, high: float) -> PointClass:
    likely = [k for k, value in enumerate(log_p) if math.exp(value) >= high]
    if not likely:
        return "flat"
    return "internalised" if likely == [answer] else "wrong"


def _log_p(options: Sequence[OptionScore], unit: Unit) -> list[float]:
    totals = [o.logp_given_context_nats / UNITS[unit](o) for o in options]
    return [float(value) for value in log_softmax(totals)]


def _kl(expert: Sequence[float], log_p: Sequence[float]) -> float:
    return math.fsum(e * (math.log(e) - q) for e, q in zip(expert, log_p, strict=True) if e > 0)


def _read_in_order(
    path: Path,
    places: Iterator[int],
    config: PrescreenConfig,
    experts: dict[str, list[float]],
) -> Iterator[RankedPoint]:
    with path.open("rb") as file:
        for rank, place in enumerate(places, start=1):
            file.seek(place)
            row = parse_row(file.readline(), str(path))
            yield RankedPoint(rank, point_of(row, config, experts.get(row.id)))


def _write_ranked(config: PrescreenConfig, points: Iterator[RankedPoint]) -> list[RankedPoint]:
    """Write prescreen.jsonl; return its first points: those of the budget, and those to show."""
    top: list[RankedPoint] = []
    n_top = max(SHOWN, config.budget or 0)
    with (
        new_file(config.out / RANKED) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        for point in points:
            file.write(json.dumps(point.to_json(), ensure_ascii=False, allow_nan=False) + "\n")
            if len(top) < n_top:
                top.append(point)
    return top


def _write_selected(config: PrescreenConfig, ids: list[str]) -> None:
    """Write the lines of the chosen points as they stand in the files, the most valuable first."""
    lines = dict.fromkeys(ids, b"")
    for path in config.pairs:
        for where, line in raw_lines(path, config.columns):
            record = parse_object(line, where)
            item_id = take_id(record, where, file_line_id(where))
            if item_id in lines:
                named = line.strip() if "id" in record else _with_id(record, item_id)
                lines[item_id] = named + b"\n"
    with new_file(config.out / SELECTED) as temporary:
        temporary.write_bytes(b"".join(lines.values()))


def _with_id(record: dict[str, Any], item_id: str) -> bytes:
    return json.dumps({"id": item_id, **record}, ensure_ascii=False).encode()


def _summarise(
    config: PrescreenConfig,
    values: NDArray[np.float64],
    counts: dict[str, Counter[PointClass]],
    top: list[RankedPoint],
    n_other_per_byte: int,
    meta: Meta,
) -> PrescreenSummary:
    selected = tuple(ranked.point.id for ranked in top[: config.budget or 0])
    total = math.fsum(values)
    return PrescreenSummary(
        per=config.per,
        high=config.high,
        n=len(values),
        classes={name: sum(c[name] for c in counts.values()) for name in CLASSES},
        groups={g: {name: c[name] for name in CLASSES} for g, c in counts.items()},
        mean_value_nats=total / len(values),
        budget=config.budget,
        selected=selected,
        value_share_selected=(
            math.fsum(values[: len(selected)]) / total if selected and total > 0 else None
        ),
        most_valuable=tuple(top[:SHOWN]),
        n_other_class_per_byte=n_other_per_byte,
        max_positions=meta.max_positions,
        too_long=meta.too_long,
    )


def prescreen_text(summary: PrescreenSummary) -> str:
    """Return the summary as text: how many points of each class, and the most valuable ones."""
    rows = [
        [part_name(group), *(str(c[name]) for name in CLASSES), str(sum(c.values()))]
        for group, c in summary.groups.items()
    ]
    if len(rows) > 1:
        rows.append(
            [part_name(None), *(str(summary.classes[name]) for name in CLASSES), str(summary.n)]
        )
    best = [
        [
            str(ranked.rank), p.id, p.class_, f"{p.value_nats:.2f}", f"{p.p_right:.3f}",
            f"{p.p_best_wrong:.3f}", str(p.n_options),
        ]
        for ranked in summary.most_valuable
        for p in (ranked.point,)
    ]  # fmt: skip
    head = ["rank", "id", "class", "value nats", "p right", "p best wrong", "options"]
    return "\n\n".join(
        [
            aligned(["group", *CLASSES, "n"], rows),
            aligned(head, best),
            "\n".join(_notes(summary)),
        ]
    )


def _notes(summary: PrescreenSummary) -> Iterator[str]:
    yield (
        f"p = softmax of log P ({summary.per}) over a point's options; internalised, wrong: "
        f"p >= {summary.high:g}"
    )
    yield f"value = KL(expert || p); mean {summary.mean_value_nats:.2f} nats"
    if summary.value_share_selected is not None:
        share = 100 * summary.value_share_selected
        yield f"the {len(summary.selected)} selected hold {share:.0f} % of it"
    if summary.per != "byte":
        yield (
            f"{summary.n_other_class_per_byte} of {summary.n} points are of another class "
            f"when compared per byte (--per byte)"
        )
    if summary.too_long:
        yield left_out_text(summary.too_long, summary.max_positions, SUMMARY)
