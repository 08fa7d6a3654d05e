"""Fit a linear regression with Adam and compare it with the exact least-squares solution.

    pip install -e ".[examples]"
    python linear_regression.py

Prints the optimizer's settings, the shapes of its state, and after 5,000 steps:

    loss with Adam:            0.482252
    loss of the exact answer:  0.482252
    largest difference between coefficients: 1.2e-07
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaptive_jax as aj

try:
    from sklearn.datasets import load_diabetes
    from sklearn.preprocessing import scale
except ImportError as error:
    raise SystemExit(f'This example needs {error.name}: pip install -e ".[examples]"') from error

features, target = load_diabetes(return_X_y=True)  # 442 patients, 10 measurements each
features = scale(features)  # mean 0, standard deviation 1, so no intercept is needed
target = scale(target)


def loss_function(params):
    return jnp.mean((features @ params["coefficients"] - target) ** 2)


tx = aj.adam(0.01)
params = {"coefficients": jnp.zeros(features.shape[1])}
state = tx.init(params)
print("optimizer:", tx)
print("its state:", jax.tree.map(jnp.shape, state))


@jax.jit
def step(params, state):
    grads = jax.grad(loss_function)(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


for _ in range(5000):
    params, state = step(params, state)

exact, *_ = np.linalg.lstsq(features, target)
difference = np.abs(params["coefficients"] - exact).max()
print(f"loss with Adam:            {loss_function(params):.6f}")
print(f"loss of the exact answer:  {loss_function({'coefficients': exact}):.6f}")
print(f"largest difference between coefficients: {difference:.1e}")
