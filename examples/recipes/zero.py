"""ZeRO: eight devices share a batch, and each holds an eighth of the optimizer's state."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")  # of one CPU

import jax
from jax.sharding import NamedSharding, PartitionSpec
from small_model import batches, init, loss

import adaptive_jax as aj

mesh = jax.make_mesh((8,), ("data",))
everywhere, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))

params = jax.device_put(init(jax.random.key(0)), everywhere)
state = aj.TrainState.create(params, aj.adam(1e-2), shard="data")
data = (jax.device_put(batch, split) for batch in batches(100))
state, history = aj.fit(state, aj.train_step(loss), data)

losses = history["loss"]
own = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state.opt_state))
print(f"loss {losses[0]:.4f} before, {losses[-1]:.4f} after; {own} bytes of state on a device")
