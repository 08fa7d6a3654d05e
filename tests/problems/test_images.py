"""Networks on the digits, against SciPy and NumPy in double precision."""

from __future__ import annotations

import jax
import numpy as np
import scipy.special
import sklearn.datasets
from problems.cases import KEY, losses_of_many_keys
from scipy.signal import correlate2d

from adaptive_jax import problems

PIXELS, LABELS = sklearn.datasets.load_digits(return_X_y=True)
PARTS = np.split(np.random.RandomState(0).permutation(1797), [1347, 1572])


def drawn(problem):
    """Parameters of which none is 0, in JAX and in NumPy."""
    params = jax.jit(problem.init)(KEY)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    return params, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def convolved(x, w, b=0.0):
    """One image (channels, rows, columns)."""
    return np.array(
        [
            sum(correlate2d(x[i], w[:, :, i, o], "same") for i in range(len(x)))
            for o in range(w.shape[3])
        ]
    ) + np.reshape(b, (-1, 1, 1))


def halved(x):
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def cross_entropy(logits, labels):
    return -np.mean(scipy.special.log_softmax(logits, axis=1)[np.arange(len(labels)), labels])


def check_classifier(problem, logits):
    params, exact = drawn(problem)

    def expected(rows):
        found = np.array([logits(exact, PIXELS[row].reshape(1, 8, 8) / 16) for row in rows])
        return cross_entropy(found, LABELS[rows])

    value, test = jax.jit(lambda params: (problem.evaluate(params), problem.test(params)))(params)
    np.testing.assert_allclose(value, expected(PARTS[1]), rtol=1e-4)
    np.testing.assert_allclose(test, expected(PARTS[2]), rtol=1e-4)
    batches = losses_of_many_keys(problem, params, 200)
    np.testing.assert_allclose(batches.mean(), expected(PARTS[0][:400]), rtol=0.05)


def test_the_convolutional_network():
    def logits(params, x):
        first, second = params["convolutions"]
        x = np.maximum(convolved(x, first["w"], first["b"]), 0)
        x = np.maximum(convolved(halved(x), second["w"], second["b"]), 0)
        output = params["output"]
        # Places first, channels last.
        return np.moveaxis(x, 0, -1).ravel() @ output["w"] + output["b"]

    check_classifier(problems.convolutional_network(channels=2, batch=32), logits)


def test_the_residual_network():
    def normalized(params, which, x):
        scale, shift = (params["norms"][name][which][:, None, None] for name in ("scale", "shift"))
        return np.maximum((x - x.mean()) / np.sqrt(x.var() + 1e-5) * scale + shift, 0)

    def logits(params, x):
        x = convolved(x, params["stem"]["w"], params["stem"]["b"])
        for index, block in enumerate(params["blocks"]):
            inner = convolved(normalized(params, 2 * index, x), block["first"])
            x = x + convolved(normalized(params, 2 * index + 1, inner), block["second"])
            x = halved(x) if index == 0 else x
        pooled = normalized(params, -1, x).mean((1, 2))
        return pooled @ params["output"]["w"] + params["output"]["b"]

    check_classifier(problems.residual_network(channels=2, blocks=2, batch=32), logits)


def test_the_autoencoder():
    problem = problems.autoencoder(widths=(7, 3))
    params, exact = drawn(problem)

    def expected(rows):
        x = y = PIXELS[rows] / 16
        for index, layer in enumerate(exact):
            y = y @ layer["w"] + layer["b"]
            y = y if index in (1, 3) else np.tanh(y)  # The code and the output are as they are.
        return np.sum((y - x) ** 2) / 2 / len(rows)

    np.testing.assert_allclose(problem.evaluate(params), expected(PARTS[1]), rtol=1e-4)
    np.testing.assert_allclose(problem.test(params), expected(PARTS[2]), rtol=1e-4)
    batches = losses_of_many_keys(problem, params, 500)
    np.testing.assert_allclose(batches.mean(), expected(PARTS[0]), rtol=0.01)
