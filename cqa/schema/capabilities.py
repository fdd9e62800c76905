"""capabilities.json: what a server was found to give before anything was scored with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cqa.schema.record import Record

Route = Literal["prompt_logprobs", "echo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities(Record):
    """The probes of a server and what they measured; it is written if all that were made passed."""

    server: str
    served_model: str
    root: str | None  # what the server says that the model was loaded from
    max_model_tokens: int | None  # of prompt and what follows, where the server says
    route: Route
    probes: dict[str, str]  # by name: "passed", or "n/a" and why
    probe_ids: tuple[int, ...]  # a prompt, and
    probe_logp_nats: tuple[float, ...]  # its log-probabilities from the second token on
    # largest differences of one token's log-probability, in nats: of the same prompt asked again,
    # after one that shares its beginning, and at temperature 1 instead of 0
    drift_repeat_nats: float
    drift_prefix_nats: float
    drift_temperature_nats: float
    change_nats: float  # what another token at one place changes there, at the most

    def problem(self) -> str | None:
        """Say if the probe has not a number for each token but the first; see `Record.problem`."""
        if len(self.probe_logp_nats) == len(self.probe_ids) - 1:
            return None
        return f"{len(self.probe_ids)} probe_ids with {len(self.probe_logp_nats)} probe_logp_nats"

    def moved_from(self, other: Capabilities) -> float | None:
        """Return by how many nats a token of the probe differs from another finding's at most.

        None if the two asked for other ids, as with another tokenizer.
        """
        if self.probe_ids != other.probe_ids:
            return None
        pairs = zip(self.probe_logp_nats, other.probe_logp_nats, strict=True)
        return max((abs(a - b) for a, b in pairs), default=0.0)

    @property
    def drift_nats(self) -> float:
        """The largest difference that a prompt had with itself."""
        return max(self.drift_repeat_nats, self.drift_prefix_nats, self.drift_temperature_nats)

    @property
    def note(self) -> str:
        """What a user should know before the server scores."""
        return (
            f"{self.served_model} at {self.server}, by {self.route}: a prompt's own "
            f"log-probabilities moved by up to {self.drift_nats:.2g} nats a token between requests"
        )
