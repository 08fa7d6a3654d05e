"""Arrays as matrices, against NumPy."""

from __future__ import annotations

import re

import jax.numpy as jnp
import numpy as np
import pytest

import adaptive_jax as aj
from adaptive_jax._core.views import view

# From a name to axes, the shape of an array, and its matrices by NumPy.
CASES = {
    "dense": (aj.MatrixAxes(), (3, 4), lambda x: x),
    "dense of PyTorch": (aj.MatrixAxes(-1, -2), (4, 3), lambda x: x.T),
    "scanned layers": (aj.MatrixAxes(), (5, 3, 4), lambda x: x),
    "one layer, scanned": (aj.MatrixAxes(), (1, 3, 4), lambda x: x[0]),
    "convolution": (
        aj.MatrixAxes(rows=(0, 1, 2), columns=3),
        (2, 3, 4, 5),
        lambda x: x.reshape(24, 5),
    ),
    "convolution of PyTorch": (
        aj.MatrixAxes(rows=(1, 2, 3), columns=0),
        (5, 4, 2, 3),
        lambda x: x.reshape(5, 24).T,
    ),
    "convolution of one pixel": (aj.MatrixAxes((0, 1, 2), 3), (1, 1, 4, 5), lambda x: x[0, 0]),
    "attention": (aj.MatrixAxes(0, (1, 2)), (4, 2, 3), lambda x: x.reshape(4, 6)),
    "attention by head": (aj.MatrixAxes(0, 2), (4, 2, 3), lambda x: x.transpose(1, 0, 2)),
    "attention of one head": (aj.MatrixAxes(0, 2), (4, 1, 3), lambda x: x[:, 0]),
    "output of attention": (aj.MatrixAxes((0, 1), 2), (2, 3, 4), lambda x: x.reshape(6, 4)),
    "fused": (aj.MatrixAxes(heads=3), (4, 6), lambda x: np.stack(np.split(x, 3, axis=1))),
    "fused, of scanned layers": (
        aj.MatrixAxes(heads=3),
        (2, 4, 6),
        lambda x: np.stack(np.split(x, 3, axis=2), 1),
    ),
    "fused, of PyTorch": (
        aj.MatrixAxes(-1, -2, heads=3),
        (6, 4),
        lambda x: np.stack([part.T for part in np.split(x, 3, axis=0)]),
    ),
    "rows cut": (aj.MatrixAxes(heads=(2, 1)), (6, 4), lambda x: np.stack(np.split(x, 2, axis=0))),
    "rows and columns cut": (
        aj.MatrixAxes(heads=(2, 3)),
        (4, 6),
        lambda x: np.stack([np.stack(np.split(y, 3, axis=1)) for y in np.split(x, 2, axis=0)]),
    ),
    "other order": (
        aj.MatrixAxes((2, 0), (3, 1)),
        (2, 3, 4, 5),
        lambda x: x.transpose(2, 0, 3, 1).reshape(8, 15),
    ),
    "heads in several axes": (
        aj.MatrixAxes(0, (2, 1), heads=2),
        (4, 3, 6),
        lambda x: np.stack([x[..., i : i + 3].transpose(0, 2, 1).reshape(4, 9) for i in (0, 3)]),
    ),
    "one number": (aj.MatrixAxes(), (1, 1), lambda x: x),
    "empty": (aj.MatrixAxes(0, (1, 2)), (3, 0, 2), lambda x: x.reshape(3, 0)),
}


@pytest.mark.parametrize(("axes", "shape", "matrices"), CASES.values(), ids=CASES)
def test_there_and_back(axes, shape, matrices):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = matrices(x)
    seen = view(axes, shape)
    assert axes.matrix_shape(shape) == seen.shape == expected.shape
    np.testing.assert_array_equal(seen.to_matrices(jnp.asarray(x)), expected)
    np.testing.assert_array_equal(seen.back(jnp.asarray(expected)), x)
    for place, axis in enumerate(seen.kept):
        assert axis is None or seen.shape[place] == shape[axis]


def test_what_is_a_matrix_is_handed_on_as_it_is():
    x = jnp.ones((3, 4))
    seen = view(aj.MatrixAxes(), x.shape)
    assert seen.to_matrices(x) is x
    assert seen.back(x) is x


def test_axes_are_plain_and_print_as_they_are_made():
    axes = aj.MatrixAxes(np.int64(0), [1, np.int32(2)], heads=np.int8(2))  # type: ignore[arg-type]
    assert axes == aj.MatrixAxes(0, (1, 2), heads=2)
    assert repr(axes) == "MatrixAxes(rows=0, columns=(1, 2), heads=2)"
    assert repr(aj.MatrixAxes()) == "MatrixAxes(rows=-2, columns=-1)"
    assert hash(axes) == hash(aj.MatrixAxes(0, (1, 2), 2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rows": ()}, "rows=() in MatrixAxes must be an axis, such as -1, or a tuple of some."),
        ({"columns": 1.0}, "columns=1.0 in MatrixAxes must be an axis"),
        ({"columns": True}, "columns=True in MatrixAxes must be an axis"),
        ({"heads": 0}, "heads=0 in MatrixAxes must be None, a number of matrices, 1 or more, or"),
        ({"heads": (1, 2, 3)}, "heads=(1, 2, 3) in MatrixAxes must be None"),
    ],
)
def test_what_is_no_axis_is_refused(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        aj.MatrixAxes(**values)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (aj.MatrixAxes(2), "names the axis 2, which it does not have."),
        (aj.MatrixAxes(-1, 1), "names the axis 1 twice."),
        (aj.MatrixAxes(heads=3), "cuts the axis 1 into 3 parts, which are not equal."),
    ],
)
def test_what_an_array_does_not_have_is_refused(axes, message):
    with pytest.raises(
        ValueError, match=re.escape(f"of an array of shape (3, 4), {axes} {message}")
    ):
        axes.matrix_shape((3, 4))
