"""States that are saved, what goes on from them, and their bits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import adaptive_jax as aj

PARAMS = {
    "w": jnp.arange(1.0, 33.0).reshape(8, 4) / 32,
    "low": jnp.ones(3, jnp.bfloat16),
    "empty": jnp.ones((0, 2)),
    "a/b": [jnp.ones(2), None],
}


def loss(params, batch, rng):
    noisy = [x.astype(jnp.float32) * jax.random.normal(rng) for x in jax.tree.leaves(params)]
    return batch * sum(jnp.sum(jnp.square(x)) for x in noisy)


def create(tx, params=PARAMS, **settings):
    return aj.TrainState.create(params, tx, rng=jax.random.key(1), **settings)


def bits(tree):
    leaves = [jax.random.key_data(x) if is_key(x) else x for x in jax.tree.leaves(tree)]
    return [np.asarray(x).tobytes() for x in leaves]


def is_key(x):
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


SMALL = {"w": jnp.ones((4, 2)), "b": jnp.ones(2)}
STEPS = 3


def small_loss(params, batch):
    return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(params))


SMALL_STEP = aj.train_step(small_loss, metrics=("loss",))


def resumed(directory, old, new, steps=STEPS, **settings):
    """A state of the new optimizer that goes on after a few steps of the old one, and that one's."""
    with jax.numpy_dtype_promotion("standard"):  # For optax.
        state = aj.TrainState.create(SMALL, old)
        for _ in range(steps):
            state, _ = SMALL_STEP(state, None)
        aj.save_checkpoint(directory, state)
        again = aj.restore_checkpoint(directory, aj.TrainState.create(SMALL, new), **settings)
    return state, again


def goes_on(state):
    """The optimizer takes its state."""
    with jax.numpy_dtype_promotion("standard"):
        _, new = jax.eval_shape(state.tx.update, state.params, state.opt_state, state.params)
    assert jax.tree.structure(new) == jax.tree.structure(state.opt_state)
