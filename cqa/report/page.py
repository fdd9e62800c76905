"""The report as one HTML page that asks nothing of the network, and as Markdown."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from cqa import __version__
from cqa.escape import for_html, for_markdown
from cqa.model.conversion import conversion_text
from cqa.report.added import AddedFigure, AddedPart
from cqa.report.figure_style import Drawing, inline_svg
from cqa.report.figures import FIGURES
from cqa.report.focus import Focus
from cqa.report.item_table import ITEM_COLUMNS, ItemNumbers, ScoredItems
from cqa.report.item_texts import ScoredItem, ShownOption, TokenValues, shown_options
from cqa.report.tables import Line, Table, show, to_markdown
from cqa.report.verdict import Page
from cqa.schema.meta import ScoredModel
from cqa.text import shortened

TEXT_BYTES = 4_000_000  # of items' texts and tokens in the page: it opens on a phone
LONGEST_FACT = 1000  # characters of a setting that the page shows; run.json holds it whole
TEMPLATES = files("cqa.report") / "templates"
CAPTIONS = {
    "d_by_epoch": "d_z of ddI with its 95 % interval (noncentral t). The ring marks the "
    "highlighted adapter, which the verdict is on. An interval that holds 0 shows no change; "
    "each is of one adapter alone with items as independent, so the verdict decides.",
    "parts": "ddI = d_cond − d_prior with 95 % t intervals: what changed after the context, and "
    "what changed without any. Items count as independent.",
    "collapse": "Mean over items of p, the softmax of S over an item's candidates; wrong options "
    "are ranked by p under the base. H is the mean entropy of p.",
    "overfitting": "The losses are diagnostics and choose nothing. A mean that grows with its sd "
    "leaves d_z where it was.",
    "items": "ddI of every item. A mean that rests on a few items is not a change of the model's "
    "judgement.",
    "specifications": "p of every way of asking: the unit of dI, the null context and the test. "
    "Filled: it answers as the verdict does. The line is p = 0.05.",
    "continuations": "Change of the mean log-probability per token of true continuations, with "
    "its 95 % interval by the deciding test. Filled: all texts of the group.",
}
SECTIONS: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("change", "The change, by adapter", ("d_by_epoch",), ("table_1", "other_tests")),
    ("selective", "Is it selective?", (), ("interaction", "equivalence")),
    ("parts", "Conditional or prior?", ("parts",), ("parts",)),
    ("collapse", "Candidates and entropy", ("collapse",), ("entropy",)),
    ("overfitting", "Training and overfitting", ("overfitting",), ()),
    ("continuations", "True continuations", ("continuations",), ("table_2",)),
    ("domains", "By domain", (), ("domains",)),
    ("languages", "By language", (), ("languages", "languages_continuations")),
    ("time", "Before and after the cutoff", (), ("strata", "strata_continuations")),
    (
        "readings",
        "Other readings",
        ("specifications",),
        ("specifications", "readings", "contamination", "accuracy"),
    ),
    ("items", "The items", ("items",), ("groups",)),
)
FIXED = (
    ("S(x|c)", "sum of the log-probabilities of the option's tokens after context c, nats"),
    ("I(x; y)", "S(x|y) − S(x|∅); ∅ is one token: BOS, else <|endoftext|>, else EOS"),
    ("dI", "I(right) − mean I(wrong)"),
    ("ddI", "dI under the adapter − dI under the base = d_cond − d_prior"),
    (
        "W+, p",
        "signed-rank statistic of ddI; one-sided p from the exact null distribution, beyond 1,000 "
        "items from its normal approximation",
    ),
    (
        "p, corrected",
        "the deciding test: mean ddI above 0, by sign flips of whole sources and bootstrap-t, "
        "whichever gives the larger p, corrected for every adapter scored on these items (max-T)",
    ),
    ("d_z", "mean / standard deviation of ddI over items"),
    ("small", "the 90 % interval of d_z within ±0.2, or of ddI within --margin"),
)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a report says, before it is written down."""

    focus: Focus
    verdict: Page
    caveats: list[str]
    tables: list[Table]
    figures: dict[str, Drawing]
    found: ScoredItems
    added: list[AddedPart]  # of other folders: studies, a comparison

    @property
    def by_name(self) -> dict[str, Table]:
        """The tables by name."""
        return {table.name: table for table in self.tables}


def html_page(report: Report) -> str:
    """Return the page: style, script, figures and texts are all inside."""
    environment = Environment(
        autoescape=True,
        finalize=for_html,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        loader=FunctionLoader(_template),
    )
    environment.globals.update(show=show)
    script = _template("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    items = _items(report)
    return environment.get_template("page.html").render(
        report=report,
        focus=report.focus,
        verdict=report.verdict,
        caveats=report.caveats,
        sections=_sections(report),
        item_columns=ITEM_COLUMNS,
        items=items,
        tokens=_array_for_script(items.tokens),
        provenance=provenance(report.focus),
        fixed=FIXED,
        version=__version__,
        style=Markup(_template("style.css")),
        script=Markup(script),
        script_digest=digest,
    )


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _json_for_script(value: Any) -> str:
    """Return JSON that no HTML parser can leave the script element by."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("&", "\\u0026")


def _array_for_script(parts: Iterable[str]) -> Markup:
    return Markup(f"[{','.join(parts)}]")


@dataclass(frozen=True, slots=True)
class PageFigure:
    """A figure in the page, for wide and for narrow windows."""

    name: str
    title: str
    caption: str
    wide: Markup
    narrow: Markup


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page under a heading."""

    name: str
    title: str
    figures: list[PageFigure]
    tables: list[Table]
    added: AddedPart | None = None


def _sections(report: Report) -> list[Section]:
    """Return the sections that have anything to show."""
    sections = []
    for name, title, figures, tables in SECTIONS:
        drawn = [_figure(f, report.figures[f]) for f in figures if f in report.figures]
        held = [report.by_name[t] for t in tables if t in report.by_name]
        if drawn or held or name == "items":
            sections.append(Section(name, title, drawn, held))
    items = sections.pop()  # the longest, last
    return [*sections, *map(_added_section, report.added), items]


def _added_section(part: AddedPart) -> Section:
    drawn = [
        _page_figure(figure.name, figure.title, figure.caption, figure) for figure in part.figures
    ]
    return Section(part.name, part.title, drawn, part.tables, part)


def _figure(name: str, drawing: Drawing) -> PageFigure:
    return _page_figure(name, FIGURES[name].title, _caption(name, drawing), drawing)


def _page_figure(name: str, title: str, caption: str, drawn: Drawing | AddedFigure) -> PageFigure:
    wide, narrow = (
        Markup(inline_svg(text, f"{name}-{size}", title))
        for size, text in (("wide", drawn.svg), ("narrow", drawn.narrow_svg))
    )
    return PageFigure(name, title, caption, wide, narrow)


def _caption(name: str, drawing: Drawing) -> str:
    if not drawing.left_out:
        return CAPTIONS[name]
    return f"{CAPTIONS[name]} Drawn are {drawing.left_out}; figures/{name}.csv has all."


@dataclass(frozen=True, slots=True)
class PageOption:
    """An option in the page, and where its tokens are among all tokens of the page."""

    shown: ShownOption
    at: int | None


@dataclass(frozen=True, slots=True)
class PageItem:
    """An item in the page: its line, and its texts if the page holds them."""

    numbers: ItemNumbers
    line: Line
    scored: ScoredItem | None = None
    options: Sequence[PageOption] = ()


@dataclass(frozen=True, slots=True)
class PageItems:
    """The items that the page holds, of how many, and the tokens of all options of them."""

    lines: list[PageItem]
    tokens: list[str]
    n: int
    n_texts: int
    n_groups: int


def _items(report: Report) -> PageItems:
    """Return the items of the largest change, and texts of them while there is room."""
    found = report.found
    tokens: list[str] = []
    texts, room = {}, TEXT_BYTES
    for item_id, scored in found.with_texts.items():
        options, held = _options(report, scored, len(tokens))
        size = sum(map(len, held)) + _html_bytes(scored)
        if size <= room:
            room -= size
            tokens += held
            texts[item_id] = (scored, options)
    lines = [
        PageItem(item, line, *texts.get(item.id, (None, ())))
        for item, line in zip(found.items, report.by_name["items"].lines, strict=True)
        if item.id in found.in_page
    ]
    groups = {(item.kind == "continuation", item.group) for item in found.items}
    return PageItems(lines, tokens, len(found.items), len(texts), len(groups))


def _options(
    report: Report, scored: ScoredItem, at: int
) -> tuple[Sequence[PageOption], Sequence[str]]:
    """Return an item's options, and their tokens as JSON, which come to stand from `at` on."""
    score_eos = report.focus.source.settings.score_eos
    options, tokens = list[PageOption](), list[str]()
    for shown in shown_options(scored, score_eos=score_eos):
        place = None if shown.tokens is None else at + len(tokens)
        options.append(PageOption(shown, place))
        if shown.tokens is not None:
            tokens.append(_json_for_script(_as_json(shown.tokens)))
    return options, tokens


def _html_bytes(scored: ScoredItem) -> int:
    """Return how long an item's texts are in the page."""
    if scored.text is None:
        return 0
    return sum(len(for_html(t).encode()) for t in (scored.text.context, *scored.text.options))


def _as_json(tokens: TokenValues) -> dict[str, list[int]]:
    return {name: values for name, values in asdict(tokens).items() if values is not None}


def _second_null(base: ScoredModel, setting: str) -> str:
    if base.null2_digest is not None:
        return f"contexts of other items ({setting})"
    return str(list(base.null2_ids or ()) or "no second one")


def provenance(focus: Focus) -> list[tuple[str, str]]:
    """Return what identifies the result: settings, versions and hashes."""
    meta = focus.source.meta
    base, choice = meta.models[0], focus.selection
    facts: list[tuple[str, Any]] = [
        ("base model", focus.source.settings.model),
        ("model, sha256", base.model),
        ("tokenizer, sha256", base.tokenizer),
        ("dtype, device", f"{base.dtype} on {meta.device}"),
        ("prompt template", base.template or "plain: nothing inserted"),
        ("boundary", base.boundary),
        (
            "null contexts, ids",
            f"{list(base.null_ids)} and {_second_null(base, focus.source.settings.null2)}",
        ),
        ("end token scored", "yes" if base.score_eos else "no"),
        ("reading of dI", "sum over tokens, nats; several options: right − mean of the wrong"),
        ("choice of an adapter", choice.rule if choice else "no more than one to choose from"),
        ("code of the scorer, sha256", base.code),
        ("items, sha256", meta.items_digest),
        ("engine", base.engine),
        ("ops", base.backend),
    ]
    if (conversion := meta.conversion) is not None:
        facts.insert(2, ("model, converted from", conversion_text(conversion)))
    facts += [
        (f"adapter {name}, sha256", focus.source.family.digests[name])
        for name in focus.source.adapters
    ]
    if focus.source.run is not None:
        run = focus.source.run
        for key in ("n_train", "n_validation", "total_steps", "data_digest"):
            facts.append((f"training: {key}", getattr(run.facts, key)))
        facts += [(f"training: {key}", value) for key, value in run.facts.settings.items()]
    facts += [(f"version of {name}", value) for name, value in meta.versions.items()]
    return [(n, "n/a" if v is None else shortened(str(v), LONGEST_FACT)) for n, v in facts]


def markdown_page(report: Report) -> str:
    """Return the report as Markdown; figures are linked, items and texts are left to the page."""
    verdict = report.verdict
    lines = ["# Report", "", f"**{for_markdown(verdict.headline)}**", ""]
    lines += [
        f"* **{f.mark}**: {for_markdown(f'{f.question} {f.text} ({f.test})')}"
        for f in verdict.answers
    ]
    lines += ["", for_markdown(verdict.evidence_for), "", "Not shown:", ""]
    lines += [f"* {for_markdown(text)}" for text in verdict.not_shown]
    lines += ["", "## Caveats", "", *(f"* {for_markdown(text)}" for text in report.caveats), ""]
    for name, title, figures, tables in SECTIONS:
        drawn = [f for f in figures if f in report.figures]
        held = [report.by_name[t] for t in tables if t in report.by_name]
        if not drawn and not held:
            continue
        lines += [f"## {title}", ""]
        for figure in drawn:
            lines += [f"![{FIGURES[figure].title}](figures/{figure}.svg)", ""]
            lines += [for_markdown(_caption(figure, report.figures[figure])), ""]
        lines += [line for table in held for line in _table_lines(table)]
        if name == "items":
            lines += ["Every item: tables/items.csv; with texts and tokens: report.html.", ""]
    for part in report.added:
        lines += _added_lines(part)
    lines += ["## How it was made", "", "| | |", "|---|---|"]
    lines += _facts(provenance(report.focus))
    lines += ["", "| name | meaning |", "|---|---|", *_facts(FIXED)]
    return "\n".join([*lines, "", f"Written by cqa-fast {__version__}.", ""])


def _added_lines(part: AddedPart) -> list[str]:
    lines = [f"## {for_markdown(part.title)}", ""]
    for figure in part.figures:
        lines += [f"![{figure.title}](figures/{figure.name}.svg)", "", figure.caption, ""]
    for text in part.facts:
        lines += [for_markdown(text), ""]
    lines += [
        f"* **{f.mark}**, {for_markdown(f'{of}: {f.name}: {f.reason}')}" for f, of in part.answers
    ]
    return [*lines, "", *(line for table in part.tables for line in _table_lines(table))]


def _table_lines(table: Table) -> list[str]:
    lines = [f"### {for_markdown(table.title)}", "", to_markdown(table), ""]
    return [*lines, for_markdown(table.full_note), ""] if table.full_note else lines


def _facts(facts: Iterable[tuple[str, str]]) -> list[str]:
    return [f"| {for_markdown(name)} | {for_markdown(value)} |" for name, value in facts]
