"""How well log-odds of pairs tell which option is good, whatever sign a pair is written with.

Of pairs with log-odds m_i for the good option, written as good minus bad or as bad minus good by a
fair coin, the area under the ROC curve is on average over the coins

    AUC = mean over pairs i < j of [m_i + m_j > 0]     (ties count a half)

since a pair that is written one way is ranked above another written the other way if m_i > -m_j.
It is the signed-rank statistic of the log-odds but for the terms i = j, and takes no draw.
"""

from __future__ import annotations

import numpy as np

from cqa.stats.clusters import Values


def auc(odds: Values) -> float:
    """Return the AUC of pairs' log-odds; of fewer than two pairs 0.5, which tells nothing.

    Args:
        odds: (n,) for the good option of each pair, none of a pair that it was trained on.
    """
    return float(beaten(odds).mean()) if len(odds) > 1 else 0.5


def beaten(odds: Values) -> Values:
    """Return for each pair the share of the others with which its sum is above zero: (n,)."""
    ordered = np.sort(odds)
    below = np.searchsorted(ordered, -odds, side="right")
    ties = below - np.searchsorted(ordered, -odds, side="left")
    own = np.where(odds > 0, 1.0, np.where(odds < 0, 0.0, 0.5))
    found: Values = (len(odds) - below + ties / 2 - own) / (len(odds) - 1)
    return found


def shares(odds: Values) -> Values:
    """Return numbers of the pairs whose mean is the AUC and whose spread is that of the AUC.

    To first order: the AUC plus what each pair moves it by, twice its share's distance from the
    mean, as every pair is in two places of the sum. So tests of means over sources take an AUC.

    Source: Hoeffding 1948, "A class of statistics with asymptotically normal distribution".
    """
    share = beaten(odds)
    found: Values = 2 * share - share.mean()
    return found
