"""What the tests of the study of duality share: its settings, and rows of toy laws."""

from pathlib import Path

import numpy as np
from claims.asking import MODEL

from cqa.assets import STUDIES
from cqa.claims.duality.config import DualityConfig
from cqa.claims.duality.row import DualityRow

EXAMPLE = STUDIES / "duality.jsonl"


def config_of(tmp_path: Path, **changes) -> DualityConfig:
    """Return settings of the example, written to `out`."""
    given = {"model": str(MODEL), "pairs": (EXAMPLE,), "out": tmp_path / "out", "device": "cpu"}
    return DualityConfig(**{**given, **changes})


def rows_of(rng, temperature=(1.0, 0.9, 1.0), n_rows=20, n_texts=6, n_tokens=5, vocabulary=30):
    """Return rows of texts that are drawn, each law at a temperature, from laws of their own."""
    rows = []
    for k in range(n_rows):
        logits = rng.gumbel(0, 1.5, (n_tokens, vocabulary))
        logits[0].sort()
        logits[0] = logits[0, ::-1]
        logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        p = np.exp(logp)
        entropy = -(p * logp).sum(1)
        variance = (p * (logp + entropy[:, None]) ** 2).sum()
        surplus, counts = [], []
        for t in temperature:
            noise = rng.gumbel(0, 1, (n_texts, n_tokens, vocabulary))
            token = (logits / t + noise).argmax(-1)
            own = logp[np.arange(n_tokens), token]
            surplus.append(float((-own - entropy).sum()))
            counts.append(tuple(int((token[:, 0] == c).sum()) for c in range(4)))
        rows.append(
            DualityRow(
                id=f"r{k}", group="g", source_id=None, task_key=f"t{k}", model_key="m",
                adapter=None, given_nats=(0.0, 0.0), null_nats=(0.0, 0.0), reverse_nats=0.0,
                other_forward_nats=0.0, other_reverse_nats=0.0,
                nearer_shares=(0.5, 0.5), context_key=f"c{k}",
                drawn_tokens=(n_texts * n_tokens,) * 3,
                surplus_nats=tuple(surplus), varentropy_nats2=(n_texts * float(variance),) * 3,
                log_gap_nats=0.0, candidate_p=tuple(p[0, :4]), candidate_counts=tuple(counts),
                n_texts=n_texts, n_tokens=0,
            )
        )  # fmt: skip
    return rows
