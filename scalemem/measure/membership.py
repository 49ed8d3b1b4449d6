"""Membership inference by a threshold on a loss: was this sequence in the training set?"""

from __future__ import annotations

import numpy as np

COLUMNS = ("auc", "auc_se", "f1", "f1_best", "tpr_at_fpr_1pct", "tpr_at_fpr_1permille")


def attack(member: np.ndarray, fresh: np.ndarray) -> dict[str, float]:
    """How well a low loss tells members from as many fresh sequences of the same distribution.

    Args:
      member: loss of each member, [M], any unit.
      fresh: loss of each fresh sequence, [M].
    Returns:
      mia_auc, mia_auc_se, mia_f1, mia_f1_best, mia_tpr_at_fpr_1pct, as `separation` has them.
    Raises:
      ValueError: no sequences, or unequal numbers.

    >>> attack(np.array([1.0, 2.0]), np.array([3.0, 4.0]))["mia_auc"]
    1.0
    """
    n = len(member)
    if n == 0 or len(fresh) != n:
        raise ValueError(f"members = {n}, fresh = {len(fresh)}: must be equal and positive")
    return {f"mia_{name}": value for name, value in separation(member, fresh).items() if name != "tpr_at_fpr_1permille"}


def separation(member: np.ndarray, fresh: np.ndarray) -> dict[str, float]:
    """How well a low value tells members from fresh sequences, of which there may be more or fewer.

    AUC = P(member < fresh) + P(equal) / 2. F1 = 2 TPR / (TPR + FPR + 1): each kind weighs the same, so that the numbers of the two do
    not matter (with equal numbers it is 2 TP / (2 TP + FP + FN)). Two threshold rules: `f1` calls half of the weight members (what is
    below the weighted median), so chance is .5; `f1_best` takes the best threshold in hindsight, so chance is .667, the F1 of calling
    everything a member. The true positive rates are at the lowest threshold of which the false positive rate is within the limit.

    Args:
      member: a value of each member, [M], any unit.
      fresh: the value of each fresh sequence, [F].
    Returns:
      auc, auc_se (Hanley and McNeil's standard error), f1, f1_best, tpr_at_fpr_1pct, tpr_at_fpr_1permille; all nan if a value is nan.
    Raises:
      ValueError: no members, or no fresh sequences.

    >>> separation(np.array([1.0, 2.0]), np.array([3.0, 4.0, 1.5]))["f1_best"]
    0.8571428571428571
    """
    m, f = len(member), len(fresh)
    if m == 0 or f == 0:
        raise ValueError(f"members = {m}, fresh = {f}: must be positive; give sequences of both kinds")
    value = np.concatenate([member, fresh])
    if not np.isfinite(value).all():
        return dict.fromkeys(COLUMNS, float("nan"))
    _, inverse, counts = np.unique(value, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # average ranks of ties, from 1
    auc = 1 - (ranks[:m].sum() - m * (m + 1) / 2) / (m * f)

    # calling every distinct value <= t a member: true and false positives at each threshold
    true = np.cumsum(np.bincount(inverse[:m], minlength=len(counts)))
    false = np.cumsum(np.bincount(inverse[m:], minlength=len(counts)))
    # the threshold that calls half of the weight members, in units of 1 / (m f); ties there are split in proportion
    weight = true * f + false * m
    k = int(np.searchsorted(weight, m * f))
    before = (true[k - 1], weight[k - 1]) if k else (0, 0)
    half = before[0] + (m * f - before[1]) / (weight[k] - before[1]) * (true[k] - before[0])
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = (auc * (1 - auc) + (m - 1) * (q1 - auc**2) + (f - 1) * (q2 - auc**2)) / (m * f)
    return {"auc": float(auc), "auc_se": float(np.sqrt(max(variance, 0.0))), "f1": float(half / m),
            "f1_best": float((2 * true * f / (weight + m * f)).max()),
            **{name: float(np.max(true[false <= limit * f], initial=0) / m) for name, limit in zip(COLUMNS[4:], (0.01, 0.001), strict=True)}}
