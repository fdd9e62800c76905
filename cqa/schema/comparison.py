"""What is said of one group: before any adapter, and under one."""

from __future__ import annotations

from dataclasses import dataclass, field

from cqa.schema.result import (
    Correlation,
    Equivalence,
    Interval,
    PairedChange,
    PairedT,
    SignTest,
    Wilcoxon,
)
from cqa.schema.written import Result, merged, stored_as


@dataclass(frozen=True, slots=True)
class Share(Result):
    """A share of items with Wilson's interval."""

    share: float | None
    ci95: Interval | None


@dataclass(frozen=True, slots=True)
class Accuracy(Result):
    """Share of items whose right option ranks first: lm-eval's acc and acc_bytes."""

    sum: Share  # by S(x|y)
    per_byte: Share  # by S(x|y) / bytes of x


@dataclass(frozen=True, slots=True)
class PowerAt(Result):
    """Power at Cohen's small, medium and large effects."""

    small: float | None = field(metadata=stored_as("0.2"))
    medium: float | None = field(metadata=stored_as("0.5"))
    large: float | None = field(metadata=stored_as("0.8"))


@dataclass(frozen=True, slots=True)
class Power(Result):
    """What a test can find with as many items as there are."""

    test: str
    detectable_d_z_at_80: float | None
    at_d_z: PowerAt


@dataclass(frozen=True, slots=True)
class LengthBalance(Result):
    """How long right options are beside wrong ones, whose mean counts; in one unit."""

    mean_right: float
    mean_wrong: float
    n_right_longer: int
    n_right_shorter: int


@dataclass(frozen=True, slots=True)
class Lengths(Result):
    """The balance of lengths in every unit."""

    n_tokens: LengthBalance
    n_bytes: LengthBalance
    n_chars: LengthBalance


@dataclass(frozen=True, slots=True)
class BaseGroup(Result):
    """A group of pairs under the base: dI, its power, and how even its options are."""

    n: int
    mean_delta_i_nats: float
    sd_delta_i_nats: float | None
    sign_accuracy: float  # share of items with dI > 0
    sign_accuracy_ci95: Interval | None
    accuracy: Accuracy
    accuracy_by_chance: float
    power: Power
    lengths: Lengths
    n_boundary_mismatch: int = field(metadata=stored_as("n_boundary_merge"))
    languages: dict[str, int]  # items of each
    n_sources: int | None  # None where no item names its source
    n_without_source: int


@dataclass(frozen=True, slots=True)
class Change(Result):
    """The change of dI, of a group or of a part of one; `delta_i_nats.change` is mean ddI."""

    n: int
    delta_i_nats: PairedChange = field(
        metadata=merged("mean_delta_i_base_nats", "mean_delta_i_nats", "mean_ddi_nats", "ci95_nats")
    )
    wilcoxon: Wilcoxon


@dataclass(frozen=True, slots=True)
class VariantChange(Result):
    """The change of dI computed in another way, in the unit of that way."""

    delta_i: PairedChange = field(
        metadata=merged("mean_delta_i_base", "mean_delta_i", "mean_ddi", "ci95")
    )
    p: float  # of the one-sided signed-rank test
    d_z: float | None


@dataclass(frozen=True, slots=True)
class Variants(Result):
    """The change of dI in other ways than as a sum over tokens after the first null context."""

    null2: VariantChange | None  # None where the second null context was not measured
    per_token: VariantChange
    per_byte: VariantChange
    per_char: VariantChange
    best_wrong: VariantChange


@dataclass(frozen=True, slots=True)
class BySource(Result):
    """What remains when items of one source count as one."""

    n_sources: int
    n_unnamed: int  # items without a source, each one of its own
    bca95_nats: Interval | None
    wilcoxon_of_source_means: Wilcoxon


@dataclass(frozen=True, slots=True)
class Signs(Result):
    """How many items have dI > 0, before and after."""

    sign_accuracy_base: float | None
    sign_accuracy: float | None
    sign_accuracy_base_ci95: Interval | None
    sign_accuracy_ci95: Interval | None
    n_sign_gained: int
    n_sign_lost: int


@dataclass(frozen=True, slots=True)
class EffectSizes(Result):
    """Standardised sizes of mean ddI."""

    d_z: float | None
    d_z_ci95: Interval | None
    hedges_g_z: float | None
    hedges_g_z_ci95: Interval | None
    d_av: float | None


@dataclass(frozen=True, slots=True)
class Shrinkage(Result):
    """The line of dI_B on dI_A: how much of mean ddI is what dI was before, made smaller."""

    mean_delta_i_base_nats: float
    slope: float
    slope_ci95: Interval
    by_shrinkage_nats: float  # (slope - 1) times the base's mean dI
    rest_nats: float  # of mean ddI: what an item with dI = 0 gains
    rest_ci95_nats: Interval

    @property
    def explains(self) -> bool:
        """Whether shrinkage makes ddI rise and nothing is shown to come on top."""
        shrinks, lifts = self.slope_ci95[1] < 1, self.by_shrinkage_nats > 0
        return shrinks and lifts and self.rest_ci95_nats[0] <= 0


@dataclass(frozen=True, slots=True)
class EntropyChange(Result):
    """Entropy of the next token in nats, averaged over the tokens of all options."""

    given_context: PairedChange
    null: PairedChange


@dataclass(frozen=True, slots=True)
class RankChange(Result):
    """Mean probability of the candidates of one rank, over the items that have so many."""

    n: int
    p: PairedChange = field(metadata=merged())


@dataclass(frozen=True, slots=True)
class CandidateChange(Result):
    """What became of the softmax over an item's candidates: its entropy, and p by rank.

    The right one comes first, then the wrong ones by their probability under the base.
    """

    entropy_nats: PairedChange
    p_by_rank: tuple[RankChange, ...]


@dataclass(frozen=True, slots=True)
class Candidates(Result):
    """Figure 2's quantities, after the context and after the null context."""

    given_context: CandidateChange
    null: CandidateChange


@dataclass(frozen=True, slots=True)
class Comparison(Change):
    """Everything that is said of one group under one adapter."""

    sd_ddi_nats: float | None
    mean_d_cond_nats: float | None
    mean_d_prior_nats: float | None
    ci95_d_cond_nats: Interval | None
    ci95_d_prior_nats: Interval | None
    bca95_nats: Interval | None
    by_source: BySource | None  # None where no item names its source
    domains: dict[str, Change]
    languages: dict[str, Change]  # of a group of several
    signs: Signs = field(metadata=merged())
    accuracy_base: Accuracy
    accuracy: Accuracy
    t: PairedT
    sign_test: SignTest
    effect: EffectSizes = field(metadata=merged())
    equivalence: Equivalence
    bayes_factor_10: float | None  # JZS, of source means: an effect against none
    entropy_per_token: EntropyChange | None  # None where the engine gives no entropy
    candidates: Candidates
    variants: Variants = field(metadata=stored_as("readings"))
    ddi_against_length_rho: Correlation | None
    shrinkage: Shrinkage | None  # None where dI of the base has no spread over three sources


@dataclass(frozen=True, slots=True)
class TextChange(Result):
    """Mean log-probability of true continuations before and after, of a group or a domain."""

    n: int
    per_token_nats: PairedChange = field(metadata=merged(
        "mean_logp_per_token_base_nats", "mean_logp_per_token_nats", "mean_dlogp_per_token_nats",
        "ci95_nats",
    ))  # fmt: skip
    per_token_bits: PairedChange = field(metadata=merged(
        "mean_logp_per_token_base_bits", "mean_logp_per_token_bits", "mean_dlogp_per_token_bits",
        "ci95_per_token_bits",
    ))  # fmt: skip
    per_byte_bits: PairedChange = field(metadata=merged(
        "mean_logp_per_byte_base_bits", "mean_logp_per_byte_bits", "mean_dlogp_per_byte_bits",
        "ci95_per_byte_bits",
    ))  # fmt: skip
    entropy_per_token_nats: PairedChange | None  # None where the engine gives no entropy


@dataclass(frozen=True, slots=True)
class TextComparison(TextChange):
    """A group of continuations under one model, each of its domains, and of several languages."""

    domains: dict[str, TextChange]
    languages: dict[str, TextChange]
