"""The small language model of `problems`: what it starts with, sees and is judged on."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from problems.cases import KEY, SMALL_TEXT, leaves

from adaptive_jax import problems
from adaptive_jax.problems import language


def test_the_language_model_starts_out_knowing_nothing():
    problem = problems.language_model(**SMALL_TEXT)
    params = jax.jit(problem.init)(KEY)
    vocabulary = len(params["tokens"])
    blank = params | {"output": jnp.zeros_like(params["output"])}

    @jax.jit
    def measure(params):
        loss, gradient = jax.value_and_grad(problem.loss)(params, KEY)
        return (problem.evaluate(params), loss), gradient

    losses, gradient = measure(blank)
    np.testing.assert_allclose(losses, math.log(vocabulary), rtol=1e-5)
    # Only what the blank output multiplies has an influence.
    assert {name for name in gradient if any(leaf.any() for leaf in leaves(gradient[name]))} == {
        "output"
    }
    losses, gradient = measure(params)
    np.testing.assert_allclose(losses, math.log(vocabulary), atol=1)
    assert all(leaf.any() and np.isfinite(leaf).all() for leaf in leaves(gradient))


def test_the_language_model_looks_back_only():
    params = jax.jit(problems.language_model(**SMALL_TEXT).init)(KEY)
    tokens = jnp.arange(12)
    network = jax.jit(language._transformer)
    logits, others = network(params, tokens), network(params, tokens.at[7].set(50))
    difference = np.abs(logits - others).max(axis=1)
    assert (difference[:7] == 0).all()
    assert (difference[7:] > 1e-4).all()


def test_the_texts_held_out_are_unseen():
    vocabulary, training, validation, test = language._text()
    assert max(each.max() for each in (training, validation, test)) < vocabulary
    # What is reported is neither trained with nor selected by.
    before = training
    for held_out in (validation, test):
        assert len(held_out) > 10_000
        seen = before.tobytes()
        starts = np.random.RandomState(1).randint(len(held_out) - 64, size=100)
        repeated = sum(held_out[start : start + 64].tobytes() in seen for start in starts)
        assert repeated <= 10
        before = np.concatenate([before, held_out])


def test_what_is_selected_by_and_what_is_reported_are_other_pieces():
    problem = problems.language_model(**SMALL_TEXT)
    params = jax.jit(problem.init)(KEY)
    selected, reported = jax.jit(
        lambda params: (problem.evaluate(params), problem.reported(params))
    )(params)
    assert selected != reported
    np.testing.assert_allclose(reported, selected, rtol=0.05)
