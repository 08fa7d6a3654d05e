"""Every problem by its name, small ones where size makes no difference, and how they are measured."""

from __future__ import annotations

import jax
import numpy as np

from adaptive_jax import problems

KEY = jax.random.key(0)
SMALL_TEXT = {"layers": 1, "width": 32, "length": 12, "batch": 4}
MAKERS = {
    **{make().name: make for make in problems.TEST_FUNCTIONS},
    "quadratic": problems.quadratic,
    "diagonal": lambda: problems.quadratic(dimension=7, rotation=False),
    "noisy quadratic": lambda: problems.quadratic(noise=0.1),
    "quadratic_deep": problems.quadratic_deep,
    "matrix regression": problems.matrix_regression,
    "noisy matrix regression": lambda: problems.matrix_regression(6, 4, noise=0.1),
    "logistic regression": problems.logistic_regression,
    "digits": problems.digits,
    "convolutional network": lambda: problems.convolutional_network(channels=2, batch=8),
    "residual network": lambda: problems.residual_network(channels=2, blocks=1, batch=8),
    "autoencoder": problems.autoencoder,
    "policy gradient": lambda: problems.policy_gradient(side=3),
    "language model": lambda: problems.language_model(**SMALL_TEXT),
}


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def losses_of_many_keys(problem, params, count):
    return jax.jit(jax.vmap(problem.loss, in_axes=(None, 0)))(params, jax.random.split(KEY, count))


def same(tree, other):
    return all(map(np.array_equal, leaves(tree), leaves(other)))
