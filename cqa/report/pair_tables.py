"""Tables of pairs and several options: the paper's Table 1, and what it lacks."""

from __future__ import annotations

from collections.abc import Iterable

from cqa.report.focus import ADAPTER, GROUP, Focus, N
from cqa.report.tables import Column, Placed, Table, tabulate
from cqa.schema.comparison import Accuracy, Change, Comparison, VariantChange
from cqa.schema.result import Interval
from cqa.schema.verdict import FamilyChange, Interaction
from cqa.stats.items import VARIANTS

Pairs = Column[Placed[Comparison]]
Parts = Column[Placed[Change]]
DI_BASE: Parts = Column(
    "mean_delta_i_base_nats", "dI base, nats", lambda r: r.result.delta_i_nats.before, "number"
)
DDI: Parts = Column("mean_ddi_nats", "ddI, nats", lambda r: r.result.delta_i_nats.change)
CI: Parts = Column(
    "ci95_nats", "t CI, nats (paper)", lambda r: r.result.delta_i_nats.ci95, "interval"
)
W_PLUS: Parts = Column("w_plus", "W+ (paper)", lambda r: r.result.wilcoxon.w_plus, "w")
P: Parts = Column("p", "Wilcoxon p (paper)", lambda r: r.result.wilcoxon.p, "p")
D_Z: Pairs = Column("d_z", "d_z", lambda r: r.result.effect.d_z)


def table_1(focus: Focus) -> Table:
    """Return the paper's Table 1, with what it lacks."""

    def deciding(row: Placed[Comparison]) -> FamilyChange | None:
        family = focus.summary.families.get(row.group)
        return family.changes.get(row.adapter or "") if family else None

    def p_corrected(row: Placed[Comparison]) -> float | None:
        found = deciding(row)
        return found.p_corrected if found else None

    def simultaneous(row: Placed[Comparison]) -> Interval | None:
        found = deciding(row)
        return found.ci95_nats if found else None

    columns: tuple[Pairs, ...] = (
        GROUP,
        ADAPTER,
        N,
        DI_BASE,
        Column(
            "mean_delta_i_nats", "dI adapter, nats", lambda r: r.result.delta_i_nats.after, "number"
        ),
        DDI,
        Column("ci95_simultaneous_nats", "95 % CI, nats", simultaneous, "interval"),
        Column("p_corrected", "p, corrected", p_corrected, "p"),
        Column("ci95_nats", "t CI, nats (paper)", lambda r: r.result.delta_i_nats.ci95, "interval"),
        Column("w_plus", "W+ (paper)", lambda r: r.result.wilcoxon.w_plus, "w"),
        Column("p", "Wilcoxon p (paper)", lambda r: r.result.wilcoxon.p, "p"),
        D_Z,
        Column("d_z_ci95", "95 % CI of d_z", lambda r: r.result.effect.d_z_ci95, "interval"),
    )
    note = (
        "ddI = dI under the adapter − dI under the base, mean over items. 95 % CI and p, "
        "corrected: the deciding test, over sources and simultaneous over all adapters of the "
        "group, greater. t CI and signed-rank test: as in the paper, of one adapter alone with "
        "items as independent; CI of d_z: noncentral t"
        + approximated((row.group, row.result) for row in focus.comparisons())
    )
    title = "Change of conditional mutual information (the paper's Table 1)"
    return tabulate("table_1", title, columns, focus.comparisons(), note)


def approximated(entries: Iterable[tuple[str, Change]]) -> str:
    """Name the parts, each given with its entry, whose p is not exact; nothing where all are."""
    rough = sorted({name for name, entry in entries if entry.wilcoxon.method != "exact"})
    return f". Normal approximation of p: {', '.join(rough)}" if rough else ""


def more_tests(focus: Focus) -> Table:
    """Return what other tests, intervals and effect sizes say of the same change."""
    columns: tuple[Pairs, ...] = (
        GROUP,
        ADAPTER,
        Column("p_t", "t-test, p", lambda r: r.result.t.p_one_sided, "p"),
        Column("p_sign", "sign test, p", lambda r: r.result.sign_test.p, "p"),
        Column("bca95_nats", "BCa 95 % CI, nats", lambda r: r.result.bca95_nats, "interval"),
        Column(
            "n_sources",
            "clusters",
            lambda r: s.n_sources if (s := r.result.by_source) else None,
            "count",
        ),
        Column(
            "ci95_by_source",
            "BCa by source, nats",
            lambda r: s.bca95_nats if (s := r.result.by_source) else None,
            "interval",
        ),
        Column(
            "p_by_source",
            "source means, p",
            lambda r: s.wilcoxon_of_source_means.p if (s := r.result.by_source) else None,
            "p",
        ),
        Column("hedges_g_z", "Hedges g_z", lambda r: r.result.effect.hedges_g_z),
        Column("d_av", "d_av", lambda r: r.result.effect.d_av),
        Column(
            "sign_accuracy_base",
            "dI > 0, base",
            lambda r: r.result.signs.sign_accuracy_base,
            "share",
        ),
        Column(
            "ddi_against_length_rho",
            "rho with length",
            lambda r: c.rho if (c := r.result.ddi_against_length_rho) else None,
        ),
        Column(
            "ddi_against_length_p",
            "p of rho",
            lambda r: c.p_two_sided if (c := r.result.ddi_against_length_rho) else None,
            "p",
        ),
        Column("sign_accuracy", "dI > 0, adapter", lambda r: r.result.signs.sign_accuracy, "share"),
        Column("n_sign_gained", "gained", lambda r: r.result.signs.n_sign_gained, "count"),
        Column("n_sign_lost", "lost", lambda r: r.result.signs.n_sign_lost, "count"),
    )
    note = (
        "All p are one-sided (greater). By source: whole sources are resampled, or averaged; an "
        "item without source_id is a cluster of its own. BCa, t and d_z take items as independent; "
        "by source, BCa is approximate with few or unequal sources. rho with length: Spearman's of "
        "ddI against how many tokens longer the right option is"
    )
    title = "Other tests and effect sizes"
    rows = focus.comparisons()
    return tabulate("other_tests", title, columns, rows, note, adapters=focus.shown)


def interaction(focus: Focus) -> Table:
    """Return the tests of the primary group minus the control."""
    primary, control = focus.primary or "", focus.control or ""

    columns: tuple[Column[Placed[Interaction]], ...] = (
        ADAPTER,
        Column(
            "difference_nats",
            f"{primary} − {control}, nats",
            lambda r: r.result.sum_nats.difference,
        ),
        Column("ci95_nats", "95 % CI, nats", lambda r: r.result.sum_nats.ci95, "interval"),
        Column("p", "p alone", lambda r: r.result.sum_nats.p_two_sided, "p"),
        Column("p_corrected", "p, corrected", lambda r: r.result.sum_nats.p_corrected, "p"),
        Column(
            "difference_per_token_nats",
            "per token, nats",
            lambda r: r.result.per_token_nats.difference,
            "fine",
        ),
        Column(
            "ci95_per_token_nats",
            "95 % CI, nats/token",
            lambda r: r.result.per_token_nats.ci95,
            "fine_interval",
        ),
        Column(
            "p_corrected_per_token",
            "p, corrected",
            lambda r: r.result.per_token_nats.p_corrected,
            "p",
        ),
        Column("t_welch", "Welch t (items)", lambda r: r.result.welch.t, "number"),
        Column("p_welch", "Welch p (items)", lambda r: r.result.welch.p_two_sided, "p"),
    )
    title = f"{primary[:1].upper()}{primary[1:]} minus {control}"
    note = (
        "Difference of mean ddI over sources, two-sided, corrected for all rows; a difference "
        "counts only where both units show it"
    )
    rows = [Placed(test, primary, name) for name, test in focus.summary.interaction.items()]
    return tabulate("interaction", title, columns, rows, note)


def equivalence(focus: Focus) -> Table:
    """Return whether each change is shown to be small."""
    columns: tuple[Pairs, ...] = (
        GROUP,
        ADAPTER,
        Column("unit", "of", lambda r: r.result.equivalence.unit, "text"),
        Column("estimate", "estimate", lambda r: r.result.equivalence.estimate),
        Column("ci90", "90 % CI", lambda r: r.result.equivalence.ci90, "interval"),
        Column("margin", "margin ±", lambda r: r.result.equivalence.margin, "number"),
        Column("within", "shown to be small", _within, "text"),
        Column(
            "smallest_margin",
            "smallest margin",
            lambda r: r.result.equivalence.smallest_margin,
            "number",
        ),
        Column("bf01", "Bayes factor, none : effect", _no_effect, "number"),
    )
    note = (
        "Bayes factor: JZS with a Cauchy prior of scale 0.707 (Rouder et al. 2009), of the means "
        "of the sources; above 3 it speaks for no effect, below 1/3 for one. "
        "Small is shown where the 90 % interval, over sources, lies within the margin: d_z of 0.2, "
        "or --margin in nats. It is not corrected for several adapters: the highlighted one was "
        "not chosen by these tests, and “small under every adapter” needs each to be so"
    )
    title, rows = "Is a change small?", focus.comparisons()
    return tabulate("equivalence", title, columns, rows, note, adapters=focus.shown)


def _no_effect(row: Placed[Comparison]) -> float | None:
    factor = row.result.bayes_factor_10
    return 1 / factor if factor else None


def _within(row: Placed[Comparison]) -> str | None:
    within = row.result.equivalence.within
    return None if within is None else ("yes" if within else "no")


def parts(focus: Focus) -> Table:
    """Return the change's conditional and prior part."""
    columns: tuple[Pairs, ...] = (
        GROUP,
        ADAPTER,
        DDI,
        Column("mean_d_cond_nats", "d_cond, nats", lambda r: r.result.mean_d_cond_nats),
        Column(
            "ci95_d_cond_nats", "95 % CI, nats", lambda r: r.result.ci95_d_cond_nats, "interval"
        ),
        Column("mean_d_prior_nats", "d_prior, nats", lambda r: r.result.mean_d_prior_nats),
        Column(
            "ci95_d_prior_nats", "95 % CI, nats", lambda r: r.result.ci95_d_prior_nats, "interval"
        ),
    )
    note = (
        "ddI = d_cond − d_prior: the change after the context minus the change after ∅. CI: t, "
        "items as independent"
    )
    title, rows = "Conditional and prior part", focus.comparisons()
    return tabulate("parts", title, columns, rows, note, adapters=focus.shown)


def variants(focus: Focus) -> Table:
    """Return the change of dI computed in other ways."""
    rows = []
    for row in focus.comparisons():
        entry, named = row.result, row.result.variants
        headline = VariantChange(entry.delta_i_nats, entry.wilcoxon.p, entry.effect.d_z)
        parts: dict[str, VariantChange | None] = {
            "sum over tokens, ∅ = null token, nats (headline)": headline,
            VARIANTS["null2"]: named.null2,
            VARIANTS["per_token"]: named.per_token,
            VARIANTS["per_byte"]: named.per_byte,
            VARIANTS["per_char"]: named.per_char,
            VARIANTS["best_wrong"]: named.best_wrong,
        }
        rows += [Placed(part, row.group, row.adapter, name) for name, part in parts.items()]
    columns: tuple[Column[Placed[VariantChange | None]], ...] = (
        GROUP,
        ADAPTER,
        Column("reading", "reading of dI", lambda r: r.part, "text"),
        Column("mean_ddi", "ddI", lambda r: r.result.delta_i.change if r.result else None, "fine"),
        Column(
            "ci95",
            "95 % CI",
            lambda r: r.result.delta_i.ci95 if r.result else None,
            "fine_interval",
        ),
        Column("p", "p, one-sided", lambda r: r.result.p if r.result else None, "p"),
        Column("d_z", "d_z", lambda r: r.result.d_z if r.result else None),
    )
    note = (
        "The same items read in other ways; a finding that holds in one reading only is weak. CI: "
        "t, items as independent"
    )
    title = "Other readings of dI"
    return tabulate("readings", title, columns, rows, note, adapters=focus.shown)


def accuracy(focus: Focus) -> Table:
    """Return how often the right option comes first, under the base and under every adapter."""
    base = focus.summary.base
    rows = []
    for group, models in focus.summary.groups.items():
        rows.append(Placed(base[group].accuracy, group, "base"))
        rows += [Placed(entry.accuracy, group, adapter) for adapter, entry in models.items()]
    columns: tuple[Column[Placed[Accuracy]], ...] = (
        GROUP,
        ADAPTER,
        Column("n", "n", lambda r: base[r.group].n, "count"),
        Column("chance", "by chance", lambda r: base[r.group].accuracy_by_chance, "share"),
        Column("sum", "largest S(x|y)", lambda r: r.result.sum.share, "share"),
        Column("sum_ci95", "95 % CI", lambda r: r.result.sum.ci95, "shares"),
        Column("per_byte", "largest S(x|y) / byte", lambda r: r.result.per_byte.share, "share"),
        Column("per_byte_ci95", "95 % CI", lambda r: r.result.per_byte.ci95, "shares"),
    )
    note = (
        "Share of items whose right option comes first among its item's options: lm-eval's acc and "
        "acc_bytes where options are written alike; Wilson intervals. Accuracy and dI answer "
        "different questions: the first may be won by the prior alone"
    )
    title = "How often the right option is first"
    return tabulate("accuracy", title, columns, rows, note, adapters=focus.shown)
