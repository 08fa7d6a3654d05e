"""The same with optax."""

import functools
import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")  # of one CPU

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from small_model import batches, init, loss

mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
everywhere, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))


def place(x):
    for axis, size in enumerate(x.shape):
        if size % 8 == 0:
            return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))
    return everywhere


tx = optax.adam(1e-2)
params = jax.device_put(init(jax.random.key(0)), everywhere)
places = jax.tree.map(place, jax.eval_shape(tx.init, params))
state = jax.jit(tx.init, out_shardings=places)(params)


@functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=(everywhere, places, everywhere))
def step(params, state, batch):
    value, gradients = jax.value_and_grad(loss)(params, batch)
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value


values = []
for batch in batches(100):
    params, state, value = step(params, state, jax.device_put(batch, split))
    values.append(value)

losses = np.array(values)
own = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
print(f"loss {losses[0]:.4f} before, {losses[-1]:.4f} after; {own} bytes of state on a device")
