"""The same with optax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from small_model import batches, init, loss

RANK, NAMES = 4, ("layer_0", "layer_1")


def factors(key, kernel):
    rows, columns = kernel.shape
    return {
        "a": jax.random.normal(key, (rows, RANK)) * rows**-0.5,
        "b": jnp.zeros((RANK, columns)),
    }


def adapted_loss(params, batch):
    merged = dict(params["base"])
    for name, each in params["lora"].items():
        merged[name] = merged[name] | {"kernel": merged[name]["kernel"] + each["a"] @ each["b"]}
    return loss(merged, batch)


base, keys = init(jax.random.key(0)), jax.random.split(jax.random.key(2), len(NAMES))
lora = {name: factors(key, base[name]["kernel"]) for name, key in zip(NAMES, keys, strict=True)}

tx = optax.partition(
    {"trained": optax.adam(1e-2), "frozen": optax.set_to_zero()},
    {"base": "frozen", "lora": "trained"},
)
params = {"base": base, "lora": lora}
state = tx.init(params)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def step(params, state, batch):
    value, gradients = jax.value_and_grad(adapted_loss)(params, batch)
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value


values = []
for batch in batches(200):
    params, state, value = step(params, state, batch)
    values.append(value)

losses = np.array(values)
print(sum(x.nbytes for x in jax.tree.leaves(state)), "bytes of state")
print(f"loss {losses[0]:.4f} before, {losses[-1]:.4f} after")
