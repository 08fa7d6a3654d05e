"""The same with optax."""

import functools

import jax
import numpy as np
import optax
from small_model import batches, init, loss

schedule = optax.warmup_cosine_decay_schedule(0.0, 0.05, 10, 100)
tx = optax.lamb(schedule, weight_decay=0.01)
params = init(jax.random.key(0))
state = tx.init(params)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def step(params, state, batch):
    def add(total, part):
        new = jax.value_and_grad(loss)(params, part)
        return jax.tree.map(lambda mean, x: mean + x / 4, total, new), None

    parts = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), batch)
    zeros = jax.tree.map(lambda x: 0 * x, params)
    (value, gradients), _ = jax.lax.scan(add, (0.0, zeros), parts)
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value


values = []
for batch in batches(100, 1024):
    params, state, value = step(params, state, batch)
    values.append(value)

losses = np.array(values)
print(f"loss {losses[0]:.4f} before, {losses[-1]:.4f} after")
