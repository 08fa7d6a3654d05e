"""Second moments of a matrix over its rows or its columns: their roots and eigenvectors, and blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap

from ..maths import at_least, largest_squared, least_denominator, norm, product

SIDES = ("left", "right")
"""The factors of a matrix: the one over its rows, which stands left of it, and the one over its columns."""


def gram(x: jax.Array, side: str) -> jax.Array:
    """XXᵀ or, right, XᵀX of each matrix, of numbers that can be squared and added up."""
    added = x.shape[-1 if side == "left" else -2]
    limit = x.dtype.type(largest_squared(x.dtype) / added**0.5)
    x = lax.clamp(-limit, x, limit)
    return product(x, x.mT) if side == "left" else product(x.mT, x)


def between(left: jax.Array | None, x: jax.Array, right: jax.Array | None) -> jax.Array:
    """left·X·right, with I for what is None."""
    x = x if left is None else product(left, x)
    return x if right is None else product(x, right)


def transposed(x: jax.Array | None) -> jax.Array | None:
    """Xᵀ; None for I."""
    return None if x is None else x.mT


def one_by_one(function: Callable[..., Any], *matrices: jax.Array) -> Any:
    """A function of matrices that LAPACK computes, of each in a stack: on CPUs of one after the other.

    There jaxlib gives a stack to the threads that run programs, and waits for them in one of them: two such
    calls at once, of two shapes of matrices or of two programs, may wait for each other for ever.
    """
    in_turn: Callable[..., Any] = sequential_vmap(function)  # in a sweep too
    for _ in range(matrices[0].ndim - 2):
        in_turn = jax.vmap(in_turn)
    return lax.platform_dependent(*matrices, cpu=in_turn, default=function)


def raised(values: jax.Array, eps: jax.Array, relative: bool) -> jax.Array:
    """Eigenvalues, none of them negative, plus ε, or ε times the largest, but no less than rounding."""
    largest = jnp.max(values, -1, keepdims=True)
    rounding = largest * jnp.finfo(values.dtype).eps
    least = values.dtype.type(least_denominator(values.dtype) ** 2)
    added = largest * eps if relative else eps
    return lax.max(values, jnp.zeros_like(values)) + jnp.maximum(
        jnp.maximum(added, rounding), least
    )


def power(factor: jax.Array, exponent: Any, eps: jax.Array, relative: bool) -> jax.Array:
    """(A + εI)^exponent of a matrix that is symmetric and not negative."""
    values, vectors = one_by_one(_eigh, factor)
    values = raised(values, eps, relative) ** exponent
    return product(vectors * values[..., None, :], vectors.mT)


def eigenvectors(factor: jax.Array) -> jax.Array:
    """Those of a symmetric matrix, in columns, that of the largest eigenvalue first."""
    return jnp.flip(one_by_one(_eigh, factor)[1], -1)


def _eigh(factor: jax.Array) -> tuple[jax.Array, jax.Array]:
    return tuple(jnp.linalg.eigh(factor))


def iterated(basis: jax.Array, factor: jax.Array) -> jax.Array:
    """A basis, each column one power iteration nearer to the eigenvector of a factor that it is for."""
    moved = product(factor, basis)
    order = jnp.argsort(-jnp.sum(basis * moved, -2), axis=-1)[..., None, :]
    found = one_by_one(_qr, jnp.take_along_axis(moved, order, -1))
    return jnp.take_along_axis(found, jnp.argsort(order, axis=-1), -1)


def _qr(x: jax.Array) -> jax.Array:
    return jnp.linalg.qr(x)[0]


def whitened(
    grad: jax.Array, halves: Sequence[jax.Array | None], is_first: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What L and R are of with KL: the gradient times H of the other one, where HHᵀ is its inverse.

    At first the others are I times the root mean square, so that all is in the gradient's units.
    """
    left, right = halves
    if grad.ndim < 2:
        return grad, grad
    rows, columns = grad.shape[-2:]
    if left is None or right is None:
        return grad / columns**0.5, grad / rows**0.5
    size = norm(grad, (-2, -1)) / (rows * columns) ** 0.5
    first = grad / jnp.sqrt(at_least(size))
    of_left = jnp.where(is_first, first, product(grad, right))
    of_right = jnp.where(is_first, first, product(left.mT, grad))
    return of_left / columns**0.5, of_right / rows**0.5


def length(x: jax.Array) -> jax.Array:
    """‖X‖ of each matrix, to divide by: 1 for 0."""
    size = norm(x, (-2, -1))
    return jnp.where(size > 0, size, 1)


def is_rounding(x: jax.Array) -> jax.Array:
    """Which numbers of a matrix are so small beside the largest that rounding may have made them of 0."""
    size = jnp.abs(x)
    return size <= jnp.max(size, (-2, -1), keepdims=True) * (64 * jnp.finfo(x.dtype).eps)


@dataclass(frozen=True)
class Blocks:
    """How matrices are cut into blocks of one shape, the last of which are filled up with zeros.

    shape: of the matrices, (…, m, n).
    counts: how many blocks there are along both axes.
    block: the shape of one.
    """

    shape: tuple[int, ...]
    counts: tuple[int, int]
    block: tuple[int, int]

    @classmethod
    def of(cls, shape: tuple[int, ...], max_size: int) -> Blocks:
        rows, columns = shape[-2:]
        counts = -(-rows // max_size), -(-columns // max_size)
        return cls(shape, counts, (-(-rows // counts[0]), -(-columns // counts[1])))

    @property
    def batch(self) -> tuple[int, ...]:
        """What counts blocks: the axes before the matrices', and those of their parts."""
        return (*self.shape[:-2], *(count for count in self.counts if count > 1))

    @property
    def _ragged(self) -> list[tuple[int, int]]:
        whole = [count * size for count, size in zip(self.counts, self.block, strict=True)]
        return [(0, new - old) for new, old in zip(whole, self.shape[-2:], strict=True)]

    def blocks(self, x: jax.Array) -> jax.Array:
        """(…, m, n) of each block, of matrices."""
        if self.counts == (1, 1):
            return x
        (a, b), (m, n) = self.counts, self.block
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + self._ragged)
        return x.reshape(*x.shape[:-2], a, m, b, n).swapaxes(-3, -2).reshape(*self.batch, m, n)

    def whole(self, x: jax.Array) -> jax.Array:
        """The matrices of the blocks."""
        if self.counts == (1, 1):
            return x
        (a, b), (m, n) = self.counts, self.block
        x = x.reshape(*self.shape[:-2], a, b, m, n).swapaxes(-3, -2)
        return x.reshape(*x.shape[:-4], a * m, b * n)[..., : self.shape[-2], : self.shape[-1]]
