"""Models of scikit-learn's data, against scikit-learn and NumPy."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import sklearn.datasets
import sklearn.metrics
import sklearn.preprocessing
from problems.cases import KEY, losses_of_many_keys

from adaptive_jax import problems


def test_logistic_regression_against_scikit_learn():
    problem = problems.logistic_regression(l2=0.1)
    without = problems.logistic_regression(l2=0.0)
    data = sklearn.datasets.load_breast_cancer()
    order = np.random.RandomState(0).permutation(len(data.data))
    training, held_out, test = np.split(order, [569 * 3 // 4, 569 * 7 // 8])
    scaler = sklearn.preprocessing.StandardScaler().fit(data.data[training])
    params = {"w": jnp.linspace(-1.0, 1.0, 30), "b": jnp.array(0.5)}

    def log_loss(rows):
        logits = scaler.transform(data.data[rows]) @ np.asarray(params["w"]) + 0.5
        probabilities = 1 / (1 + np.exp(-logits))
        return sklearn.metrics.log_loss(data.target[rows], probabilities)

    assert (len(held_out), len(test)) == (71, 72)
    for each in (problem, without):
        np.testing.assert_allclose(each.evaluate(params), log_loss(held_out), rtol=1e-4)
        np.testing.assert_allclose(each.test(params), log_loss(test), rtol=1e-4)
    batches = losses_of_many_keys(without, params, 3000)
    np.testing.assert_allclose(batches.mean(), log_loss(training), rtol=0.02)
    penalty = 0.05 * np.sum(np.square(params["w"]))
    difference = problem.loss(params, KEY) - without.loss(params, KEY)
    np.testing.assert_allclose(difference, penalty, rtol=1e-5)


def test_digits_against_numpy():
    problem = problems.digits(hidden=5)
    params = jax.jit(problem.init)(KEY)
    assert [layer["w"].shape for layer in params] == [(64, 5), (5, 10)]
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    first, second = jax.tree.map(np.asarray, params)
    pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(1797)
    training, held_out, test = np.split(order, [1797 * 3 // 4, 1797 * 7 // 8])

    def cross_entropy(rows):
        activations = np.maximum(pixels[rows] / 16 @ first["w"] + first["b"], 0)
        logits = activations @ second["w"] + second["b"]
        return -np.mean(
            scipy.special.log_softmax(logits, axis=1)[np.arange(len(rows)), labels[rows]]
        )

    assert len(held_out) == len(test) == 225
    value, tested = jax.jit(lambda params: (problem.evaluate(params), problem.test(params)))(params)
    np.testing.assert_allclose(value, cross_entropy(held_out), rtol=1e-4)
    np.testing.assert_allclose(tested, cross_entropy(test), rtol=1e-4)
    batches = losses_of_many_keys(problem, params, 1000)
    np.testing.assert_allclose(batches.mean(), cross_entropy(training), rtol=0.01)


@pytest.mark.parametrize("make", [problems.logistic_regression, problems.digits])
def test_without_scikit_learn_the_error_says_what_to_install(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "adaptive_jax\[examples\]"'):
        make()
