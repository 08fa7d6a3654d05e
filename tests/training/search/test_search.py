"""The example with Optuna: what it asks is trained in one program, and what came out is told."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import adaptive_jax as aj

optuna = pytest.importorskip("optuna")
import search_with_optuna  # noqa: E402


def test_rounds_of_trials_share_one_program(capsys, compiled):
    problem = aj.problems.quadratic(4, condition=10.0)
    train = search_with_optuna.make_train(problem, steps=20)
    study = search_with_optuna.search(train, rounds=3, trials=5, seeds=2)
    assert compiled.count("jit(_all_runs)") == 1
    assert len(study.trials) == 15
    for trial in study.trials[::4]:
        losses = [jax.jit(train)(**trial.params, seed=seed) for seed in range(2)]
        np.testing.assert_allclose(trial.value, np.mean(losses), rtol=1e-3)
    assert study.best_value == min(trial.value for trial in study.trials)
    assert "round 3" in capsys.readouterr().out


def test_a_trial_that_diverges_is_told_as_failed():
    def train(learning_rate, one_minus_b1, one_minus_b2, weight_decay, seed):
        return jax.numpy.where(learning_rate > 0.01, jax.numpy.nan, learning_rate)

    study = search_with_optuna.search(train, rounds=2, trials=8, seeds=1)
    states = [trial.state.name for trial in study.trials]
    rates = [trial.params["learning_rate"] for trial in study.trials]
    assert states == ["FAIL" if rate > 0.01 else "COMPLETE" for rate in rates]
    assert {"FAIL", "COMPLETE"} == set(states)
