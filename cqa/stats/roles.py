"""Which group the question is about, and which one it is compared with."""

from __future__ import annotations

from collections.abc import Collection

from cqa.errors import ConfigError
from cqa.schema.summary import Roles
from cqa.stats.config import AnalysisConfig

PRIMARY, CONTROL = "literary", "factual"  # the paper's groups


def choose_roles(groups: Collection[str], config: AnalysisConfig) -> Roles:
    """Return the roles of the groups: those that were named, else those of the paper's names.

    Where neither says which group the question is about, the first one is taken, and the caveat
    says so; there is then no control but one of that name.

    Args:
        groups: The groups of pairs, in the order of the items.
        config: Names the groups, or leaves them open.

    Raises:
        ConfigError: A named group is not there.
    """
    for flag, name in (("--primary", config.primary), ("--control", config.control)):
        if name is not None and name not in groups:
            held = ", ".join(groups) or "there is none"
            raise ConfigError(f"expected {flag} to name a group of pairs ({held}), got: {name}")
    primary, control = config.primary, config.control
    if primary is None:
        free = [group for group in groups if group != control]
        primary = PRIMARY if PRIMARY in free else next(iter(free), None)
    if control is None and primary != CONTROL and CONTROL in groups:
        control = CONTROL
    guessed = []
    if len(groups) > 1 and config.primary is None and primary != PRIMARY:
        guessed.append(f"{primary} is taken as the subject, as none was named (--primary names it)")
    if len(groups) > 1 and control is None:
        guessed.append(f"no control was found among {', '.join(groups)} (--control names it)")
    return Roles(primary, control, "; ".join(guessed) or None)
