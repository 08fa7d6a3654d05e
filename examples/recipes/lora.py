"""LoRA: a matrix W is W + AB of rank 4, and A and B alone are trained; W keeps no state."""

import jax
import jax.numpy as jnp
from small_model import batches, init, loss

import adaptive_jax as aj

RANK, NAMES = 4, ("layer_0", "layer_1")


def factors(key, kernel):
    rows, columns = kernel.shape
    return {
        "a": jax.random.normal(key, (rows, RANK)) * rows**-0.5,
        "b": jnp.zeros((RANK, columns)),
    }


def adapted_loss(params, batch):
    merged = dict(params["base"])
    for name, each in params["lora"].items():
        merged[name] = merged[name] | {"kernel": merged[name]["kernel"] + each["a"] @ each["b"]}
    return loss(merged, batch)


base, keys = init(jax.random.key(0)), jax.random.split(jax.random.key(2), len(NAMES))
lora = {name: factors(key, base[name]["kernel"]) for name, key in zip(NAMES, keys, strict=True)}

tx = aj.partition({"trained": aj.adam(1e-2), "frozen": None}, {"base": "frozen", "lora": "trained"})
state = aj.TrainState.create({"base": base, "lora": lora}, tx)
state, history = aj.fit(state, aj.train_step(adapted_loss), batches(200))

losses = history["loss"]
print(aj.state_bytes(tx, state.params))
print(f"loss {losses[0]:.4f} before, {losses[-1]:.4f} after")
