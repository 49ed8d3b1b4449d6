"""Tasks of linear regression learned one after another, simulated: a measure that reads neither the weights nor the data of its run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scalemem.measure.moment import Moment
from scalemem.models import Params
from scalemem.spec import RunSpec, SpecError

EXACT = 8  # sequences of tasks on which learners are compared
CHUNK = 1 << 21  # numbers of X at a time


def measure(run: RunSpec, params: Params, data_key: Any, fresh_key: Any, moment: Moment) -> dict[str, Any]:
    """Forgetting of least squares over a sequence of tasks, by simulation, and of the ideal continual learner.

    Fields of the run say what is simulated: p = model.d_model weights, n = data.n_items examples a task, T = data.domains tasks,
    noise = data.noise, and w*_i w*_j = data.similarity between any two of the true unit vectors. Its transformer is not used.

    Args:
      run: of n + 1 < p and T < p.
      params, data_key: not used.
      fresh_key: of the draws, with the numbers above.
      moment: `most` sequences of tasks are simulated.
    Returns:
      of the run: tasks_count, noise_ratio, similarity_fraction; forgetting_simulated_ratio and generalisation_simulated_ratio, F_T and G_T of
      `scalemem.analyses.linear_tasks` in units of ||w*||^2, means over the sequences, with their standard errors (_error_ratio); and those of
      `learners`, a row a task.
    Raises:
      SpecError: other n or T.
    """
    import jax

    del params, data_key
    data, p = run.stages[0].data, run.model.d_model
    if data.n_items + 1 >= p or data.domains >= p:
        raise SpecError(f"data.n_items, data.domains = {data.n_items}, {data.domains}: must be below {p - 1} and {p}, for model.d_model = {p} "
                        "weights; lower them or widen the model")
    numbers = (p, data.n_items, data.domains, round(1e6 * data.noise), round(1e6 * data.similarity))
    rng = np.random.default_rng([*np.asarray(jax.random.key_data(fresh_key)).ravel().tolist(), *numbers])
    truth = targets(p, data.domains, data.similarity)
    forgotten, overall = simulate(rng, truth, data.n_items, data.noise, moment.most)
    return {"tasks_count": float(data.domains), "noise_ratio": data.noise, "similarity_fraction": data.similarity,
            "forgetting_simulated_ratio": float(forgotten.mean()), "forgetting_error_ratio": _error(forgotten),
            "generalisation_simulated_ratio": float(overall.mean()), "generalisation_error_ratio": _error(overall),
            **learners(rng, truth, data.n_items, data.noise, EXACT)}


def targets(p: int, tasks: int, similarity: float) -> np.ndarray:
    """Unit vectors w*_i with w*_i w*_j = similarity, [T, p]: what they share is the first axis, and each has one of its own.

    >>> np.round(targets(3, 2, 0.25) @ targets(3, 2, 0.25).T, 2).tolist()
    [[1.0, 0.25], [0.25, 1.0]]
    """
    own = np.zeros((tasks, p))
    own[:, 0] = math.sqrt(similarity)
    own[np.arange(tasks), 1 + np.arange(tasks)] = math.sqrt(1 - similarity)
    return own


def fitted(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The nearest points to w [..., p] with X' w = y, for X [..., p, n] and y [..., n]: w + X (X'X)^-1 (y - X' w)."""
    xt = np.swapaxes(x, -1, -2)
    miss = y[..., None] - xt @ w[..., None]
    return w + (x @ np.linalg.solve(xt @ x, miss))[..., 0]


def simulate(rng: np.random.Generator, truth: np.ndarray, n: int, noise: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """F_T and G_T of `count` sequences of tasks, each [count], from w_0 = 0.

    Args:
      rng: of the draws X_t ~ N(0, 1) [p, n] and z_t ~ N(0, noise^2) [n].
      truth: w*_t [T, p]; task t is y_t = X_t' w*_t + z_t.

    Source: the setting of Lin et al. 2023 (ICML), shared/literature/forgetting.md 4.6.
    """
    tasks, p = truth.shape
    most, found = max(1, CHUNK // (p * n)), []
    for left in range(count, 0, -most):
        rows = min(left, most)
        w, then = np.zeros((rows, p)), np.zeros((rows, tasks))
        for t in range(tasks):
            x = rng.standard_normal((rows, p, n))
            w = fitted(w, x, np.swapaxes(x, 1, 2) @ truth[t] + noise * rng.standard_normal((rows, n)))
            then[:, t] = np.sum((w - truth[t]) ** 2, 1)
        end = np.sum((w[:, None] - truth) ** 2, 2)
        found.append(((end - then)[:, :-1].mean(1), end.mean(1)))
    forgotten, overall = (np.concatenate(v) for v in zip(*found, strict=True))
    return forgotten, overall


class Ideal:
    """The ideal continual learner of linear regression: each task is fitted among the points that leave what was learned as it is.

    `w` [p] is the solution of least norm, `free` [p, k] an orthonormal basis of the directions that no task has used.

    Source: Peng et al. 2023 (ICML), from memory, unverified; shared/literature/forgetting.md 4.7.
    """

    def __init__(self, p: int):
        self.w, self.free = np.zeros(p), np.eye(p)

    def learn(self, x: np.ndarray, y: np.ndarray) -> None:
        """Least squares of X' w = y, X [p, n] and y [n], in w + span(free); then the directions that it used are no longer free."""
        if not self.free.shape[1]:
            return
        u, s, vt = np.linalg.svd(x.T @ self.free)
        rank = int(np.sum(s > 1e-10 * s.max(initial=0)))
        self.w = self.w + self.free @ (vt[:rank].T @ ((u[:, :rank].T @ (y - x.T @ self.w)) / s[:rank]))
        self.free = self.free @ vt[rank:].T


def learners(rng: np.random.Generator, truth: np.ndarray, n: int, noise: float, count: int) -> dict[str, np.ndarray]:
    """What three learners have lost of their data after each of T tasks, means over `count` sequences, [T] each.

    A loss is the mean square of the residuals over that of y. Arguments as of `simulate`.

    Returns:
      task_count = t and samples_per_param_ratio = t n / p; ideal_old_loss_ratio and sequential_old_loss_ratio on the tasks before t, of
      `Ideal` and of `fitted` (0 for t = 1); ideal_new_loss_ratio on task t; joint_loss_ratio of least squares on all tasks up to t; and
      ideal_distance_ratio = ||w_ideal - w_joint|| / ||w_joint||, of the solutions of least norm.
    """
    tasks, p = truth.shape
    found = np.zeros((5, count, tasks))
    for c in range(count):
        ideal, w = Ideal(p), np.zeros(p)
        xs, ys = np.zeros((p, 0)), np.zeros(0)
        for t in range(tasks):
            x = rng.standard_normal((p, n))
            y = x.T @ truth[t] + noise * rng.standard_normal(n)
            ideal.learn(x, y)
            w, old = fitted(w, x, y), (xs, ys)
            xs, ys = np.concatenate([xs, x], 1), np.concatenate([ys, y])
            joint = np.linalg.lstsq(xs.T, ys, rcond=None)[0]
            found[:, c, t] = (_loss(ideal.w, *old), _loss(w, *old), _loss(ideal.w, x, y), _loss(joint, xs, ys),
                              np.linalg.norm(ideal.w - joint) / np.linalg.norm(joint))
    names = ("ideal_old_loss_ratio", "sequential_old_loss_ratio", "ideal_new_loss_ratio", "joint_loss_ratio", "ideal_distance_ratio")
    t = np.arange(1, tasks + 1)
    return {"task_count": t, "samples_per_param_ratio": t * n / p, **dict(zip(names, found.mean(1), strict=True))}


def _loss(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    return float(np.sum((y - x.T @ w) ** 2) / np.sum(y**2)) if len(y) else 0.0


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))
