"""Fine-tuning stopped where the target's loss is least, by hand; and which form replay takes, planted."""

import numpy as np
import pyarrow as pa
import pytest

from scalemem.analyses import early_stop
from scalemem.spec import SpecError
from scalemem.tables import RowsError


def tables():
    """Two runs of one seed and size, without and with replay; the target's loss is least at step 2 and at step 4."""
    curves = {"plain": ([2.0, 2.5, 3.0, 3.5], [4.0, 3.0, 3.2, 3.6]), "replayed": ([2.0, 2.1, 2.2, 2.4], [4.0, 3.5, 3.03, 3.3])}
    rows = [{"run_id": run, "seed": 0, "n_params": 10, "stage": 1, "stage_step": step, "domain": domain, "loss_nats": losses[domain][i]}
            for run, losses in curves.items() for i, step in enumerate((0, 2, 4, 8)) for domain in (0, 1)]
    rows += [{**rows[0], "stage": 0, "loss_nats": 9.0}]
    runs = [{"run_id": run, "seed": 0, "n_params": 10, "seq_len": 16, "stage1_n_items": 64, "stage1_replay_fraction": p}
            for run, p in (("plain", 0.0), ("replayed", 0.25))]
    return {"domains": pa.Table.from_pylist(rows), "runs": pa.Table.from_pylist(runs)}


def test_by_hand():
    plain, replayed = early_stop.analyse(tables()).to_pylist()
    assert (plain["stop_steps"], plain["last_steps"], plain["unique_tokens"]) == (2, 8, 1024)
    assert (plain["base_loss_nats"], plain["old_loss_nats"], plain["increase_nats"], plain["target_loss_nats"]) == (2.0, 2.5, 0.5, 3.0)
    assert replayed["stop_steps"] == 4
    assert replayed["increase_nats"] == pytest.approx(0.2)
    assert replayed["removed_fraction"] == pytest.approx(0.6)
    assert replayed["target_excess_fraction"] == pytest.approx(0.01)


def planted(form, seeds=3):
    rng, rows = np.random.default_rng(0), []
    for seed in range(seeds):
        for n in (1e3, 4e3, 16e3):
            for d in (1e3, 8e3):
                for p in (0.0, 0.01, 0.1, 0.5):
                    plain = 0.4 * (d / 8e3) ** 0.4 * (n / 16e3) ** -0.3
                    y = plain * (1 + 30 * p) ** -0.3 if form == "coupled" else plain - 0.25 * p
                    rows.append({"seed": seed, "n_params": n, "unique_tokens": d, "replay_fraction": p, "increase_nats": y + 0.004 * rng.normal()})
    return {"early_stop": pa.Table.from_pylist(rows)}


@pytest.mark.parametrize("form", ["coupled", "additive"])
def test_the_form_that_was_planted_is_the_better_one(form):
    found = early_stop.forms(planted(form)).to_pydict()
    gains = found["aic_gain_nats"]
    assert all(g > 5 for g in gains) if form == "coupled" else all(g < -5 for g in gains)
    assert max(found[f"{form}_rmse_nats"]) < 0.006
    assert found["n_count"] == [24] * 3


def test_what_is_missing_is_one_line():
    given: dict = tables()
    for change, options, error, said in (({}, {"target": 5}, RowsError, "domain 5"), ({}, {"stage": 3}, RowsError, "no row"),
                                         ({"domains": None}, {}, SpecError, "must be one of")):
        left = {k: v for k, v in {**given, **change}.items() if v is not None}
        with pytest.raises(error, match=said) as raised:
            early_stop.analyse(left, **options)  # type: ignore[arg-type]
        assert len(str(raised.value).splitlines()) == 1
    with pytest.raises(RowsError, match="at least 6"):
        early_stop.forms(planted("coupled"), where="n_params == 1000 and unique_tokens == 1000")
