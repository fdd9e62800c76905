"""A comparison from folders of scores to its files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

from cqa.compare.config import CompareConfig
from cqa.compare.contrasts import group_result
from cqa.compare.systems import Scored, bits_per_byte, read_systems, require_two
from cqa.errors import ConfigError, DataError
from cqa.files import write_json
from cqa.output_folder import check_output, filled, replaced_together
from cqa.report.compared_figure import TITLE, draw
from cqa.report.compared_tables import all_tables, markdown_page
from cqa.report.figure_style import png_bytes, svg_text
from cqa.report.tables import to_csv, to_latex
from cqa.report.write import write_file
from cqa.schema.compared import Agreement, Comparison, Missing, TextsResult

RESULT = "compare.json"


def compare(folders: Sequence[Path], config: CompareConfig) -> Comparison:
    """Compare models on the items that they have in common, and write the comparison.

    Args:
        folders: What `cqa-fast score` or `cqa-fast letters` wrote, of any models on the same items.
        config: The settings.

    Raises:
        CqaError: Anything that the user can mend; see cqa.errors.
    """
    check_output(config.out, "comparison", [("FOLDER", folder) for folder in folders])
    systems = read_systems(folders, config.models)
    require_two(systems)
    found = compared(systems, _reference(systems, config.reference))
    with filled(config.out, "comparison"), replaced_together(config.out) as staged:
        for name, content in _files(found):
            write_file(staged / name, content)
        write_json(staged / RESULT, found.to_json())
    return found


def _reference(systems: Sequence[Scored], name: str | None) -> Scored:
    if name is None:
        return systems[0]
    for scored in systems:
        if scored.system.name == name:
            return scored
    names = ", ".join(scored.system.name for scored in systems)
    raise ConfigError(f"expected --reference to be one of {names}, got: {name}")


def compared(systems: Sequence[Scored], reference: Scored) -> Comparison:
    """Compare models that have been read.

    Raises:
        DataError: They have no item in common.
    """
    groups = list(
        dict.fromkeys(
            item.group for s in systems for item in s.items.values() if item.answer is not None
        )
    )
    results = {group: group_result(group, systems, reference) for group in groups}
    texts = tuple(_texts(systems))
    held = {group: result for group, result in results.items() if result is not None}
    if not held and not texts:
        raise DataError(
            f"expected items that all {len(systems)} models have scored, got none in common",
            hint="items are the same if their id, texts and labels are",
        )
    return Comparison(
        reference=reference.system.name,
        systems=tuple(scored.system for scored in systems),
        groups=held,
        continuations=texts,
        agreements=tuple(
            agreement for a, b in combinations(systems, 2) if (agreement := _agreement(a, b))
        ),
        missing=tuple(_missing(systems)),
    )


def _texts(systems: Sequence[Scored]) -> Iterator[TextsResult]:
    """Yield the bits a byte of every group of continuations, on those that all models have."""
    first, *others = systems
    by_group: dict[str, list[str]] = {}
    for key, item in first.items.items():
        if item.answer is None and all(key in scored.items for scored in others):
            by_group.setdefault(item.group, []).append(key)
    for group, keys in by_group.items():
        for scored in systems:
            bits = bits_per_byte([scored.items[key] for key in keys])
            if bits is not None:  # no chat has continuations
                yield TextsResult(scored.system.name, group, len(keys), bits)


def _agreement(a: Scored, b: Scored) -> Agreement | None:
    """Compare the log-probabilities of two folders' models; None where tokens or items differ."""
    same_folder = a.system.folder == b.system.folder
    tokenizers = {a.system.tokenizer_digest, b.system.tokenizer_digest}
    if same_folder or len(tokenizers) > 1 or None in tokenizers:
        return None
    differences = [
        abs(x - y)
        for key, item in a.items.items()
        if (other := b.items.get(key)) is not None and other.n_tokens == item.n_tokens
        for x, y in zip(item.logp_nats, other.logp_nats, strict=True)
    ]
    if not differences:
        return None
    at_server = "server" in (a.system.engine, b.system.engine)  # whose weights nobody here has seen
    same = None if at_server else _digests(a) == _digests(b)
    return Agreement(a.system.name, b.system.name, same, len(differences), max(differences))


def _digests(scored: Scored) -> tuple[str | None, str | None]:
    return scored.system.model_digest, scored.adapter_digest


def _missing(systems: Sequence[Scored]) -> Iterator[Missing]:
    """Yield every item that a model lacks and another has, with the reason."""
    known = {
        key: (scored.ids[key], item.group)
        for scored in systems
        for key, item in scored.items.items()
    }
    for scored in systems:
        held_ids = {scored.ids[key] for key in scored.items}
        for key, (name, group) in known.items():
            if key in scored.items:
                continue
            reason = scored.left_out.get(name)
            if reason is None and name in held_ids:
                reason = "other texts or labels under this id"
            yield Missing(scored.system.name, name, group, reason or "not among its items")


def _files(found: Comparison) -> Iterator[tuple[str, str | bytes]]:
    tables = all_tables(found)
    for table in tables:
        yield f"tables/{table.name}.csv", to_csv(table)
        yield f"tables/{table.name}.tex", to_latex(table)
    has_figure = bool(found.groups)
    if has_figure:
        figure = draw(found)
        yield "figures/rank_prob.svg", svg_text(figure, TITLE)
        yield "figures/rank_prob.png", png_bytes(figure)
    yield "compare.md", markdown_page(found, tables, has_figure)
