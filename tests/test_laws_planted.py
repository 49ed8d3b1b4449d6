"""Every law finds what was planted, without noise and with; units, the order of rows and copies of rows change what they should."""

import functools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from law_rows import ROWS, columns, planted

from scalemem import laws
from scalemem.fitting import GroupFit, fit

WITH_Y = {"base_loss", "data_bits"}  # predictors in the unit of y
NUMBERS = {"epochs"}  # predictors whose unit is 1


def fitted(name: str, table: pa.Table, of_y: float = 1.0, **options) -> GroupFit:
    known: dict[str, Any] = {"noise_sd": ROWS[name][2] * of_y, "misfit_sd": 0.0} if name == "exposure" else {}  # default: that of runs
    return fit(table, name, y="y", x={k: k for k in ROWS[name][0]}, **known, **options).at()


@functools.cache
def noisy(name: str) -> GroupFit:
    return fitted(name, planted(name, ROWS[name][2], seed=1), interval=0.999)


def curve(name: str, found: GroupFit, x: dict[str, np.ndarray]) -> np.ndarray:
    law = laws.get(name)
    return law.predict(x, law.internal({k: e.value for k, e in found.parameters.items()}))


def test_every_law_has_a_planted_row():
    assert set(ROWS) == set(laws.names())


@pytest.mark.parametrize("name", laws.names())
def test_noise_free_recovery(name):
    """To 1e-8; `exposure` has its exponent integrated out with noise of 1e-7, and is as near as that lets it be."""
    x, values, _ = ROWS[name]
    known: dict[str, Any] = {"noise_sd": 1e-7, "misfit_sd": 0.0} if name == "exposure" else {}
    found = fit(planted(name), name, y="y", x={k: k for k in x}, **known).at()
    assert {k: e.value for k, e in found.parameters.items()} == pytest.approx(values, rel=1e-5 if name == "exposure" else 1e-8)
    assert all(e.status == "ok" for e in found.parameters.values())
    assert 4 * found.agreeing > found.tried  # not by the luck of one start


@pytest.mark.parametrize("name", laws.names())
def test_noisy_recovery(name):
    """Each planted value lies inside its 99.9 % interval, which is short of being trivial."""
    for k, e in noisy(name).parameters.items():
        assert e.status == "ok"
        assert e.low < ROWS[name][1][k] < e.high
        assert e.high - e.low < 2.5 * abs(ROWS[name][1][k])


@pytest.mark.parametrize("name", [name for name in laws.names() if laws.get(name).shape is None])  # else an exponent is integrated out
def test_intervals_are_about_six_standard_errors_wide(name):
    """Width of the 99.9 % interval against the curvature at the planted values, the noise being known: t is 3.3 to 5 as rows grow few."""
    law, (_, values, sd) = laws.get(name), ROWS[name]
    theta = law.internal(values)
    jacobian = law.gradient(columns(name), theta)
    jacobian = np.broadcast_to(jacobian, (len(columns(name)["1"]), len(theta)))
    expected = sd * np.sqrt(np.diag(np.linalg.inv(jacobian.T @ jacobian)))
    for p, error in zip(law.parameters, expected, strict=True):
        e = noisy(name).parameters[p.name]
        low, high = (np.log([e.low, e.high]) if p.log else (e.low, e.high))
        assert 4 < (high - low) / error < 13


@pytest.mark.parametrize("name", laws.names())
def test_rows_of_another_order_give_the_same_bits(name):
    table = planted(name, ROWS[name][2], seed=1)
    shuffled = table.take(np.random.default_rng(3).permutation(table.num_rows))
    again = fitted(name, shuffled, interval=0.999)
    assert again.parameters == noisy(name).parameters
    assert again.objective == noisy(name).objective


@pytest.mark.parametrize("name", laws.names())
@settings(max_examples=2, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(data=st.data())
def test_units_change_only_units(name, data):
    """y' = k y and x' = m x: the curve is k times as high and no exponent moves, whatever k and m."""
    law, unit = laws.get(name), st.floats(-6, 6).map(lambda v: float(np.exp(v)))
    score = name == "membership_sigmoid"  # its y has no unit, so its bits may have any
    of_y = 1.0 if score else data.draw(unit, label="y")
    factors = {k: of_y if k in WITH_Y and not score else 1.0 if k in NUMBERS else data.draw(unit, label=k) for k in ROWS[name][0]}
    table = planted(name, ROWS[name][2], seed=1)
    scaled = pa.table({"y": table["y"].to_numpy() * of_y, **{k: table[k].to_numpy() * v for k, v in factors.items()}})
    found = fitted(name, scaled, of_y, interval=0.999)
    moved = {k: v * factors.get(k, 1.0) for k, v in columns(name).items()}
    shift = np.log(of_y) if law.scale == "log" else 0.0
    was = curve(name, noisy(name), columns(name))
    tolerance = 2e-3 if name == "exposure" else 1e-6
    np.testing.assert_allclose(curve(name, found, moved), was + shift if law.scale == "log" else was * of_y, rtol=tolerance,
                               atol=tolerance * np.abs(was).max() * (1.0 if law.scale == "log" else of_y))
    for p in law.parameters:
        if p.unit == "1":
            assert found.parameters[p.name].value == pytest.approx(noisy(name).parameters[p.name].value, rel=max(1e-4, tolerance))


@pytest.mark.parametrize("name", [n for n in laws.names() if laws.get(n).shape is None])
@settings(max_examples=1, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(row=st.integers(0, 7))
def test_a_duplicate_row_is_a_row_of_weight_two(name, row):
    table = planted(name, ROWS[name][2], seed=1)
    weights = np.where(np.arange(table.num_rows) == row, 2, 1)
    weighted = fitted(name, table.append_column("w", pa.array(weights)), weights="w")
    twice = fitted(name, pa.concat_tables([table, table.slice(row, 1)]))
    assert {k: e.value for k, e in weighted.parameters.items()} == pytest.approx({k: e.value for k, e in twice.parameters.items()}, rel=1e-6)
    assert weighted.objective == pytest.approx(twice.objective, rel=1e-9)
    assert weighted.objective != noisy(name).objective
    assert weighted.n_rows == table.num_rows + 1
