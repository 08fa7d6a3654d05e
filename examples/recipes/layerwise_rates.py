"""Learning rates that fall by 0.8 from layer to layer towards the bottom, for fine-tuning."""

import jax
from small_model import batches, init, loss

import adaptive_jax as aj

params = init(jax.random.key(0))
rates = aj.layerwise_decay(params, 1e-2, 0.8, layers=[r"layer_(\d+)", "head"])
state = aj.TrainState.create(params, aj.adamw(rates))
state, history = aj.fit(state, aj.train_step(loss), batches(200))

losses = history["loss"]
print(rates)
print(f"loss {losses[0]:.4f} before, {losses[-1]:.4f} after")
