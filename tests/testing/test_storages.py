"""`check_storage` names the promise that a bad storage breaks: each promise, and ways to break it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptive_jax as aj
from adaptive_jax.testing import STORAGE_PROMISES


@dataclass(frozen=True)
class Plain(aj.Storage):
    """A storage that keeps every promise, but for what a test puts in place of a function."""

    written: Any = lambda value, key: value
    first: Any = lambda value: value

    def init(self, value, param, *, real):
        return jnp.full_like(param, self.first(value), dtype=jnp.float32)

    def encode(self, value, stored, key):
        return self.written(value, key)

    def decode(self, stored):
        return stored


class NoValue(Plain):
    __eq__ = object.__eq__
    __hash__ = object.__hash__


@dataclass(frozen=True)
class Stochastic(Plain):
    stochastic = True


def is_known(array):
    return not isinstance(array, jax.core.Tracer)


@jax.custom_batching.custom_vmap
def doubled_under_vmap(x):
    return x


@doubled_under_vmap.def_vmap
def _(size, is_batched, x):
    return 2 * x, is_batched[0]


def on_a_grid(value, noise):
    return jnp.floor(value * 1024 + noise) / 1024


def coarse_noise(value, key):
    """A quarter of a step at the finest: smaller changes never arrive."""
    return (aj.maths.random_bits(value.shape, key) >> 30).astype(jnp.float32) / 4 + 0.125


WAYS = {
    "it is static: it hashes, and equals its copy": [(NoValue(), "differs from its copy")],
    "what is stored keeps its structure, shapes and dtypes": [
        (Plain(lambda value, key: value.astype(jnp.float16)), "encode changes what is stored"),
        (Plain(lambda value, key: value if value.ndim else value[None]), "encode changes"),
        (Plain(first=lambda value: 0.0), "init to 0.25"),
        (Plain(first=lambda value: 1.0), r"0 in the shape \(\) reads back as float32\[\]"),
    ],
    "what is read back is stored as the same again": [
        (Plain(lambda value, key: value / 2), "becomes"),
    ],
    "it can be traced": [
        (Plain(lambda value, key: 2 * value if is_known(value) else value), "Under jit"),
        (Plain(lambda value, key: doubled_under_vmap(value)), "Under vmap"),
        (Plain(lambda value, key: value if np.all(value == 0) else -value), "Tracer"),
    ],
    "rounding at random is right on average": [
        (Stochastic(lambda value, key: on_a_grid(value, 0.0)), "The mean of 4000 draws is off"),
    ],
    "changes that are far smaller than its steps arrive on average": [
        (
            Stochastic(lambda value, key: on_a_grid(value, coarse_noise(value, key))),
            r"Of 20000 changes by 0.0001 .* 0.00 arrive",
        ),
    ],
    "zero stays zero, what is above stays above, what is not finite stays visible": [
        (Plain(lambda value, key: jnp.nan_to_num(value, posinf=0.0)), "inf reads back"),
        (Plain(lambda value, key: value + 1e-20), "0 reads back as"),
        (Plain(lambda value, key: value * value), r"up to 1e\d+ read back"),
        (Stochastic(lambda value, key: on_a_grid(value, 0.0)), "above 0 reads back as 0"),
    ],
}


def test_ways_to_break_every_promise():
    assert list(WAYS) == list(STORAGE_PROMISES)


@pytest.mark.parametrize(
    ("promise", "place"),
    [(promise, place) for promise, ways in WAYS.items() for place in range(len(ways))],
)
def test_each_promise_alone_is_broken(promise, place):
    storage, message = WAYS[promise][place]
    with pytest.raises(Exception, match=f"(?s){message}"):
        STORAGE_PROMISES[promise](storage)
