"""Settings of the study of duality."""

from __future__ import annotations

from dataclasses import dataclass

from cqa.claims.config import ItemsConfig
from cqa.config import setting
from cqa.score.config import require_sampling


@dataclass(frozen=True, kw_only=True)
class DualityConfig(ItemsConfig):
    """Whether understanding a text and producing it are one thing (section 6.5)."""

    samples: int = setting(
        "Texts drawn after each context, under each of three laws.", 8, group="Text"
    )
    max_tokens: int = setting(
        "Most tokens of a text; it ends before, at an end token of the model or tokenizer.",
        32,
        group="Text",
    )
    seed: int = setting("Seed of the texts.", 0, group="Text")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        require_sampling(
            n_samples=self.samples, max_tokens=self.max_tokens, temperature=1.0, top_p=1.0,
            seed=self.seed,
        )  # fmt: skip
