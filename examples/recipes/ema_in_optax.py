"""The same with optax."""

import functools

import jax
import optax
from small_model import batches, init, loss

tx, ema = optax.adam(1e-1), optax.ema(0.95)
params = init(jax.random.key(0))
state, ema_state, average = tx.init(params), ema.init(params), init(jax.random.key(0))


@functools.partial(jax.jit, donate_argnums=(0, 1, 2, 3))
def step(params, state, ema_state, average, batch):
    value, gradients = jax.value_and_grad(loss)(params, batch)
    updates, state = tx.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    average, ema_state = ema.update(params, ema_state)
    return params, state, ema_state, average, value


for batch in batches(200):
    params, state, ema_state, average, value = step(params, state, ema_state, average, batch)

(held_out,) = batches(1, 1024)
last, losses = loss(params, held_out), loss(average, held_out)
print(f"held-out loss {last:.4f} at the last parameters, {losses:.4f} at their average")
