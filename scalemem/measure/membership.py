"""Membership inference by a loss threshold: was this sequence in the training set?"""

from __future__ import annotations

import numpy as np


def attack(member: np.ndarray, fresh: np.ndarray) -> dict[str, float]:
    """How well a low loss tells members from fresh sequences of the same distribution.

    AUC = P(loss_member < loss_fresh) + P(equal) / 2. F1 = 2 TP / (2 TP + FP + FN) by two threshold rules: `mia_f1` calls half of
    the pooled sequences members (those below the median loss), so chance is .5; `mia_f1_best` takes the best threshold in
    hindsight, so chance is .667, the F1 of calling everything a member.

    Args:
      member: loss of each member, [M], any unit.
      fresh: loss of each fresh sequence, [M]; as many as members, or the two F1 mean something else.
    Returns:
      mia_auc, mia_auc_se (Hanley and McNeil's standard error), mia_f1, mia_f1_best, mia_tpr_at_fpr_1pct.
    Raises:
      ValueError: no sequences, or unequal numbers.

    >>> attack(np.array([1.0, 2.0]), np.array([3.0, 4.0]))["mia_auc"]
    1.0
    """
    n = len(member)
    if n == 0 or len(fresh) != n:
        raise ValueError(f"members = {n}, fresh = {len(fresh)}: must be equal and positive")
    loss = np.concatenate([member, fresh])
    if not np.isfinite(loss).all():
        return dict.fromkeys(("mia_auc", "mia_auc_se", "mia_f1", "mia_f1_best", "mia_tpr_at_fpr_1pct"), float("nan"))
    _, inverse, counts = np.unique(loss, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # average ranks of ties, from 1
    auc = 1 - (ranks[:n].sum() - n * (n + 1) / 2) / n**2

    # calling every distinct loss <= t a member: true and false positives at each threshold
    true = np.cumsum(np.bincount(inverse[:n], minlength=len(counts)))
    false = np.cumsum(np.bincount(inverse[n:], minlength=len(counts)))
    f1 = 2 * true / (true + false + n)
    # the threshold that calls half of them members; ties at the median are split in proportion
    k = int(np.searchsorted(true + false, n))
    before = (true[k - 1], false[k - 1]) if k else (0, 0)
    share = (n - sum(before)) / counts[k]
    half = before[0] + share * (true[k] - before[0])
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = (auc * (1 - auc) + (n - 1) * (q1 - auc**2) + (n - 1) * (q2 - auc**2)) / n**2
    return {"mia_auc": float(auc), "mia_auc_se": float(np.sqrt(max(variance, 0.0))), "mia_f1": float(half / n),
            "mia_f1_best": float(f1.max()), "mia_tpr_at_fpr_1pct": float(np.max(true[false <= 0.01 * n], initial=0) / n)}
