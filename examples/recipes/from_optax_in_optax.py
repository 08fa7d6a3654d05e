"""The same with optax."""

import functools

import jax
import numpy as np
import optax
from small_model import batches, init, loss

schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 20, 200)
tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
params = init(jax.random.key(0))
state = tx.init(params)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def step(params, state, batch):
    value, gradients = jax.value_and_grad(loss)(params, batch)
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value


values = []
for batch in batches(200):
    params, state, value = step(params, state, batch)
    values.append(value)

losses = np.array(values)
print(f"loss {losses[0]:.4f} before, {losses[-1]:.4f} after")
