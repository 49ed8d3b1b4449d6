"""How well a score ranks members above others, and one set contains another; for any numbers of each, ties in proportion."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

RATES = ("n_members_count", "n_others_count", "auc", "auc_se", "f1", "f1_best", "tpr_at_fpr_1pct", "tpr_at_fpr_0p1pct")  # what `evaluate` gives


class Ranking(NamedTuple):
    """Counts of those at or above each distinct score, the highest first: `true` of members, `false` of others."""

    true: np.ndarray
    false: np.ndarray


def ranking(score: np.ndarray, member: np.ndarray) -> Ranking:
    """Cumulative counts over distinct scores; ValueError for scores that are NaN.

    >>> ranking(np.array([3.0, 2.0, 2.0]), np.array([True, True, False])).true.tolist()
    [1, 2]
    """
    score, member = np.asarray(score, float), np.asarray(member, bool)
    if np.isnan(score).any():
        raise ValueError(f"score {int(np.argmax(np.isnan(score))) + 1} of {len(score)} = nan: must be a number; leave such sequences out")
    _, inverse = np.unique(-score, return_inverse=True)
    width = int(inverse.max()) + 1 if len(score) else 0
    return Ranking(np.cumsum(np.bincount(inverse[member], minlength=width)), np.cumsum(np.bincount(inverse[~member], minlength=width)))


def evaluate(score: np.ndarray, member: np.ndarray) -> dict[str, float]:
    """An attack's ranking of M members and N others.

    AUC = P(score_member > score_other) + P(equal) / 2. F1 = 2 TP / (2 TP + FP + FN): `f1` calls the M highest members, ties in proportion,
    so that it is the precision and the recall, too, and chance is M / (M + N); `f1_best` takes the best threshold in hindsight.
    TPR at a FPR of x is the largest share of members found while at most a share x of the others is: no interpolation.

    Args:
      score: [M + N], higher is more likely a member, any unit.
      member: bool [M + N].
    Returns:
      n_members_count, n_others_count, auc, auc_se (Hanley and McNeil's standard error), f1, f1_best, tpr_at_fpr_1pct, tpr_at_fpr_0p1pct;
      NaN where there are no members or no others.
    Raises:
      ValueError: a score is NaN.

    >>> evaluate(np.array([2.0, 1.0, 0.0]), np.array([True, False, False]))["auc"]
    1.0

    Source: Carlini et al. 2022, for the two rates (from memory, unverified).
    """
    true, false = ranking(score, member)
    members, others = int(np.sum(member)), len(member) - int(np.sum(member))
    names = ("auc", "auc_se", "f1", "f1_best", "tpr_at_fpr_1pct", "tpr_at_fpr_0p1pct")
    counts = {"n_members_count": members, "n_others_count": others}
    if not members or not others:
        return counts | dict.fromkeys(names, math.nan)
    step = np.diff(true, prepend=0)
    auc = float(np.sum(step * (others - (false + np.append(0, false[:-1])) / 2))) / (members * others)
    called = true + false
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = (auc * (1 - auc) + (members - 1) * (q1 - auc**2) + (others - 1) * (q2 - auc**2)) / (members * others)
    found = [float(np.max(true[false <= rate * others], initial=0)) / members for rate in (0.01, 0.001)]
    half = float(np.interp(members, np.append(0, called), np.append(0, true))) / members
    return counts | dict(zip(names, (auc, math.sqrt(max(variance, 0.0)), half, float(np.max(2 * true / (called + members))), *found), strict=True))


def agreement(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1 of one set for another, both bool [n]; NaN where nothing is found, or nothing is there to find.

    >>> agreement(np.array([True, True, False]), np.array([True, False, False]))
    {'precision': 0.5, 'recall': 1.0, 'f1': 0.666...}
    """
    both, predicted, there = (int(np.sum(x)) for x in (found & truth, found, truth))
    return {"precision": both / predicted if predicted else math.nan, "recall": both / there if there else math.nan,
            "f1": 2 * both / (predicted + there) if predicted + there else math.nan}


def average_precision(score: np.ndarray, member: np.ndarray) -> float:
    """Precision averaged over the members, at the threshold that just includes each: sum_b (R_b - R_(b-1)) P_b over distinct scores.

    >>> average_precision(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]))
    0.833...
    """
    true, false = ranking(score, member)
    return float(np.sum(np.diff(true, prepend=0) * true / (true + false)) / true[-1]) if len(true) and true[-1] else math.nan


def recall_at(score: np.ndarray, member: np.ndarray, precision: float) -> float:
    """The recall of the longest prefix of the ranking whose precision is at least `precision`; a prefix does not part ties.

    >>> recall_at(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]), 0.6)
    1.0
    """
    true, false = ranking(score, member)
    if math.isnan(precision) or not len(true) or not true[-1]:
        return math.nan
    return float(np.max(true[true / (true + false) >= precision - 1e-12], initial=0)) / float(true[-1])


def correlation(x: np.ndarray, y: np.ndarray, ranks: bool = False) -> float:
    """Pearson's correlation, or Spearman's (of average ranks); NaN where one of them does not vary or fewer than 2 are left.

    >>> round(correlation(np.array([1.0, 2.0, 9.0]), np.array([1.0, 4.0, 5.0]), ranks=True), 12)
    1.0
    """
    from scipy.stats import rankdata

    x, y = (rankdata(v) if ranks else np.asarray(v, float) for v in (x, y))
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))
