"""The forecaster behind `--law auto`: a Bayesian average over families of curves, each allowed to be wrong far from the frontier.

`average(x, y)` gives an `Average`, whose `predict` is a mixture of Student t distributions. The model, for a run i,

    y_i = f(x_i) (1 + u_i + e_i),    e_i ~ N(0, s^2),    u ~ N(0, s^2 rho k(x_i, x_j)),

has a curve f from one of the families of `shapes`, run noise e and a misfit u that is zero at the largest fitted values and grows away
from them, backwards and forwards (`misfit`): a law is trusted near the frontier and may fail far from it, so that early rows count for
less than late ones without a window having to be chosen. Coefficients in which f is linear and the noise s are integrated out exactly
(`evidence`); what is left, exponents, breaks and the size of the misfit, is summed over a quasi-random library, drawn again where the
weight lies (`search`). Two shrinkages follow: the shares of families are moved towards their priors, and a law that the misfit shows
wrong has the fall that it predicts beyond the frontier damped. `settings` has the priors, and how they were chosen.

A new family is one function and one row in `shapes`, and its prior weight in `settings`.
"""

from scalemem.averaging.law import AUTO, estimate, law_of
from scalemem.averaging.mixture import Average, average

__all__ = ["AUTO", "Average", "average", "estimate", "law_of"]
