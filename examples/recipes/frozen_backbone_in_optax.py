"""The same with optax."""

import functools

import jax
import numpy as np
import optax
from small_model import batches, init, loss

labels = {"layer_0": "backbone", "layer_1": "backbone", "head": "head"}
head = optax.adam(1e-2)
frozen = optax.partition({"backbone": optax.set_to_zero(), "head": head}, labels)
trained = optax.partition({"backbone": optax.adam(1e-3), "head": head}, labels)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def step(tx, params, state, batch):
    value, gradients = jax.value_and_grad(loss)(params, batch)
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value


def fit(tx, params, state, data):
    values = []
    for batch in data:
        params, state, value = step(tx, params, state, batch)
        values.append(value)
    return params, state, np.array(values)


params = init(jax.random.key(0))
params, state, first = fit(frozen, params, frozen.init(params), batches(100))
new = trained.init(params)
new.inner_states["head"] = state.inner_states["head"]
params, state, second = fit(trained, params, new, batches(100))

losses = np.concatenate([first, second])
print(f"loss {losses[0]:.4f}, {losses[99]:.4f} with the backbone frozen, {losses[-1]:.4f} with all")
