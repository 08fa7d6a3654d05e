"""With optax, which does not round at random: the parameters are kept in float32 beside bfloat16."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from small_model import batches, init, loss

tx = optax.adam(1e-2)
master = init(jax.random.key(0))
state = tx.init(master)


def low(tree):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def step(master, state, batch):
    value, gradients = jax.value_and_grad(loss)(low(master), low(batch))
    gradients = jax.tree.map(lambda x: x.astype(jnp.float32), gradients)
    updates, state = tx.update(gradients, state, master)
    return optax.apply_updates(master, updates), state, value


values = []
for batch in batches(200):
    master, state, value = step(master, state, batch)
    values.append(value)

losses = np.array(values, np.float32)
nbytes = sum(x.nbytes for x in jax.tree.leaves((master, state)))
print(
    f"loss {losses[0]:.4f} before, {losses[-1]:.4f} after; {nbytes} bytes of parameters and state"
)
