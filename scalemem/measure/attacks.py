"""Scores that membership inference thresholds: plain functions of per-token numbers, always higher for a likelier member."""

from __future__ import annotations

import zlib as compressor
from collections.abc import Sequence

import numpy as np

from scalemem.measure import membership


def loss(nats: np.ndarray) -> np.ndarray:
    """Mean log-likelihood of a token: (1 / L) sum_t log p(x_t | x_<t), from -log p, [N, L]; gives [N], nats a token."""
    return -nats.mean(-1)


def reference(nats: np.ndarray, reference_nats: np.ndarray) -> np.ndarray:
    """Log-likelihood ratio of the model to a reference that was not trained on the sequences, nats a token.

    (1 / L) sum_t (log p(x_t) - log q(x_t)): the log of the ratio of their perplexities, so rarity itself counts for nothing.

    Args:
      nats: -log p under the model, [N, L].
      reference_nats: -log q under the reference, [N, L].

    >>> reference(np.array([[1.0, 1.0]]), np.array([[3.0, 1.0]]))
    array([1.])
    """
    return (reference_nats - nats).mean(-1)


def as_bytes(tokens: np.ndarray, vocab_size: int) -> list[bytes]:
    """Token ids [N, L] as fixed-width little-endian bytes: 1, 2 or 4 a token, the fewest that hold `vocab_size` ids.

    >>> as_bytes(np.array([[1, 2]]), 257)
    [b'\\x01\\x00\\x02\\x00']
    """
    width = next(dtype for dtype, top in (("<u1", 1 << 8), ("<u2", 1 << 16), ("<u4", 1 << 32)) if vocab_size <= top)
    return [row.tobytes() for row in np.asarray(tokens).astype(width)]


def zlib_bits(texts: Sequence[bytes]) -> np.ndarray:
    """Length of each text compressed by zlib at its default level, bits [N]: a reference that needs no model."""
    return np.array([8.0 * len(compressor.compress(text)) for text in texts])


def zlib(nats: np.ndarray, compressed_bits: np.ndarray) -> np.ndarray:
    """Log-likelihood of the whole sequence over its length by zlib: sum_t log p(x_t) / bits, nats a bit.

    Some published code divides the mean by the length, which mixes a token's unit with a document's; for sequences of one length the
    two rank alike.

    Args:
      nats: -log p, [N, L].
      compressed_bits: `zlib_bits` of the same sequences, [N].
    """
    return -nats.sum(-1) / compressed_bits


def lowest(values: np.ndarray, fraction: float = 0.2) -> np.ndarray:
    """Mean of the lowest int(L fraction) values of each row, at least one, of [N, L].

    >>> lowest(np.array([[3.0, 1.0, 2.0, 9.0, 5.0]]), 0.4)
    array([1.5])
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction = {fraction}: must be above 0 and at most 1; Min-K takes 0.2")
    count = max(1, int(values.shape[-1] * fraction))
    return np.partition(values, count - 1, axis=-1)[..., :count].mean(-1)


def min_k(nats: np.ndarray, fraction: float = 0.2) -> np.ndarray:
    """Min-K%: the mean of the lowest `fraction` of the log-probabilities, nats a token; a member has no very unlikely token.

    Args:
      nats: -log p, [N, L]; a first token, of which there is no prediction, is left out.
      fraction: K / 100.
    """
    return lowest(-nats, fraction)


def standardized(nats: np.ndarray, mean: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """z = (log p(x_t) - mu) / sigma of each token, 0 where sigma is 0 (all tokens that can be are equally likely).

    Args:
      nats: -log p(x_t), any shape.
      mean: mu = sum_v p_v log p_v, nats.
      sigma: sqrt(sum_v p_v (log p_v - mu)^2), nats.
    """
    safe = np.where(sigma > 0, sigma, 1)
    return np.where(sigma > 0, (-nats - mean) / safe, 0.0)


def min_kpp(nats: np.ndarray, mean: np.ndarray, sigma: np.ndarray, fraction: float = 0.2) -> np.ndarray:
    """Min-K%++: the mean of the lowest `fraction` of the `standardized` log-probabilities; arguments [N, L], dimensionless."""
    return lowest(standardized(nats, mean, sigma), fraction)


def _shadows(phi: np.ndarray, member: np.ndarray, pooled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [N] of phi [R, N] over the shadow models where `member` [R, N] is true; nan where undefined."""
    count = member.sum(0)
    some = np.where(count > 0, count, np.nan)
    mean = np.where(member, phi, 0).sum(0) / some
    squares = np.where(member, phi - mean, 0) ** 2
    if pooled:
        freedom = np.maximum(count - 1, 0).sum()
        return mean, np.full(len(mean), np.sqrt(np.nansum(squares) / freedom) if freedom else np.nan)
    return mean, np.sqrt(squares.sum(0) / np.where(count > 1, count - 1, np.nan))


def lira_online(phi: np.ndarray, shadow_phi: np.ndarray, shadow_member: np.ndarray, pooled: bool = False) -> np.ndarray:
    """Log-likelihood ratio of a sequence's phi under two normals: of shadow models that trained on it, and of those that did not.

    log N(phi; mu_in, s_in) - log N(phi; mu_out, s_out), with phi = minus the sequence's loss.

    Args:
      phi: of each sequence under the attacked model, [N].
      shadow_phi: under each shadow model, [R, N].
      shadow_member: whether a shadow model trained on a sequence, bool [R, N].
      pooled: one s_in and one s_out for all sequences, where each has few shadow models; else each sequence has its own.
    Returns:
      scores [N], nats; nan for a sequence without enough shadow models of either kind (two; with `pooled`, one), or with no spread.

    >>> lira_online(np.array([2.0]), np.array([[2.0], [4.0], [0.0], [-2.0]]), np.array([[True], [True], [False], [False]]))
    array([2.])
    """
    def log_normal(member: np.ndarray) -> np.ndarray:
        mean, sigma = _shadows(shadow_phi, member, pooled)
        sigma = np.where(sigma > 0, sigma, np.nan)
        return -((phi - mean) ** 2) / (2 * sigma**2) - np.log(sigma)

    return log_normal(shadow_member) - log_normal(~shadow_member)


def lira_offline(phi: np.ndarray, shadow_phi: np.ndarray, pooled: bool = False) -> np.ndarray:
    """(phi - mu_out) / s_out, from shadow models of which none trained on the sequences: arguments as in `lira_online`.

    The published score is the normal distribution function of it, which ranks alike but is 1.0 in floating point beyond 8.3.
    """
    mean, sigma = _shadows(shadow_phi, np.ones(shadow_phi.shape, bool), pooled)
    return (phi - mean) / np.where(sigma > 0, sigma, np.nan)


def evaluate(score: np.ndarray, member: np.ndarray) -> dict[str, float]:
    """How well a score tells members from others: `membership.separation` of its negative.

    Args:
      score: higher for a likelier member, [N], any unit.
      member: the truth, bool [N].
    Returns:
      auc, auc_se, f1, f1_best, tpr_at_fpr_1pct, tpr_at_fpr_1permille.
    Raises:
      ValueError: no members, or none that is not.

    >>> evaluate(np.array([3.0, 1.0, 2.0]), np.array([True, False, False]))["auc"]
    1.0
    """
    member = np.asarray(member, bool)
    return membership.separation(-np.asarray(score)[member], -np.asarray(score)[~member])
