"""Rows of rules/factored.py."""

from __future__ import annotations

import importlib
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaptive_jax as aj

from .row import AGREES, Departure, apart, updates_of

GRADIENTS = jnp.asarray(np.random.default_rng(0).normal(size=(20, 8, 6)), jnp.float32)
PARAMS = jnp.asarray(np.random.default_rng(1).normal(size=(8, 6)), jnp.float32)
LAST = {"min_dim_size_to_factor": 0, "factored_axes": "last"}


def rate_of_torch(count):
    return jnp.minimum(1.0, 1 / jnp.sqrt(count.astype(jnp.float32) + 1))


def factored_rms_of_optax():
    for size in (2, 128):
        ours, theirs = (
            updates_of(x.scale_by_factored_rms(min_dim_size_to_factor=size), GRADIENTS, PARAMS)
            for x in (aj, optax)
        )
        assert apart(ours, theirs) < 2e-6


def relative_step_of_optax():
    one = jnp.ones((2, 2))
    (theirs,), (ours,) = (updates_of(x.adafactor(), one[None], one) for x in (optax, aj))
    np.testing.assert_allclose(theirs, -1.0, rtol=1e-6)
    np.testing.assert_allclose(ours, -0.01, rtol=1e-6)
    (given, here) = (updates_of(x.adafactor(0.1), GRADIENTS, PARAMS) for x in (optax, aj))
    assert apart(here, given) < 2e-6


def weight_decay_of_optax():
    zeros, one = jnp.zeros((1, 2, 2)), jnp.ones((2, 2))
    (theirs,) = updates_of(optax.adafactor(1e-6, weight_decay_rate=0.1), zeros, one)
    (ours,) = updates_of(aj.adafactor(1e-6, weight_decay=0.1), zeros, one)
    np.testing.assert_allclose(theirs, -0.1, rtol=1e-6)
    np.testing.assert_allclose(ours, -1e-7, rtol=1e-6)


def in_torch(gradients, params, **settings):
    """What `torch.optim.Adafactor` adds to parameters in each step."""
    import torch

    param = torch.nn.Parameter(torch.tensor(np.asarray(params)))
    optimizer, updates = torch.optim.Adafactor([param], **settings), []
    for gradient in gradients:
        before = param.detach().numpy().copy()
        param.grad = torch.tensor(np.asarray(gradient))
        optimizer.step()
        updates.append(param.detach().numpy() - before)
    return updates


def rate_in_torch():
    """A rate of 1 is 1/√t there; as a schedule, both are the same."""
    theirs = in_torch(GRADIENTS, PARAMS, lr=1.0)
    assert apart(updates_of(aj.adafactor(rate_of_torch, **LAST), GRADIENTS, PARAMS), theirs) < 5e-6
    assert apart(updates_of(aj.adafactor(1.0, **LAST), GRADIENTS, PARAMS), theirs) > 0.5


def eps_in_torch():
    tiny = jnp.full((1, 2, 2), 1e-9)
    (theirs,) = in_torch(tiny, jnp.ones((2, 2)), lr=0.01)
    (ours,) = updates_of(aj.adafactor(), tiny, jnp.ones((2, 2)))
    np.testing.assert_allclose(theirs, -8.4e-5, rtol=0.02)
    np.testing.assert_allclose(ours, -0.01, rtol=1e-5)


def keras_on_jax():
    """Keras, on a backend that is here."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    return importlib.import_module("keras")


def in_keras(optimizer, gradients, params):
    """What an optimizer of Keras adds to parameters in each step, and the numbers that it keeps."""
    keras = keras_on_jax()

    variable = keras.Variable(np.asarray(params))
    optimizer.build([variable])
    updates = []
    for gradient in gradients:
        before = np.array(variable.value)
        optimizer.apply([keras.ops.convert_to_tensor(np.asarray(gradient))], [variable])
        updates.append(np.array(variable.value) - before)
    return updates, sum(int(np.prod(x.shape)) for x in optimizer.variables)


def adafactor_of_keras():
    keras = keras_on_jax()

    theirs, kept = in_keras(keras.optimizers.Adafactor(1.0, relative_step=False), GRADIENTS, PARAMS)
    ours = updates_of(aj.adafactor(rate_of_torch, **LAST), GRADIENTS, PARAMS)
    assert apart(ours, theirs) < 5e-6
    assert kept == 8 * 6 + 8 + 6 + 2
    state = jax.eval_shape(aj.adafactor(0.1, **LAST).init, PARAMS)
    assert sum(x.size for x in jax.tree.leaves(state)) == 8 + 6 + 2


DEPARTURES = [
    Departure("scale_by_factored_rms", "optax", AGREES, factored_rms_of_optax),
    Departure(
        "adafactor", "optax", "learning_rate=None is no relative step: ρ = 1, a step of RMS(θ)",
        relative_step_of_optax,
    ),
    Departure(
        "adafactor", "optax", "its weight decay is not times the learning rate", weight_decay_of_optax
    ),
    Departure("adafactor", "torch", "always min(η, 1/√t) for η, fixed rates too", rate_in_torch, slow=True),
    Departure(
        "adafactor", "torch", "ε₁ is the epsilon of the dtype, and √V ≥ ε₁: small steps of small gradients",
        eps_in_torch, slow=True,
    ),
    Departure(
        "adafactor", "keras", "always min(η, 1/√t); keeps V itself, so that no memory is saved",
        adafactor_of_keras, slow=True,
    ),
]  # fmt: skip
