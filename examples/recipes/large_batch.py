"""A large batch: LAMB with warm-up, and the gradients of four parts at the memory of one."""

import jax
from small_model import batches, init, loss

import adaptive_jax as aj

schedule = aj.schedules.warmup_cosine_decay_schedule(0.0, 0.05, 10, 100)
state = aj.TrainState.create(init(jax.random.key(0)), aj.lamb(schedule, weight_decay=0.01))
state, history = aj.fit(state, aj.train_step(loss, accumulate=4), batches(100, 1024))

losses = history["loss"]
print(f"loss {losses[0]:.4f} before, {losses[-1]:.4f} after")
