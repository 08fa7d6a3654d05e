"""muP: one learning rate for every width, by Adam's row of table 3 in Yang et al. 2022.

Matrices whose inputs grow with the width take the rate over the width; all else takes the rate itself.
"""

import jax
import jax.numpy as jnp
import numpy as np
from small_model import batches, init, loss

import adaptive_jax as aj

BASE = 32


def start(width):
    params = init(jax.random.key(0), width)
    head = {"kernel": jnp.zeros((width, 4)), "bias": jnp.zeros(4)}
    return params | {"head": head}


def rates(rate, width):
    narrower = {"kernel": rate * BASE / width, "bias": rate}
    return {"layer_0": rate, "layer_1": narrower, "head": narrower}


step = aj.train_step(loss)
losses = []
for width in (32, 128):
    for rate in (1e-3, 1e-2, 1e-1):
        state = aj.TrainState.create(start(width), aj.adam(rates(rate, width)))
        state, history = aj.fit(state, step, batches(100))
        losses.append(history["loss"][-1])

losses = np.array(losses)
for width, row in zip((32, 128), losses.reshape(2, 3), strict=True):
    print(
        f"width {width}: loss {row.round(4)}, the best rate is {(1e-3, 1e-2, 1e-1)[row.argmin()]}"
    )
