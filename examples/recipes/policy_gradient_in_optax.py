"""The same with optax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

PLACES, HORIZON, WALKS = 10, 20, 64


def walk(logits, key):
    """One walk from the left end: the probability of what was done, and the reward that followed."""

    def move(place, key):
        right = jax.random.bernoulli(key, jax.nn.sigmoid(logits[place]))
        probability = jax.nn.log_sigmoid(jnp.where(right, 1, -1) * logits[place])
        place = jnp.clip(place + jnp.where(right, 1, -1), 0, PLACES - 1)
        return place, (probability, (place == PLACES - 1).astype(jnp.float32))

    _, (probabilities, rewards) = jax.lax.scan(move, 0, jax.random.split(key, HORIZON))
    to_come = jnp.cumsum(rewards[::-1])[::-1]
    return probabilities, to_come


def surrogate(logits, key):
    """Its gradient is that of minus the expected reward."""
    keys = jax.random.split(key, WALKS)
    probabilities, to_come = jax.vmap(walk, in_axes=(None, 0))(logits, keys)
    advantages = to_come - to_come.mean(0, keepdims=True)
    return -jnp.mean(jnp.sum(probabilities * advantages, axis=1)), to_come[:, 0].mean()


tx = optax.adam(0.1)
logits = jnp.zeros(PLACES)
state = tx.init(logits)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def step(logits, state, key):
    gradients, reward = jax.grad(surrogate, has_aux=True)(logits, key)
    updates, state = tx.update(gradients, state, logits)
    return optax.apply_updates(logits, updates), state, reward


rewards = []
for key in jax.random.split(jax.random.key(0), 150):
    logits, state, reward = step(logits, state, key)
    rewards.append(reward)

losses = np.array(rewards)
print(f"reward {losses[0]:.2f} before, {losses[-1]:.2f} after, of {HORIZON - PLACES + 2} at most")
