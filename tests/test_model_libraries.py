"""The same network in every model library: the same training step takes it to the same loss."""

from __future__ import annotations

import importlib

import jax
import numpy as np
import pytest

import adaptive_jax as aj

PLAIN = {
    (layer, name): array
    for layer, arrays in importlib.import_module("with_plain_pytrees")
    .init(jax.random.key(7))
    .items()
    for name, array in arrays.items()
}


def from_linen(path, shape):
    layer = {"Conv_0": "first", "Conv_1": "second", "Dense_0": "output"}[path[-2]]
    return PLAIN[layer, path[-1]]


def from_nnx(path, shape):
    return PLAIN[path[-3], path[-2]]  # The last is the value of an nnx.Param.


def from_haiku(path, shape):
    layer = {"conv2_d": "first", "conv2_d_1": "second", "linear": "output"}[path[-2]]
    return PLAIN[layer, {"w": "kernel", "b": "bias"}[path[-1]]]


def from_equinox(path, shape):
    """Channels first, and (out, in)."""
    array = PLAIN[path[-2], {"weight": "kernel", "bias": "bias"}[path[-1]]]
    if path[-1] == "bias":
        return array.reshape(shape)
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    return array.reshape(4, 4, 32, 10).transpose(3, 2, 0, 1).reshape(shape)


LIBRARIES = {
    "with_flax_linen": from_linen,
    "with_flax_nnx": from_nnx,
    "with_haiku": from_haiku,
    "with_equinox": from_equinox,
}


def names(path):
    return [str(getattr(key, "key", getattr(key, "name", key))) for key in path]


def losses(example, params):
    from digits import batches, load

    train, _ = load()
    state = aj.TrainState.create(params, aj.adam(0.003))
    step = aj.train_step(example.loss_function)
    _, history = aj.fit(state, step, batches(*train), steps=30)
    return history["loss"]


@jax.numpy_rank_promotion("allow")
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_same_loss_from_the_same_weights(library):
    plain = importlib.import_module("with_plain_pytrees")
    example = importlib.import_module(library)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: LIBRARIES[library](names(path), x.shape), example.init(jax.random.key(0))
    )
    expected = losses(plain, plain.init(jax.random.key(7)))
    assert expected[-1] < expected[0] / 2
    np.testing.assert_allclose(losses(example, params), expected, rtol=1e-3)
