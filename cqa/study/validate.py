"""Checks of data files against a model: what `train` and `score` would refuse, before they do."""

from __future__ import annotations

from cqa.data.items import Item
from cqa.data.lengths import encode_samples
from cqa.data.samples import Sample
from cqa.data.tokenizer import Tokenizer
from cqa.model.checkpoint import locate
from cqa.model.config import read_config
from cqa.schema.first import Encoding
from cqa.score.prefix_batch import encode_item
from cqa.study.config import ValidateConfig


class ModelEncoder:
    """Encodes records as `train` and `score` do by default, and refuses what they refuse."""

    def __init__(self, model: str, config: ValidateConfig) -> None:
        """Load the tokenizer of a model.

        Raises:
            CqaError: The model's config or tokenizer, or the template, cannot be used.
        """
        folder = locate(model)
        shape = read_config(folder)
        self.positions = shape.max_positions
        self.tokenizer = Tokenizer(
            folder, template=config.template, allow_special=config.allow_special
        )
        self.tokenizer.limit_ids(shape.vocab_size)

    def check(self, record: Item | Sample) -> None:
        """Encode a record.

        Raises:
            DataError: It would be refused.
        """
        self._encode(record)

    def describe(self, record: Item | Sample) -> Encoding:
        """Return a record as token ids; of an item those of its context and its first option."""
        ids, marked = self._encode(record)
        pieces = tuple(
            self.tokenizer.decode_following([token]) if k else self.tokenizer.decode([token])
            for k, token in enumerate(ids)
        )
        return Encoding(ids, pieces, marked)

    def _encode(self, record: Item | Sample) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        if isinstance(record, Sample):
            ((sample,), _) = encode_samples([record], self.tokenizer, self.positions, "refuse")
            return sample.ids, sample.loss_mask
        item = encode_item(
            record, self.tokenizer, "split", score_eos=False, max_positions=self.positions
        )
        first = item.options[0]
        marked = (False,) * len(first.context_ids) + (True,) * len(first.option_ids)
        return first.context_ids + first.option_ids, marked
