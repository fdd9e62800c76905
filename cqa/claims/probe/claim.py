"""Probes of the states at good and bad options (section 6.4).

If a model holds what a good option says that its bad one does not, a linear probe of its states
can tell them apart for items that it has not seen. Of each item the states after every layer are
taken, the mean over the option's tokens and that at its last token, good minus bad; a probe is
trained on the items of some sources and asked of the others.

    AUC_l = P(the probe of layer l ranks a good option above a bad one)      folds of whole sources

A few dozen items in thousands of dimensions can always be told apart by something, and the best of
thirty layers is good by chance alone. So the claim is of the best layer's AUC against the best
layer's AUC of probes trained anew with the options of some sources swapped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from cqa.claims.claim import Asked, RowsByModel, Task
from cqa.claims.effects import findings
from cqa.claims.items import read_all
from cqa.claims.probe.changing import exchanged
from cqa.claims.probe.config import ProbeConfig
from cqa.claims.probe.figure import draw_layers
from cqa.claims.probe.folds import FEWEST_SOURCES, folds
from cqa.claims.probe.labellings import by_first_token, swapped
from cqa.claims.probe.outcome import dimensions_note, layer_table, probe_effects
from cqa.claims.probe.probing import probed
from cqa.claims.probe.row import ProbeResult, ProbeRow
from cqa.claims.probe.states import check_states, digest, layers, write_states
from cqa.claims.sequences import Pair, encode, n_fed, score_sequences
from cqa.data.items import Item
from cqa.data.tokenizer import Tokenizer
from cqa.errors import DataError
from cqa.layout import Tree
from cqa.model.option_states import option_states
from cqa.schema.claims import StudyResult
from cqa.score.decoder_engine import DecoderEngine
from cqa.score_folder import digest_json, full_key
from cqa.text import counted

CLAIM = "The states of a model tell the good option from the bad one"
NULL = (
    "probes trained anew with the options of whole sources swapped, the best layer of each; labels "
    "by first token; length, bytes and S; the embeddings; of a change, states exchanged"
)
CAUTION = (
    "A probe tells that a difference can be read off linearly, not that the model uses it, nor "
    "that it is the difference that was meant: options that were written by different hands differ "
    "in more than one way. What does not exceed length, bytes and S says nothing that scores do "
    "not say."
)


@dataclass(frozen=True, slots=True)
class OptionPair:
    """The two options of an item as ids, the good one first."""

    tree: Tree
    n_bytes: tuple[int, int]

    @property
    def pairs(self) -> tuple[Pair, Pair]:
        """Both as they are scored."""
        good, bad = self.tree.options
        return (self.tree.context, good), (self.tree.context, bad)


class Probe:
    """See the module."""

    name = "probe"
    row = ProbeRow
    code = ("claims/probe", "claims/sequences.py", "model/option_states.py")

    def __init__(self, config: ProbeConfig) -> None:
        self._config = config

    def inputs(self) -> Mapping[str, Any]:
        """Return what decides a row besides its task."""
        return {}

    def tasks(self, tokenizer: Tokenizer, max_positions: int) -> list[Task[OptionPair]]:
        """Read the items."""
        items = read_all(self._config)
        tasks = [_task(item, tokenizer, max_positions) for item in items]
        n_sources = len({_source(task) for task in tasks})
        if n_sources < FEWEST_SOURCES:
            raise DataError(
                f"expected items of {FEWEST_SOURCES} sources or more, got "
                f"{counted(n_sources, 'source')}",
                where=items[0].where,
                hint="a probe is asked of sources that it was not trained on",
            )
        return tasks

    def compute(
        self, engine: DecoderEngine, tasks: Sequence[Task[OptionPair]], model: Asked
    ) -> list[ProbeRow]:
        """Take the states of both options of each item, and score them."""
        found = score_sequences(engine, (pair for task in tasks for pair in task.content.pairs))
        trees = [task.content.tree for task in tasks]
        rows = []
        for task, (good, bad) in zip(tasks, option_states(engine.base.decoder, trees), strict=True):
            states = (good - bad).cpu().numpy()
            if model.model_key:
                write_states(self._config.out, model.model_key, task.key, states)
            first, second = (found[pair] for pair in task.content.pairs)
            a, b = task.content.tree.options
            rows.append(
                ProbeRow(
                    **task.labels(model),
                    logp_nats=(first.total, second.total),
                    n_tokens=(len(a), len(b)),
                    n_bytes=task.content.n_bytes,
                    first_tokens=(a[0], b[0]),
                    states_sha256=digest(states),
                )
            )
        return rows

    def result(self, rows: RowsByModel[ProbeRow]) -> StudyResult:
        """Train every probe, and test what exceeds its null controls."""
        base, out = rows[None], self._config.out
        sources = [row.source_id for row in base]
        split = folds([_source(row) for row in base])
        swaps, controls = swapped(sources, self._config.swaps), by_first_token(base)
        found, changes = {}, {}
        for adapter, held in rows.items():
            n_layers, n_dimensions = check_states(out, held)
            states = layers(out, held, n_layers)
            found[adapter] = probed(states, held, split, swaps, controls)
            if adapter is not None:
                pairs = (layers(out, of, n_layers) for of in (base, held))
                changes[adapter] = exchanged(zip(*pairs, strict=True), split, swaps)
        said = probe_effects(found, changes, sources)
        alike = sum(row.first_tokens[0] == row.first_tokens[1] for row in base)
        return ProbeResult(
            study=self.name, claim=CLAIM, null_control=NULL, caution=CAUTION, n_items=len(base),
            n_tokens=sum(sum(r.n_tokens) for r in base), effects=tuple(said),
            findings=tuple(
                finding
                for name, of in (
                    ("told apart", "excess"), ("beyond length and S", "beyond_text"),
                    ("beyond the words", "beyond_words"), ("changed", "change"),
                )
                for finding in findings(name, said, of)
            ),
            notes=(
                dimensions_note(len(base), n_dimensions),
                *((f"{counted(alike, 'item')} begin alike: not in the labels by first token.",)
                  if alike else ()),
            ),
            layers=tuple(layer_table(found, changes)),
        )  # fmt: skip

    def draw(self, rows: RowsByModel[ProbeRow], result: StudyResult) -> Figure:
        """Draw AUC by layer with the null's band."""
        assert isinstance(result, ProbeResult)
        return draw_layers(result)


def _task(item: Item, tokenizer: Tokenizer, max_positions: int) -> Task[OptionPair]:
    if item.answer is None or len(item.options) != 2:
        raise DataError(
            f"expected a good option and a bad one, got {counted(len(item.options), 'option')}",
            where=item.where,
        )
    texts = item.options[item.answer], item.options[1 - item.answer]
    (context, good), (other, bad) = (
        encode(tokenizer, item.context, text, max_positions, item.where) for text in texts
    )
    if context != other:
        raise DataError(
            "expected both options after the same tokens, got others", where=item.where,
            hint="the template puts an empty block of thoughts before an option without",
        )  # fmt: skip
    if good == bad:
        raise DataError(
            "expected options that differ in their tokens, got the same ids twice",
            where=item.where, hint="the tokenizer writes both texts alike",
        )  # fmt: skip
    tree = Tree(context, (good, bad))
    content = OptionPair(tree, (len(texts[0].encode()), len(texts[1].encode())))
    return Task(
        id=item.id,
        group=item.group,
        source_id=item.labels.get("source_id"),
        key=digest_json(full_key(item)),
        n_tokens=n_fed(content.pairs) + len(context) + len(good) + len(bad),
        content=content,
    )


def _source(one: Task[OptionPair] | ProbeRow) -> str:
    """Name the source of an item; one without is a source of its own."""
    return f"item {one.id}" if one.source_id is None else f"source {one.source_id}"
