"""Adam's state in 2 bytes per parameter, not 8, and what the whole run takes before it starts."""

import jax
import jax.numpy as jnp
from small_model import batches, init, loss

import adaptive_jax as aj

params = init(jax.random.key(0), width=512)
several = {
    "float32": aj.adam(1e-3),
    "int8": aj.adam(1e-3, storage="int8"),
    "factored": aj.adam(1e-3, storage={"mu": "bfloat16", "nu": "factored"}),
}
step, (batch,) = aj.train_step(loss), batches(1)
print(memory := aj.run_memory(several, params, step=step, batch=batch))

shapes = {"w": jax.ShapeDtypeStruct((32, 16384, 16384), jnp.bfloat16)}  # far more than is here
print(aj.run_memory(several, shapes))

state = aj.TrainState.create(params, several["int8"])
state, history = aj.fit(state, step, batches(60))
losses = history["loss"]
print(f"loss {losses[0]:.4f} before, {losses[-1]:.4f} after")
