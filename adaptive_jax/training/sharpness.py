"""How sharply a loss is curved, as the optimizer sees it, and which learning rates that allows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import maths
from .._core import arguments, pytrees
from .._core.transformation import data_of, member
from ..transforms.parts import parts
from .arrays import is_spread, is_used_up
from .rates import learning_rates, rate_setter


@dataclass(frozen=True)
class Sharpness:
    """What `sharpness` returns.

    value: λ, the largest eigenvalue of the Hessian, or of it as the optimizer sees it.
    error: an eigenvalue is no further from value than this.
    steps: how many Hessian-vector products it took.
    learning_rate: that of the optimizer, at this step; None without an optimizer.
    """

    value: float
    error: float
    steps: int
    learning_rate: float | None = None

    @property
    def largest_learning_rate(self) -> float:
        """2/λ, from which on a quadratic loss as curved as this diverges; inf where nothing is convex."""
        return 2 / self.value if self.value > 0 else math.inf

    def __repr__(self) -> str:
        text = (
            f"sharpness {self.value:.4g} ± {self.error:.1g}, learning rates up to "
            f"{self.largest_learning_rate:.4g}"
        )
        if self.learning_rate is None:
            return text
        return f"{text}; it is {self.learning_rate:.4g}"


def sharpness(
    loss: Callable[[Any, Any], Any],
    params: Any,
    batch: Any,
    tx: Any = None,
    state: Any = None,
    *,
    tolerance: float = 1e-3,
    max_steps: int = 100,
    seed: int = 0,
) -> Sharpness:
    """The largest eigenvalue of the Hessian, plain or as the optimizer sees it, and what it allows.

        λ = λ_max(PH),   stable for a learning rate η < 2/λ

    On the loss ½θᵀHθ, gradient descent multiplies θ by 1 - ηλ along each eigenvector, and so diverges
    from η = 2/λ on: the gradient turns its sign in each step, and grows. P is how the step of the
    optimizer, for η = 1, answers to such a gradient: 1 for gradient descent, 1/(1+β) with the momentum β,
    and (1-β₁)/((1+β₁)(√ν + ε)) for Adam, whose preconditioned Hessian then may reach 38/η. It is taken
    from the optimizer itself, as the derivative of its next steps at the moments that the state has, for
    gradients around 0: second moments stay, what clips does not. Training at large rates goes to where λ
    is 2/η, and on at that edge.

    By the Lanczos iteration of Hessian-vector products (forward over reverse), in the inner product of P:
    it needs four arrays like the parameters, in whatever sharding they have, comes to the end of the
    spectrum long before a power iteration, which also takes the largest |λ| for λ, and bounds its error. It
    is not orthogonalised again: that makes copies of eigenvalues, and leaves the largest where it is.
    (`jax.experimental.sparse.linalg.lobpcg_standard` works on one dense matrix of many columns.)

    Cohen et al. 2021, https://arxiv.org/abs/2103.00065; Cohen et al. 2022,
    https://arxiv.org/abs/2207.14484.

    Args:
      loss: `loss(params, batch)`, a number; without anything random in it. Give the same function again,
        and nothing compiles again.
      params: the parameters, a tree of real floating-point arrays.
      batch: what the loss is of: all data, or a part for a noisy estimate.
      tx: the optimizer; None for the plain Hessian.
      state: the optimizer's state, `TrainState.opt_state`, after some steps.
      tolerance: the error relative to λ to stop at, above 0.
      max_steps: the most Hessian-vector products, 1 or more. `error` says how far they have come.
      seed: of the random vector to start from.

    Returns:
      A `Sharpness`: `.value`, `.error`, `.largest_learning_rate`.

    Raises:
      TypeError: for a loss that is no function or no number, parameters that are no floating-point arrays,
        complex ones, and what is no optimizer.
      ValueError: for an optimizer without its state or the reverse, or without a learning rate that can be
        set, one whose step does not grow with the gradient, as of a sign, second moments that are 0 still,
        parameters or a state that were used up, and a Hessian that is not finite.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> def loss(w, batch):
      ...     return jnp.sum(batch * w**2) / 2
      >>> w = jnp.ones(3)
      >>> f"{aj.sharpness(loss, w, jnp.array([1.0, 4.0, 10.0])).largest_learning_rate:.4g}"
      '0.2'
      >>> tx = aj.sgd(0.1, momentum=0.9)
      >>> aj.sharpness(loss, w, jnp.array([1.0, 4.0, 10.0]), tx, tx.init(w))  # doctest: +ELLIPSIS
      sharpness 5.263 ± ..., learning rates up to 0.38; it is 0.1
    """
    if not callable(loss):
        raise TypeError(f"loss={loss!r:.200} must be a function of the parameters and a batch.")
    arguments.number("tolerance", tolerance, 0)
    max_steps = arguments.whole("max_steps", max_steps, 1)
    params = _checked_params(params, (batch, state))
    if (tx is None) != (state is None):
        raise ValueError(
            "tx and state go together: give the optimizer and its state, sharpness(loss, params, batch, "
            "state.tx, state.opt_state) of a TrainState, or neither, for the plain Hessian."
        )
    rate = given = None
    if tx is not None:
        given = tx = member(tx, "sharpness")
        _check_moments(tx, state)
        now = learning_rates(tx, state, state)[0].get("learning_rate")
        tx = rate_setter(tx, state)(1.0)
        rate = None if now is None else float(now)
    start = _random_like(params, seed)
    momentum, answer = _prepared(tx, state, params, start)
    size = _product(start, answer)
    if not size > 0 or not math.isfinite(size):
        raise ValueError(
            f"the step of {given!r:.200} does not grow with a gradient around 0 (⟨g, Pg⟩ is "
            f"{float(size):.3g}), as of a sign: there is no preconditioned Hessian. The plain one is "
            "sharpness(loss, params, batch)."
        )
    before = jax.tree.map(jnp.zeros_like, start)
    v, pv = (
        jax.tree.map(lambda x: x / jnp.sqrt(size).astype(x.dtype), each) for each in (start, answer)
    )
    diagonal: list[float] = []
    beside: list[float] = [0.0]
    while True:
        last = jnp.asarray(beside[-1], jnp.float32)
        along, beyond, (before, v, pv) = _step(
            loss, params, batch, tx, state, momentum, last, before, v, pv
        )
        diagonal.append(float(along))
        beside.append(float(beyond))
        if not math.isfinite(diagonal[-1]) or not math.isfinite(beside[-1]):
            raise ValueError(
                f"the Hessian of the loss is not finite, or the optimizer's answer to it is not: the "
                f"Hessian-vector product {len(diagonal)} gave {diagonal[-1]}. Is the loss finite here, and "
                "can it be differentiated twice?"
            )
        values, vectors = np.linalg.eigh(
            np.diag(diagonal) + np.diag(beside[1:-1], 1) + np.diag(beside[1:-1], -1)
        )
        error = abs(beside[-1] * vectors[-1, -1])
        if error <= tolerance * abs(values[-1]) or len(diagonal) == max_steps:
            return Sharpness(float(values[-1]), float(error), len(diagonal), rate)


@functools.partial(jax.jit, static_argnums=0)
def _step(
    loss: Any, params: Any, batch: Any, tx: Any, state: Any, momentum: Any,
    last: Any, before: Any, v: Any, pv: Any,
) -> Any:  # fmt: skip
    """One step of Lanczos: v has ⟨v, Pv⟩ = 1, and Pv comes with it."""

    def value(params: Any) -> Any:
        found = loss(params, batch)
        if jnp.shape(found) != ():
            raise TypeError(
                f"loss returned {pytrees.describe(found)}: it must return one number, a scalar."
            )
        return found

    _, z = jax.jvp(jax.grad(value), (params,), (pv,))
    along = _product(pv, z)
    z = jax.tree.map(
        lambda z, v, u: z - along.astype(v.dtype) * v - last.astype(v.dtype) * u, z, v, before
    )
    pz = _answer(tx, state, params, momentum, z)
    beyond = jnp.sqrt(jnp.maximum(_product(z, pz), 0))
    inverse = maths.ratio(jnp.ones_like(beyond), beyond)
    scaled = [jax.tree.map(lambda x: x * inverse.astype(x.dtype), each) for each in (z, pz)]
    return along, beyond, (v, *scaled)


def _product(x: Any, y: Any) -> Any:
    """⟨x, y⟩ of two trees, in float32 at least."""
    each = jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y), x, y))
    return functools.reduce(jnp.add, each)


def _answers(tx: Any, state: Any, params: Any, gradients: Any) -> tuple[Any, Any, Any]:
    """The derivative of three steps by the gradient of the first one, the others having none."""
    zeros = jax.tree.map(jnp.zeros_like, gradients)

    def steps(kick: Any) -> Any:
        first, after = tx.update(kick, state, params)
        second, after = tx.update(zeros, after, params)
        return first, second, tx.update(zeros, after, params)[0]

    return jax.jvp(steps, (zeros,), (gradients,))[1]


def _answer(tx: Any, state: Any, params: Any, momentum: Any, gradients: Any) -> Any:
    """P of a gradient that turns its sign in each step, against which the parameters move.

    What a gradient does is h₁ in its own step, and h₂, βh₂, β²h₂, … in those after it. Of one that turns
    round in each step, h₁ - h₂ + βh₂ - … = h₁ - h₂/(1+β) is left.
    """
    if tx is None:
        return gradients
    first, second, _ = _answers(tx, state, params, gradients)
    return jax.tree.map(lambda h1, h2: h2 / (1 + momentum.astype(h2.dtype)) - h1, first, second)


@jax.jit
def _prepared(tx: Any, state: Any, params: Any, start: Any) -> tuple[Any, Any]:
    """The momentum β, by how much what is left of a gradient shrinks in a step, and P of a vector."""
    momentum = jnp.zeros((), jnp.float32)
    if tx is not None:
        _, second, third = _answers(tx, state, params, start)
        momentum = maths.ratio(_product(second, third), _product(second, second))
    return momentum, _answer(tx, state, params, momentum, start)


def _random_like(params: Any, seed: int) -> Any:
    """A random vector, where the parameters are."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    made = [jax.random.normal(key, x.shape, x.dtype) for key, x in zip(keys, leaves, strict=True)]
    return treedef.unflatten(
        jax.device_put(v, x.sharding) if is_spread(x) else v
        for v, x in zip(made, leaves, strict=True)
    )


def _checked_params(params: Any, others: Any) -> Any:
    """The parameters, in float32 at least."""
    pytrees.check_floats("params", params)
    if is_used_up((params, others)):
        raise ValueError(
            "params, batch or state was used up by a step, which wrote over its arrays: measure before "
            "the step, or of the state that it returned."
        )
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        if jnp.iscomplexobj(x):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} is complex, {pytrees.describe(x)}: the Hessian is of "
                "real parameters. Give their real and imaginary parts."
            )
    if not jax.tree.leaves(params):
        raise ValueError("params has no arrays in it: there is no Hessian.")
    return jax.tree.map(lambda x: maths.precise(jnp.asarray(x)), params)


def _check_moments(tx: Any, state: Any) -> None:
    """Raises a ValueError for second moments of no gradient: what is divided by them means nothing."""
    for rule, _, part in parts(data_of(tx), state):
        moments = [name for name, slot in rule.slots.items() if slot.nonnegative and not slot.shape]
        if moments and "count" in getattr(part, "_fields", ()) and part.count == 0:
            raise ValueError(
                f"state has seen no gradient yet, and {', '.join(moments)} of {type(rule).__name__} is "
                "what it started with: give a state after some steps."
            )
