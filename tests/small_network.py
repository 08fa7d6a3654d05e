"""A small network with its batch, and ways to train it: with this library, and by hand with optax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaptive_jax as aj

rng = np.random.default_rng(0)
PARAMS = {
    "hidden": jnp.asarray(rng.normal(size=(5, 8)) / 2, jnp.float32),
    "bias": jnp.zeros((1, 8)),
    "output": jnp.asarray(rng.normal(size=(8, 1)) / 2, jnp.float32),
}
INPUTS = jnp.asarray(rng.normal(size=(16, 5)), jnp.float32)
BATCH = {"inputs": INPUTS, "targets": jnp.sin(INPUTS.sum(1, keepdims=True))}


def network(params, inputs):
    return jnp.tanh(inputs @ params["hidden"] + params["bias"]) @ params["output"]


def mean_squared_error(params, batch):
    return jnp.mean(jnp.square(network(params, batch["inputs"]) - batch["targets"]))


def by_hand(tx, loss_fn, params, batches):
    """What users write around optax."""

    @jax.jit
    def step(params, opt_state, batch):
        loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state, losses = tx.init(params), []
    for batch in batches:
        params, opt_state, loss = step(params, opt_state, batch)
        losses.append(loss)
    return params, opt_state, np.array(losses)


def run(step, state, batches):
    all_metrics = []
    for batch in batches:
        state, metrics = step(state, batch)
        all_metrics.append(metrics)
    return state, all_metrics


def assert_close(got, expected, tolerance=1e-6):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), got, expected
    )


def create():
    return aj.TrainState.create(PARAMS, aj.adam(0.01))


FIT_STEP = aj.train_step(mean_squared_error)
