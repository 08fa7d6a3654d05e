"""One of several processes that train together, started by test_processes.py: `python … FOLDER`."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import adaptive_jax as aj

COUNT, INDEX = int(os.environ["COUNT"]), int(os.environ["INDEX"])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
# Side by side, two programs may each wait for the one that has not started in the other process.
jax.config.update("jax_cpu_enable_async_dispatch", False)
jax.distributed.initialize(
    f"127.0.0.1:{os.environ['PORT']}", COUNT, INDEX, initialization_timeout=120
)

FOLDER = Path(sys.argv[1])
MESH = jax.make_mesh((len(jax.devices()),), ("data",))
EVERYWHERE, ROWS = (NamedSharding(MESH, PartitionSpec(*each)) for each in ((), ("data",)))
NUMBERS = np.random.default_rng(0)
PARAMS = {
    "hidden": NUMBERS.normal(size=(16, 512)).astype(np.float32) / 4,
    "out": NUMBERS.normal(size=(512, 8)).astype(np.float32) / 22,
}
BATCHES = NUMBERS.normal(size=(6, 16, 16)).astype(np.float32)


def global_array(x, sharding):
    """An array of all processes, each of which has the whole of it."""
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def loss(params, batch, rng):
    outputs = jnp.tanh(batch @ params["hidden"]) @ params["out"]
    errors = jnp.mean((outputs - batch[:, :8]) ** 2, axis=1)
    return jnp.mean(errors) + 0 * jax.random.normal(rng, ()), errors


def batches(pause=0.0):
    for batch in BATCHES:
        time.sleep(pause)
        yield global_array(batch, ROWS)


def for_ever():
    while True:
        yield from batches(pause=0.02)


def on_host(x):
    everywhere = jax.jit(lambda x: x, out_shardings=EVERYWHERE)
    return np.asarray(everywhere(x))


step = aj.train_step(loss, has_aux=True)
results = {}
for name, sharding, shard, storage in (
    ("replicated", EVERYWHERE, None, None),
    ("fsdp", ROWS, None, None),
    ("zero", EVERYWHERE, "data", None),
    ("zero-int8", EVERYWHERE, "data", "int8"),
):
    params = {key: global_array(x, sharding) for key, x in PARAMS.items()}
    tx = aj.adam(1e-2, storage=storage)
    state = aj.TrainState.create(params, tx, rng=jax.random.key(0), shard=shard)
    before = jax.tree.map(lambda x: x.sharding, (state.params, state.opt_state))
    state, history = aj.fit(state, step, batches(), progress=True)
    assert before == jax.tree.map(lambda x: x.sharding, (state.params, state.opt_state)), name
    results |= {f"{name}/{key}": on_host(x) for key, x in state.params.items()}
    results |= {f"{name}/loss": history["loss"], f"{name}/errors": history["aux"]}

if INDEX == 1:
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
state, history = aj.fit(state, step, for_ever(), progress=False)
assert history.interrupted
np.savez(FOLDER / f"{INDEX}.npz", **results, stopped_at=np.asarray(state.step))
