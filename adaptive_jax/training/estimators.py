"""What makes other gradients than those of the loss, or more than these: for `train_step(gradient=…)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from .. import maths
from .._core import arguments, hyper, nodes, pytrees
from .._core.mask import Selection
from .._core.refresh import branch
from ..transforms.extra_args import zeros_like


class Estimator:
    """An estimator as data: its numbers are leaves, the other fields static. A frozen dataclass."""

    data_fields: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__repr__ = Estimator.__repr__
        nodes.register(cls, _data_and_static)

    def __repr__(self) -> str:
        """The call that made it."""
        shown = [f"{name}={hyper.show(value)}" for name, value in vars(self).items()]
        return f"{type(self).__name__.lower()}({', '.join(shown)})"


def _data_and_static(cls: type[Estimator]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    static = tuple(name for name in nodes.field_names(cls) if name not in cls.data_fields)
    return cls.data_fields, static


def _estimate(diagonal: Any, due: Any) -> dict[str, Any]:
    return {"hessian_diagonal": diagonal, "has_hessian_diagonal": due}


def _due(every: int, step: Any) -> Any:
    return True if every == 1 else step % every == 0


_DRAWN = {"signs": jax.random.rademacher, "normal": jax.random.normal}


@dataclass(frozen=True, repr=False)
class Hutchinson(Estimator):
    """`hutchinson`, of its arguments."""

    every: int
    vector: str

    def __call__(
        self, value_and_grad: Callable[..., Any], params: Any, batch: Any, step: Any, key: Any
    ) -> tuple[Any, Any, dict[str, Any]]:
        """(first, gradients, extra_args), as `train_step` wants them."""
        _check_real("hutchinson", params)
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(key, max(len(leaves), 1))

        def of_loss() -> tuple[Any, Any, Any]:
            # A product, so that each has the sharding of its parameter.
            vectors = [
                _DRAWN[self.vector](of_one, x.shape, x.dtype) * jnp.ones_like(x)
                for of_one, x in zip(keys, leaves, strict=False)
            ]
            gradients, products, first = jax.jvp(
                lambda at: value_and_grad(at)[::-1], (params,), (treedef.unflatten(vectors),), has_aux=True
            )  # fmt: skip
            pairs = zip(vectors, jax.tree.leaves(products), strict=True)
            diagonal = [maths.precise(v) * maths.precise(p) for v, p in pairs]
            return first, gradients, treedef.unflatten(diagonal)

        if self.every == 1:
            first, gradients, diagonal = of_loss()
            return first, gradients, _estimate(diagonal, True)
        first, gradients = value_and_grad(params)
        due = _due(self.every, step)
        diagonal = branch(due, lambda _: of_loss()[2], zeros_like(params))
        return first, gradients, _estimate(diagonal, due)


def _check_real(name: str, params: Any) -> None:
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        if jnp.issubdtype(jnp.result_type(x), jnp.complexfloating):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} is {pytrees.describe(x)}, and {name} estimates the "
                "diagonal of a Hessian of real parameters. Train its real and its imaginary part."
            )


def hutchinson(every: int = 1, vector: str = "signs") -> Hutchinson:
    """The diagonal of the Hessian, estimated by its product with a random vector.

        ĥ = v∘Hv,   Hv = ∇⟨∇f, v⟩

    For `train_step(…, gradient=aj.hutchinson())`, with `aj.adahessian`, `aj.sophia` or a rule of your own
    that asks for `hessian_diagonal` and `has_hessian_diagonal`. Its mean is the diagonal, and of a diagonal
    Hessian and signs each estimate is exact. The gradients are those of the loss; a step with an estimate
    takes about two to three times as long as one without.

    Hutchinson 1989, https://doi.org/10.1080/03610918908812806.

    Args:
      every: k >= 1: there is a new estimate at the steps 1, k+1, 2k+1, …, under `jax.vmap` too.
      vector: "signs" for v of ±1, as AdaHessian; "normal" for normal numbers, as Sophia's paper, whose
        estimates vary more.

    Returns:
      The estimator. The state needs a key: `TrainState.create(…, rng=jax.random.key(0))`.

    Raises:
      ValueError: for what is no whole number of 1 or more, and for an unknown vector.
      TypeError: in a step, for complex parameters.

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp
      >>> step = aj.train_step(lambda w, batch: jnp.sum(batch * w**2), gradient=aj.hutchinson())
      >>> state = aj.TrainState.create(jnp.ones(2), aj.adahessian(0.5), rng=jax.random.key(0))
      >>> state, metrics = step(state, jnp.array([1.0, 50.0]))
      >>> print(metrics["loss"])
      51.0
    """
    arguments.one_of("vector", vector, tuple(_DRAWN))
    return Hutchinson(arguments.whole("every", every, 1), vector)


@dataclass(frozen=True, repr=False)
class GaussNewtonBartlett(Estimator):
    """`gauss_newton_bartlett`, of its arguments."""

    sampled_loss: Callable[[Any, Any, Any], Any]
    every: int
    terms: Any

    def __call__(
        self, value_and_grad: Callable[..., Any], params: Any, batch: Any, step: Any, key: Any
    ) -> tuple[Any, Any, dict[str, Any]]:
        """(first, gradients, extra_args), as `train_step` wants them."""
        _check_real("gauss_newton_bartlett", params)
        first, gradients = value_and_grad(params)
        terms = self.terms
        if terms is None:
            terms = len(jax.tree.leaves(batch)[0])
        terms = jnp.asarray(terms(batch) if callable(terms) else terms)
        (key,) = jax.random.split(key, 1)

        def estimate(_: Any) -> Any:
            sampled = jax.grad(self.sampled_loss)(params, batch, key)
            return jax.tree.map(
                lambda g: maths.scaled(maths.abs_squared(maths.precise(g)), terms), sampled
            )

        due = _due(self.every, step)
        diagonal = branch(due, estimate, zeros_like(params)) if self.every > 1 else estimate(None)
        return first, gradients, _estimate(diagonal, due)

    def __repr__(self) -> str:
        """The call that made it."""
        name = getattr(self.sampled_loss, "__name__", repr(self.sampled_loss))
        terms = getattr(self.terms, "__name__", self.terms)
        return f"gauss_newton_bartlett({name}, every={self.every}, terms={terms})"


def gauss_newton_bartlett(
    sampled_loss: Callable[[Any, Any, Any], Any], every: int = 10, terms: Any = None
) -> GaussNewtonBartlett:
    """The diagonal of the Gauss-Newton matrix, estimated with labels that the model draws.

        ĥ = B·ĝ∘ĝ,   ĝ = ∇ of the mean over B terms of the loss with labels drawn from the model

    For `train_step(…, gradient=aj.gauss_newton_bartlett(sampled_loss))` with `aj.sophia`: Sophia-G. It is
    never negative, and costs a gradient where it is due. The gradients are those of the loss.

    Liu et al. 2024, https://arxiv.org/abs/2305.14342, algorithm 2.

    Args:
      sampled_loss: `sampled_loss(params, batch, key)` computes the model's outputs, draws a label for each
        from the model's own distribution, and returns the mean loss with these labels. Nothing is to be
        differentiated through the draw. The batch comes as a whole, and in its own dtype.
      every: k >= 1: there is a new estimate at the steps 1, k+1, 2k+1, …, under `jax.vmap` too.
      terms: B: of how many terms the loss is the mean: a number, or a function of the batch. None for the
        length of the first axis of the batch. For a language model it is the number of tokens: what it
        is wrong by, all estimates are wrong by.

    Returns:
      The estimator. The state needs a key: `TrainState.create(…, rng=jax.random.key(0))`.

    Raises:
      TypeError, ValueError: for what is no function, or no whole number; in a step, for complex parameters.

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp, optax
      >>> def loss(w, batch, key=None):
      ...     logits, labels = batch["x"] @ w, batch["y"]
      ...     if key is not None:
      ...         labels = jax.random.categorical(key, jax.lax.stop_gradient(logits))
      ...     return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
      >>> estimator = aj.gauss_newton_bartlett(loss, every=10)
      >>> step = aj.train_step(lambda w, batch: loss(w, batch), gradient=estimator)
      >>> tx = aj.sophia(1e-3, gamma=0.05)
      >>> state = aj.TrainState.create(jnp.zeros((5, 3)), tx, rng=jax.random.key(0))
      >>> state, metrics = step(state, {"x": jnp.ones((8, 5)), "y": jnp.zeros(8, jnp.int32)})
    """
    if not callable(sampled_loss):
        raise TypeError(
            f"sampled_loss={sampled_loss!r:.80} must be a function of (params, batch, key) that returns "
            "the loss with labels drawn from the model."
        )
    if terms is not None and not callable(terms):
        terms = arguments.whole("terms", terms, 1)
    return GaussNewtonBartlett(sampled_loss, arguments.whole("every", every, 1), terms)


@dataclass(frozen=True, repr=False)
class Sam(Estimator):
    """`sam`, of its arguments."""

    rho: Any

    data_fields = ("rho",)

    def __call__(
        self, value_and_grad: Callable[..., Any], params: Any, batch: Any, step: Any, key: Any
    ) -> tuple[Any, Any, dict[str, Any]]:
        """(first, gradients, extra_args), as `train_step` wants them."""
        first, gradients = value_and_grad(params)
        return first, value_and_grad(self.worst(params, gradients, step))[1], {}

    def worst(self, params: Any, gradients: Any, step: Any) -> Any:
        """The parameters nearby where the loss is about the largest."""
        rho: Any = self.rho
        if hyper.is_schedule(rho):
            rho = hyper.scheduled(repr(self), "rho", rho, step)
        leaves, treedef = jax.tree.flatten(params)
        up = list(map(maths.precise, jax.tree.leaves(maths.ascent(gradients))))
        exact = list(map(maths.precise, leaves))
        sizes = self.sizes(params, exact)
        scaled = [x if t is None else x * t for x, t in zip(up, sizes, strict=True)]
        norm = maths.global_norm(scaled)
        # Of gradients of zero there is no direction, and 0 times whatever this is.
        radius = jnp.asarray(rho, norm.dtype) / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny)
        new = [
            x + maths.scaled(e if t is None else e * t, radius)
            for x, e, t in zip(exact, scaled, sizes, strict=True)
        ]
        return treedef.unflatten(new)

    def sizes(self, params: Any, exact: list[jax.Array]) -> list[jax.Array | None]:
        """In which unit each parameter moves; None for 1."""
        del params
        return [None] * len(exact)


@dataclass(frozen=True, repr=False)
class Asam(Sam):
    """`asam`, of its arguments."""

    eta: Any
    mask: Any

    data_fields = ("rho", "eta")

    def sizes(self, params: Any, exact: list[jax.Array]) -> list[jax.Array | None]:
        """|θ| + η of what the mask selects."""
        selected = pytrees.Arrays("params", params).selected(self.mask, params)
        eta = self.eta
        return [
            jnp.abs(x) + jnp.asarray(eta, jnp.finfo(x.dtype).dtype) if is_selected else None
            for x, is_selected in zip(exact, selected, strict=True)
        ]


def sam(rho: Any = 0.05) -> Sam:
    """The gradients where the loss is worst nearby: sharpness-aware minimisation.

        g = ∇f(θ + ρ∇f(θ)/‖∇f(θ)‖),   ‖·‖ over all arrays

    For `train_step(…, gradient=aj.sam())` with any optimizer: two gradients in each step. Loss, model state
    and aux are those at θ. The point nearby is in float32 at least, for bfloat16 parameters too, which
    could not hold it.

    Foret et al. 2021, https://arxiv.org/abs/2010.01412.

    Differs from `optax.contrib.sam`: one call per step; gradients of zero are zero, and not NaN.

    Args:
      rho: the radius ρ >= 0: a number, an array of shape (), which may be a tracer, or a schedule, of the
        number of steps so far.

    Returns:
      The estimator, a pytree with the leaf ρ.

    Raises:
      TypeError, ValueError: for a ρ that is none of these, or negative.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> step = aj.train_step(lambda w, batch: jnp.sum((w - batch) ** 2), gradient=aj.sam(0.05))
      >>> state = aj.TrainState.create(jnp.zeros(2), aj.sgd(0.25))
      >>> print(step(state, jnp.array([3.0, 4.0]))[0].params)
      [1.515 2.02 ]
    """
    return Sam(_radius("sam", rho))


def asam(rho: Any = 0.5, eta: Any = 0.01, mask: Any = None) -> Asam:
    """The same with a radius in the unit of each parameter: adaptive sharpness-aware minimisation.

        g = ∇f(θ + ρT²∇f(θ)/‖T∇f(θ)‖),   T = |θ| + η of what the mask selects, 1 of the rest

    So that it does not change where a layer is scaled, and the next one scaled back. See `sam`.

    Kwon et al. 2021, https://arxiv.org/abs/2102.11600.

    Args:
      rho: the radius ρ >= 0, as of `sam`.
      eta: η >= 0: a number, or an array of shape (). 0 with mask=True for the adaptive form of davda54/sam.
      mask: which arrays have a unit of their own: a tree of bools, a prefix of one, or a function of the
        parameters. None for those with two axes and more. (The authors' code takes all that are called
        weights, the scales of normalisation among them.)

    Returns:
      The estimator, a pytree with the leaves ρ and η.

    Raises:
      TypeError, ValueError: for what is no number, or negative, and for a mask that is no tree of bools.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> tx = aj.sgd(0.25)
      >>> step = aj.train_step(lambda w, x: jnp.sum((w - x) ** 2), gradient=aj.asam(0.5, mask=True))
      >>> state, _ = step(aj.TrainState.create(jnp.ones(2), tx), jnp.array([3.0, 4.0]))
      >>> print(*(f"{x:.3f}" for x in state.params))
      2.140 2.710
    """
    if hyper.is_schedule(eta):
        raise TypeError(f"eta={eta!r:.80} in asam must be a number, or an array of shape ().")
    eta = hyper.hyperparameter("asam", "eta", eta, hyper.Interval(0.0))
    return Asam(_radius("asam", rho), eta, Selection.of(_matrices if mask is None else mask))


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda x: jnp.ndim(x) > 1, params)


def _radius(name: str, rho: Any) -> Any:
    found = hyper.hyperparameter(name, "rho", rho, hyper.Interval(0.0))
    if found is None:
        raise TypeError(f"rho=None in {name}: it must be a number.")
    return hyper.as_data(found)
