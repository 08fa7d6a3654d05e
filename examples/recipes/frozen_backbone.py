"""Fine-tune a head on a frozen backbone, then unfreeze the backbone at a smaller rate."""

import jax
import numpy as np
from small_model import batches, init, loss

import adaptive_jax as aj

labels = {"layer_0": "backbone", "layer_1": "backbone", "head": "head"}
head = aj.adam(1e-2)
frozen = aj.partition({"backbone": None, "head": head}, labels)
trained = aj.partition({"backbone": aj.adam(1e-3), "head": head}, labels)

step = aj.train_step(loss)
state = aj.TrainState.create(init(jax.random.key(0)), frozen)
state, first = aj.fit(state, step, batches(100))
state, carried = aj.carry_state(state, trained)  # the head goes on, the backbone begins
state, second = aj.fit(state, step, batches(100))

losses = np.concatenate([first["loss"], second["loss"]])
print(carried)
print(f"loss {losses[0]:.4f}, {losses[99]:.4f} with the backbone frozen, {losses[-1]:.4f} with all")
