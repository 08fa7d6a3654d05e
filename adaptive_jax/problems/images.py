"""Deeper networks on scikit-learn's handwritten digits: convolutions, residual blocks, an autoencoder."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._core import arguments
from .data import HELD_OUT, digit_images, normal, on_data
from .problem import Problem


def convolutional_network(channels: int = 8, batch: int = 32) -> Problem:
    """Which digit it is: two convolutions and a linear layer on scikit-learn's handwritten digits.

        logits = W relu(c₂ * pool(relu(c₁ * x + b₁)) + b₂) + b,   loss = mean cross-entropy over a batch

    1797 images of 8 x 8 pixels between 0 and 1, in the three parts of `digits`. Convolutions are 3 x 3,
    with zeros around the image; the pool takes the mean of 2 x 2 places, and what is left, 4 x 4, goes to
    the linear layer as it is. Weights are drawn from N(0, 2/inputs), He et al. 2015,
    https://arxiv.org/abs/1502.01852; biases are 0.

    Args:
      channels: of the first convolution, 1 or more; the second has twice as many.
      batch: how many images a step takes, 1 or more.

    Returns:
      The problem. Its params are {"convolutions": [{"w": (3, 3, inputs, outputs), "b": (outputs,)}, …],
      "output": {"w": …, "b": …}}. evaluate is the mean cross-entropy over 225 images held out, in nats, and
      test that over 225 others. The target is for the sizes that are the defaults.

    Raises:
      ImportError: without scikit-learn.
      ValueError: for sizes below 1.

    Example:
      >>> import adaptive_jax as aj, jax
      >>> problem = aj.problems.convolutional_network(channels=2)
      >>> params = problem.init(jax.random.key(0))
      >>> print([each["w"].shape for each in params["convolutions"]], params["output"]["w"].shape)
      [(3, 3, 1, 2), (3, 3, 2, 4)] (64, 10)
    """
    channels = arguments.whole("channels", channels, 1)
    batch = arguments.whole("batch", batch, 1)
    init = normal(
        {
            "convolutions": [_convolution(1, channels), _convolution(channels, 2 * channels)],
            "output": _dense(16 * 2 * channels, 10),
        }
    )

    def logits(params: Any, x: jax.Array) -> jax.Array:
        first, second = params["convolutions"]
        x = jax.nn.relu(_convolved(x, **first))
        x = jax.nn.relu(_convolved(_halved(x), **second))
        return _affine(x.reshape(len(x), -1), **params["output"])

    return _classification("convolutional network", init, logits, batch, steps=300, target=0.12)


def residual_network(channels: int = 8, blocks: int = 3, batch: int = 32) -> Problem:
    """Which digit it is: a residual network with normalized channels on scikit-learn's handwritten digits.

        x ← x + c₂ * relu(n(c₁ * relu(n(x))))   for each block,   logits = W mean(relu(n(x))) + b

    1797 images of 8 x 8 pixels between 0 and 1, in the three parts of `digits`. A convolution makes the
    channels; behind the first block a mean of 2 x 2 places halves the image. What a block adds comes after
    normalization and relu, as in He et al. 2016, https://arxiv.org/abs/1603.05027. n takes mean and
    deviation over places and channels of each image, with a scale and a shift for each channel: one group
    of Wu & He 2018, https://arxiv.org/abs/1803.08494, so that the loss depends on no other image of the
    batch. Weights are drawn from N(0, 2/inputs), those that a block ends with over the number of blocks.

    Args:
      channels: how many, 2 or more.
      blocks: how many, 1 or more.
      batch: how many images a step takes, 1 or more.

    Returns:
      The problem. Its params are dicts of kernels (3, 3, inputs, outputs), biases, scales and shifts.
      evaluate is the mean cross-entropy over 225 images held out, in nats, and test that over 225 others.
      The target is for the sizes that are the defaults.

    Raises:
      ImportError: without scikit-learn.
      ValueError: for sizes out of range.

    Example:
      >>> import adaptive_jax as aj, jax
      >>> problem = aj.problems.residual_network(channels=2, blocks=1)
      >>> params = problem.init(jax.random.key(0))
      >>> print(params["blocks"][0]["first"].shape, params["output"]["w"].shape)
      (3, 3, 2, 2) (2, 10)
    """
    channels = arguments.whole("channels", channels, 2)
    blocks = arguments.whole("blocks", blocks, 1)
    batch = arguments.whole("batch", batch, 1)
    kernel = _convolution(channels, channels)["w"]
    drawn = normal(
        {
            "stem": _convolution(1, channels),
            "blocks": [{"first": kernel, "second": kernel / blocks**0.5} for _ in range(blocks)],
            "output": _dense(channels, 10),
        }
    )
    norms = 2 * blocks + 1

    def init(key: jax.Array) -> Any:
        scales = jnp.ones((norms, channels), jnp.float32)
        return drawn(key) | {"norms": {"scale": scales, "shift": jnp.zeros_like(scales)}}

    def logits(params: Any, x: jax.Array) -> jax.Array:
        norms = zip(params["norms"]["scale"], params["norms"]["shift"], strict=True)
        x = _convolved(x, **params["stem"])
        for index, block in enumerate(params["blocks"]):
            inner = _convolved(jax.nn.relu(_normalized(x, *next(norms))), block["first"])
            x = x + _convolved(jax.nn.relu(_normalized(inner, *next(norms))), block["second"])
            x = _halved(x) if index == 0 else x
        x = jax.nn.relu(_normalized(x, *next(norms)))
        return _affine(x.mean((1, 2)), **params["output"])

    return _classification("residual network", init, logits, batch, steps=300, target=0.35)


def autoencoder(widths: tuple[int, ...] = (32, 16, 8), batch: int = 64) -> Problem:
    """Images through a narrow code and back: a deep autoencoder of scikit-learn's handwritten digits.

        loss = mean over a batch of ½‖decode(encode(x)) - x‖²

    1797 images of 64 pixels between 0 and 1, in the three parts of `digits`. From layer to layer tanh, the
    code and the output as they are. It is deep and narrow, and so badly conditioned: what second-order
    methods were shown on, Hinton & Salakhutdinov 2006, https://doi.org/10.1126/science.1127647; Martens
    2010, https://www.cs.toronto.edu/~jmartens/docs/Deep_HessianFree.pdf. Weights are drawn from
    N(0, 1/inputs); biases are 0.

    Args:
      widths: of the layers up to the code, each 1 or more; those after it have them the other way around.
      batch: how many images a step takes, 1 or more.

    Returns:
      The problem. Its params are a list of layers {"w": (inputs, outputs), "b": (outputs,)}. evaluate is
      the loss over 225 images held out, and test that over 225 others. The target is for the sizes that are
      the defaults.

    Raises:
      ImportError: without scikit-learn.
      ValueError: for sizes below 1, and no widths.

    Example:
      >>> import adaptive_jax as aj, jax
      >>> problem = aj.problems.autoencoder(widths=(16, 4))
      >>> print([layer["w"].shape for layer in problem.init(jax.random.key(0))])
      [(64, 16), (16, 4), (4, 16), (16, 64)]
    """
    if not isinstance(widths, (tuple, list)) or not widths:
        raise ValueError(
            f"widths={widths!r} must be a tuple of at least one width, such as (32, 8)."
        )
    widths = tuple(arguments.whole("widths", width, 1) for width in widths)
    batch = arguments.whole("batch", batch, 1)
    parts = digit_images("autoencoder")
    sizes = (64, *widths, *widths[-2::-1], 64)
    init = normal(
        [_dense(inputs, outputs, variance=1) for inputs, outputs in itertools.pairwise(sizes)]
    )
    training, validation, test = (pixels for pixels, _ in parts)

    def error(params: Any, x: jax.Array) -> jax.Array:
        y = x
        for index, layer in enumerate(params):
            y = _affine(y, **layer)
            if index not in (len(widths) - 1, len(params) - 1):
                y = jnp.tanh(y)
        return jnp.mean(jnp.sum((y - x) ** 2, axis=1)) / 2

    def loss(params: Any, key: jax.Array) -> jax.Array:
        chosen = jax.random.randint(key, (batch,), 0, len(training))
        return error(params, jnp.asarray(training)[chosen])

    return Problem(
        "autoencoder",
        init,
        loss,
        on_data(error, (validation,)),
        steps=500,
        target=0.85,
        measure="held-out ½‖error‖² per image",
        test=on_data(error, (test,)),
    )


def _classification(
    name: str, init: Any, logits: Any, batch: int, *, steps: int, target: float
) -> Problem:
    """The digits, with the cross-entropy of logits(params, images of 8 x 8 pixels and a channel)."""
    training, validation, test = (
        (pixels.reshape(-1, 8, 8, 1), labels) for pixels, labels in digit_images(name)
    )

    def cross_entropy(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        found = logits(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(found, labels).mean()

    def loss(params: Any, key: jax.Array) -> jax.Array:
        chosen = jax.random.randint(key, (batch,), 0, len(training[0]))
        return cross_entropy(params, *(jnp.asarray(each)[chosen] for each in training))

    return Problem(
        name,
        init,
        loss,
        on_data(cross_entropy, validation),
        steps=steps,
        target=target,
        measure=HELD_OUT,
        test=on_data(cross_entropy, test),
    )


def _convolution(inputs: int, outputs: int) -> dict[str, np.ndarray]:
    """The deviations of a convolution's weights and biases."""
    w = np.full((3, 3, inputs, outputs), (2 / (9 * inputs)) ** 0.5)
    return {"w": w, "b": np.zeros(outputs)}


def _dense(inputs: int, outputs: int, variance: float = 2) -> dict[str, np.ndarray]:
    """Those of a linear layer."""
    w = np.full((inputs, outputs), (variance / inputs) ** 0.5)
    return {"w": w, "b": np.zeros(outputs)}


def _affine(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
    return x @ w + b[None]


def _convolved(x: jax.Array, w: jax.Array, b: jax.Array | None = None) -> jax.Array:
    """The convolution of images (batch, rows, columns, channels), with zeros around them."""
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout)
    return y if b is None else y + b[None, None, None]


def _halved(x: jax.Array) -> jax.Array:
    """The means of 2 x 2 places."""
    count, rows, columns, channels = x.shape
    return x.reshape(count, rows // 2, 2, columns // 2, 2, channels).mean((2, 4))


def _normalized(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """Each image with mean 0 and variance 1, then scale and shift of its channels."""
    standard = jax.nn.standardize(x, axis=(1, 2, 3))
    return standard * scale[None, None, None] + shift[None, None, None]
