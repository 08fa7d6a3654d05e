"""Everything in bfloat16: parameters that learn by stochastic rounding, and state of 2 bytes each."""

import jax
import jax.numpy as jnp
from small_model import batches, init, loss

import adaptive_jax as aj

params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), init(jax.random.key(0)))
tx = aj.adam(1e-2, storage="bfloat16")
state = aj.TrainState.create(params, tx)
state, history = aj.fit(state, aj.train_step(loss, compute_dtype=jnp.bfloat16), batches(200))

losses = history["loss"]
nbytes = sum(x.nbytes for x in jax.tree.leaves((state.params, state.opt_state)))
print(
    f"loss {losses[0]:.4f} before, {losses[-1]:.4f} after; {nbytes} bytes of parameters and state"
)
