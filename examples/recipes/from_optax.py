"""An optax script in ten lines: warm-up and cosine, clipping, AdamW, and the loop."""

import jax
from small_model import batches, init, loss

import adaptive_jax as aj

schedule = aj.schedules.warmup_cosine_decay_schedule(0.0, 1e-2, 20, 200)
tx = aj.chain(aj.clip_by_global_norm(1.0), aj.adamw(schedule))
state = aj.TrainState.create(init(jax.random.key(0)), tx)
state, history = aj.fit(state, aj.train_step(loss), batches(200))

losses = history["loss"]
print(f"loss {losses[0]:.4f} before, {losses[-1]:.4f} after")
