"""Small models of scikit-learn's data."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from .._core import arguments
from .problem import Problem

HELD_OUT = "held-out loss (nats)"


def logistic_regression(l2: float = 1e-3) -> Problem:
    """Benign or malignant: logistic regression on scikit-learn's breast cancer data.

        loss = mean of log(1 + exp(-s(wᵀx + b))) over a batch of 32, plus ½ l2 ‖w‖²,   s = ±1

    569 patients with 30 measurements, each with mean 0 and variance 1 over the three quarters to train
    with; an eighth is to select by, and one to report. w and b are 0 at the start. Convex, and badly
    conditioned: measurements go together. Data: Street, Wolberg & Mangasarian 1993,
    https://doi.org/10.1117/12.148698.

    Args:
      l2: the strength of the L2 term, 0 or more.

    Returns:
      The problem. Its params are {"w": (30,), "b": ()}. evaluate is the mean over 71 patients held out,
      without the L2 term, and test that over 72 others.

    Raises:
      ImportError: without scikit-learn.
      ValueError: for a negative l2.

    Example:
      >>> import adaptive_jax as aj, jax
      >>> problem = aj.problems.logistic_regression()
      >>> params = problem.init(jax.random.key(0))
      >>> print(f"{problem.evaluate(params):.3f}")  # log 2
      0.693
    """
    arguments.number("l2", l2, 0.0)
    _datasets("logistic_regression")
    from sklearn.datasets import load_breast_cancer

    patients: Any = load_breast_cancer()
    parts = split(patients.data, 2 * patients.target - 1)
    mean, deviation = parts[0][0].mean(0), parts[0][0].std(0)
    training, validation, test = (
        (((x - mean) / deviation).astype(np.float32), signs.astype(np.float32))
        for x, signs in parts
    )

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return {"w": jnp.zeros(30, jnp.float32), "b": jnp.zeros((), jnp.float32)}

    def cross_entropy(params: Any, x: Any, signs: Any) -> jax.Array:
        return jnp.mean(jax.nn.softplus(-signs * (x @ params["w"] + params["b"])))

    def loss(params: Any, key: jax.Array) -> jax.Array:
        batch = jax.random.randint(key, (32,), 0, len(training[0]))
        penalty = l2 / 2 * jnp.sum(params["w"] ** 2)
        return cross_entropy(params, *(jnp.asarray(each)[batch] for each in training)) + penalty

    return Problem(
        "logistic regression",
        init,
        loss,
        on_data(cross_entropy, validation),
        steps=200,
        target=0.043,
        measure=HELD_OUT,
        test=on_data(cross_entropy, test),
    )


def digits(hidden: int = 32) -> Problem:
    """Which digit it is: a network with one hidden layer on scikit-learn's handwritten digits.

        logits = W₂ relu(W₁x + b₁) + b₂,   loss = mean cross-entropy over a batch of 64

    1797 images of 8 x 8 pixels between 0 and 1, three quarters of them to train with, an eighth to select
    by, and one to report. Weights are drawn
    from N(0, 2/inputs), He et al. 2015, https://arxiv.org/abs/1502.01852; biases are 0.

    Args:
      hidden: the width of the hidden layer, 1 or more.

    Returns:
      The problem. Its params are a list of two layers {"w": (inputs, outputs), "b": (outputs,)}. evaluate
      is the mean cross-entropy over 225 images held out, in nats, and test that over 225 others.

    Raises:
      ImportError: without scikit-learn.
      ValueError: for a hidden width below 1.

    Example:
      >>> import adaptive_jax as aj, jax
      >>> problem = aj.problems.digits()
      >>> params = problem.init(jax.random.key(0))
      >>> print([layer["w"].shape for layer in params], bool(problem.evaluate(params) < 3.5))
      [(64, 32), (32, 10)] True
    """
    hidden = arguments.whole("hidden", hidden, 1)
    training, validation, test = digit_images("digits")
    init = normal(
        [
            {"w": np.full((inputs, outputs), (2 / inputs) ** 0.5), "b": np.zeros(outputs)}
            for inputs, outputs in itertools.pairwise((64, hidden, 10))
        ]
    )

    def cross_entropy(params: Any, x: Any, labels: Any) -> jax.Array:
        first, second = params
        activations = jax.nn.relu(x @ first["w"] + first["b"][None])
        logits = activations @ second["w"] + second["b"][None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def loss(params: Any, key: jax.Array) -> jax.Array:
        batch = jax.random.randint(key, (64,), 0, len(training[0]))
        return cross_entropy(params, *(jnp.asarray(each)[batch] for each in training))

    return Problem(
        "digits",
        init,
        loss,
        on_data(cross_entropy, validation),
        steps=400,
        target=0.1,
        measure=HELD_OUT,
        test=on_data(cross_entropy, test),
    )


def normal(deviations: Any) -> Callable[[jax.Array], Any]:
    """A function that draws every number of a tree from a normal distribution, given its deviation.

    In one draw for all arrays: one for each would be compiled for each, which takes seconds.
    """
    flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf.astype(np.float32), deviations))
    flat = np.asarray(flat)

    def init(key: jax.Array) -> Any:
        return unravel(jnp.asarray(flat) * jax.random.normal(key, flat.shape, jnp.float32))

    return init


def _datasets(problem: str) -> None:
    """Raises an ImportError that says what to install if scikit-learn is missing."""
    try:
        import sklearn.datasets  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{problem} has its data from scikit-learn, which is not installed: "
            'pip install "adaptive_jax[examples]".'
        ) from error


def split(x: np.ndarray, labels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Three quarters to train with, an eighth to select by, an eighth to report: always the same."""
    order = np.random.RandomState(0).permutation(len(x))
    parts = np.split(order, [len(x) * 3 // 4, len(x) * 7 // 8])
    return [(x[part], labels[part]) for part in parts]


def on_data(measure: Callable[..., jax.Array], data: tuple[np.ndarray, ...]) -> Callable[..., Any]:
    """The function of the parameters that measure(params, *data) is."""

    def evaluate(params: Any) -> jax.Array:
        return measure(params, *map(jnp.asarray, data))

    return evaluate


def digit_images(problem: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """scikit-learn's handwritten digits, pixels from 0 to 1 and labels, in three parts."""
    _datasets(problem)
    from sklearn.datasets import load_digits

    images: Any = load_digits()
    pixels = (images.data / 16).astype(np.float32)  # Pixels are 0 to 16.
    return split(pixels, images.target.astype(np.int32))
