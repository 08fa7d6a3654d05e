"""What an optimizer does to the parameters, measured where it stands."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial, keystr

from .. import maths
from .._core import arguments, export, pytrees, states
from .._core.storage.sharding import whole
from .._core.transformation import Transformation, member

MEASURES = (
    "gradient_norm",
    "update_norm",
    "parameter_norm",
    "update_ratio",
    "cosine",
    "moving",
    "effective_learning_rate",
    "signal_to_noise",
)
"""What `diagnose` can measure."""


_DECAY = 0.9


_NEED_PARAMS = ("parameter_norm", "update_ratio", "moving")


@export.state
class DiagnoseState(NamedTuple):
    """The measurements of the last step that was measured, by measure and group, and the inner state.

    gradient_mean and gradient_square are moving averages, for "signal_to_noise": of each gradient, and
    of each group's squared norm.
    """

    count: jax.Array
    measured: dict[str, dict[str, jax.Array]]
    gradient_mean: Any
    gradient_square: dict[str, jax.Array]
    inner_state: Any


@export.node
@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["inner"],
    meta_fields=["measures", "group_by", "quantiles", "every"],
)
@dataclass(frozen=True, repr=False)
class Diagnose:
    """The arguments of `diagnose`."""

    inner: Any
    measures: tuple[str, ...]
    group_by: Callable[[str], str] | None
    quantiles: tuple[float, ...]
    every: int

    def __repr__(self) -> str:
        return f"diagnose({self.inner!r}, {self.measures!r})"


def diagnose(
    inner: optax.GradientTransformation,
    measures: Sequence[str] = MEASURES[:6],
    *,
    group_by: Callable[[str], str] | None = None,
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
    every: int = 1,
) -> Transformation:
    """Measures what a transformation makes of its gradients g, and changes nothing.

    With u the update and θ the parameters of a group, the measures are

        gradient_norm             ‖g‖
        update_norm               ‖u‖
        parameter_norm            ‖θ‖
        update_ratio              ‖u‖/‖θ‖
        cosine                    -⟨u, g⟩/(‖u‖·‖g‖): 1 for gradient descent
        moving                    the share of the elements that θ + u changes, rounded to nearest
        effective_learning_rate   quantiles of |u|/|g| over the elements whose g is not 0
        signal_to_noise           ‖E g‖²/E‖g - E g‖², from moving averages over some twenty steps

    The first six are measured by default. In float32, 0 where there is nothing to measure. They
    stay on the device, in a state whose structure never changes: `optax.tree.get(state, "cosine")`
    finds them. (`optax.tree.map_params` asks for a state without parameters, which has no groups:
    it cannot be used on this one.)

    Args:
      inner: what to look at: a whole optimizer, or any part of a chain.
      measures: the names of what to measure, by default the first six. Without any, `()`, inner comes
        back as it is and costs what it did. "signal_to_noise" keeps one more float32 array per
        parameter.
      group_by: from the path of an array, such as "['layer']['kernel']", to the name of the group that
        it counts in; None for a group of its own, under its path.
      quantiles: those of "effective_learning_rate".
      every: to measure in every so many steps only; quantiles sort all elements.

    Returns:
      The transformation. Its state is a `DiagnoseState`.

    Raises:
      TypeError, ValueError: for what is no transformation, and unknown measures; when it is used, for
        parameters that a measure needs and does not get.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> tx = aj.diagnose(aj.sgd(0.1), ("cosine", "update_ratio"), group_by=lambda path: "all")
      >>> params = {"w": jnp.array([3.0, 4.0]), "b": jnp.zeros(1)}
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> print({name: f"{groups['all']:.2f}" for name, groups in state.measured.items()})
      {'cosine': '1.00', 'update_ratio': '0.10'}
    """
    inner_member = member(inner, "diagnose")
    if isinstance(measures, str):
        raise TypeError(f"measures={measures!r} is a string: give a tuple of names.")
    for name in measures:
        arguments.one_of("measures", name, MEASURES)
    every = arguments.whole("every", every, 1)
    if not all(0 <= each <= 1 for each in quantiles):
        raise ValueError(f"quantiles={quantiles!r} must be between 0 and 1.")
    if not measures:
        return inner_member
    wrapper = Diagnose(inner_member, tuple(measures), group_by, tuple(quantiles), every)
    return Transformation(Partial(_diagnose_init, wrapper), Partial(_diagnose_update, wrapper))


def _groups(wrapper: Diagnose, tree: Any) -> dict[str, list[int]]:
    """From the name of each group to the places of its arrays among all, None among them."""
    paths = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None)
    groups: dict[str, list[int]] = {}
    for index, (path, leaf) in enumerate(paths):
        name = keystr(path) if wrapper.group_by is None else wrapper.group_by(keystr(path))
        places = groups.setdefault(name, [])
        if leaf is not None:
            places.append(index)
    return groups


def _diagnose_init(wrapper: Diagnose, params: Any) -> DiagnoseState:
    groups = _groups(wrapper, params)
    shapes = {"effective_learning_rate": (len(wrapper.quantiles),)}
    tracks = "signal_to_noise" in wrapper.measures

    def of_groups(shape: tuple[int, ...]) -> Any:
        if pytrees.is_placeholder(params):  # Without names: one entry stands for all groups.
            return jnp.zeros(shape, jnp.float32)
        return {name: jnp.zeros(shape, jnp.float32) for name in groups}

    return DiagnoseState(
        count=jnp.zeros((), jnp.int32),
        measured={measure: of_groups(shapes.get(measure, ())) for measure in wrapper.measures},
        gradient_mean=jax.tree.map(_zeros, params) if tracks else None,
        gradient_square=of_groups(()) if tracks else {},
        inner_state=wrapper.inner.init(params),
    )


def _zeros(x: Any) -> jax.Array:
    return jnp.zeros_like(x, maths.compute_dtype(jnp.result_type(x)))


def _diagnose_update(
    wrapper: Diagnose, updates: Any, state: Any, params: Any = None, **extra_args: Any
) -> tuple[Any, DiagnoseState]:
    states.check_wrapper(state, DiagnoseState)
    updates = pytrees.gradients(updates)
    missing = [name for name in wrapper.measures if name in _NEED_PARAMS and params is None]
    if missing and jax.tree.leaves(updates):
        raise ValueError(
            f"diagnose measures {missing[0]!r}, which needs the parameters: call update(gradients, "
            "state, params), or leave that measure out."
        )
    new, inner_state = wrapper.inner.update(updates, state.inner_state, params, **extra_args)
    gradients, made = pytrees.Arrays("gradients", updates), pytrees.Arrays("gradients", new)
    groups = _groups(wrapper, updates)
    count: Any = optax.safe_increment(state.count)
    mean, square = state.gradient_mean, state.gradient_square
    if mean is not None:
        olds = gradients.same_shapes("the state's gradient_mean", mean)
        means = [
            old if g is None else _average(old, g.astype(old.dtype))
            for g, old in zip(gradients.leaves, olds, strict=True)
        ]
        mean = gradients.treedef.unflatten(means)
        square = {
            name: _average(square[name], jnp.square(_norm([gradients.leaves[i] for i in places])))
            for name, places in groups.items()
        }

    def measure() -> Any:
        averages = gradients.leaves if mean is None else gradients.treedef.flatten_up_to(mean)
        trees = gradients.leaves, made.leaves, gradients.params(params, ()), averages
        found: dict[str, dict[str, jax.Array]] = {each: {} for each in wrapper.measures}
        for name, places in groups.items():
            g, u, p, m = ([leaves[i] for i in places] for leaves in trees)
            for each in wrapper.measures:
                found[each][name] = _measure(wrapper, each, g, u, p, m, square.get(name), count)
        return found

    if wrapper.every == 1:
        measured = measure()
    else:
        measured = jax.lax.cond(count % wrapper.every == 0, measure, lambda: state.measured)
    return new, DiagnoseState(count, measured, mean, square, inner_state)


def _measure(
    wrapper: Diagnose,
    measure: str,
    gradients: list[Any],
    updates: list[Any],
    params: list[Any],
    means: list[Any],
    square: Any,
    count: jax.Array,
) -> jax.Array:
    """One measure of one group."""
    if measure == "gradient_norm":
        return _norm(gradients)
    if measure == "update_norm":
        return _norm(updates)
    if measure == "parameter_norm":
        return _norm(params)
    if measure == "update_ratio":
        return maths.ratio(_norm(updates), _norm(params))
    if measure == "cosine":
        # Of vectors of length 1: their product cannot overflow.
        lengths = maths.global_norm(gradients), maths.global_norm(updates)
        products = [
            jnp.sum(jnp.real(_unit(g, lengths[0]) * jnp.conj(_unit(u, lengths[1]))))
            for g, u in zip(gradients, updates, strict=True)
        ]
        return -_sum(products)
    if measure == "moving":
        changed = [
            jnp.sum(maths.saturating_cast(_wide(p) + _wide(u), p.dtype) != p)
            for p, u in zip(params, updates, strict=True)
        ]
        return maths.ratio(_sum(changed), jnp.float32(sum(p.size for p in params)))
    if measure == "effective_learning_rate":
        sizes = [
            (jnp.abs(_wide(whole(g))).ravel(), jnp.abs(_wide(whole(u))).ravel())
            for g, u in zip(gradients, updates, strict=True)
        ]
        ratios = [jnp.where(g > 0, u / jnp.where(g > 0, g, 1), jnp.nan) for g, u in sizes]
        if not sum(each.size for each in ratios):
            return jnp.zeros(len(wrapper.quantiles), jnp.float32)
        together = jnp.concatenate([each.astype(jnp.float32) for each in ratios])
        found = jnp.nanquantile(together, jnp.asarray(wrapper.quantiles, jnp.float32))
        return jnp.where(jnp.isnan(found), 0, found).astype(jnp.float32)
    # The averages have weights that add up to 1 - b^t, and a mean of n noisy gradients still has an
    # n-th of their variance; 1/n is the sum of the squared weights.
    past = jnp.float32(_DECAY) ** count.astype(jnp.float32)
    weight = 1 - past
    share = (1 - _DECAY) * (1 + past) / ((1 + _DECAY) * weight)
    mean_squared = jnp.square(_norm(means) / weight)
    noise = maths.ratio(jnp.maximum(square / weight - mean_squared, 0), 1 - share)
    return maths.ratio(jnp.maximum(mean_squared - share * noise, 0), noise)


def _average(old: jax.Array, new: jax.Array) -> jax.Array:
    return maths.ema(new, old, jnp.asarray(_DECAY, jnp.finfo(old.dtype).dtype))


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(maths.compute_dtype(x.dtype))


def _norm(arrays: list[Any]) -> jax.Array:
    return maths.saturating_cast(maths.global_norm(arrays), jnp.dtype(jnp.float32))


def _unit(x: jax.Array, length: jax.Array) -> jax.Array:
    return maths.quotient(_wide(x), jnp.where(length > 0, length, 1))


def _sum(values: list[jax.Array]) -> jax.Array:
    return sum((value.astype(jnp.float32) for value in values), jnp.zeros((), jnp.float32))
