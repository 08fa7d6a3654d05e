"""A run that saves itself, for `test_save.py` to kill.

python checkpointed_run.py DIRECTORY STEPS: goes on from the newest checkpoint, prints the number of each
step that it takes, and at the end writes the parameters to DIRECTORY/end.npy.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaptive_jax as aj


def loss(params, batch, rng):
    return jnp.mean(jnp.square(params["w"] * batch + jax.random.normal(rng, batch.shape)))


def main(directory, steps):
    adam = aj.adam(optax.cosine_decay_schedule(0.1, steps), storage=aj.Blocks(min_size=0))
    tx = aj.multi_steps(adam, 3)
    state = aj.TrainState.create({"w": jnp.ones(1000)}, tx, rng=jax.random.key(0))
    if any(path.name.isdigit() for path in Path(directory).glob("*")):
        state = aj.restore_checkpoint(directory, state)
    step = aj.train_step(loss)
    while state.step < steps:
        batch = np.random.default_rng(int(state.step)).normal(size=1000).astype(np.float32)
        state, _ = step(state, batch)
        if state.step % 2 == 0:
            aj.save_checkpoint(directory, state, keep=2)
        print(int(state.step), flush=True)
    np.save(Path(directory) / "end.npy", state.params["w"])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
