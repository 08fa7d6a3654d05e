"""What an optimizer does to the parameters, measured where it stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import keystr

from .._core import arguments, export, pytrees
from .._core.transformation import Transformation, member
from .._core.wrapper import Wrapper
from .extra_args import zeros_like
from .measures import MEASURES, Group, average, norm


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


@dataclass(frozen=True)
class Diagnose(Wrapper):
    """`diagnose`, of its arguments."""

    inner: Any
    measures: tuple[str, ...]
    group_by: Callable[[str], str] | None = field(repr=False)
    quantiles: tuple[float, ...] = field(repr=False)
    every: int = field(repr=False)

    wraps = {"inner": "inner_state"}
    state_type = DiagnoseState
    label = "diagnose"

    def init(self, params: Any) -> DiagnoseState:
        groups = self._groups(params)
        shapes = {"effective_learning_rate": (len(self.quantiles),)}
        tracks = "signal_to_noise" in self.measures

        def of_groups(shape: tuple[int, ...]) -> Any:
            if pytrees.is_placeholder(params):  # Without names: one entry stands for all groups.
                return jnp.zeros(shape, jnp.float32)
            return {name: jnp.zeros(shape, jnp.float32) for name in groups}

        return DiagnoseState(
            count=jnp.zeros((), jnp.int32),
            measured={measure: of_groups(shapes.get(measure, ())) for measure in self.measures},
            gradient_mean=zeros_like(params) if tracks else None,
            gradient_square=of_groups(()) if tracks else {},
            inner_state=self.inner.init(params),
        )

    def step(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, DiagnoseState]:
        missing = [name for name in self.measures if MEASURES[name].needs_params]
        if params is None and missing and jax.tree.leaves(updates):
            raise ValueError(
                f"diagnose measures {missing[0]!r}, which needs the parameters: call update(gradients, "
                "state, params), or leave that measure out."
            )
        new, inner_state = self.inner.update(updates, state.inner_state, params, **extra_args)
        gradients, made = pytrees.Arrays("gradients", updates), pytrees.Arrays("gradients", new)
        groups = self._groups(updates)
        count: Any = optax.safe_increment(state.count)
        mean, square = state.gradient_mean, state.gradient_square
        if mean is not None:
            olds = gradients.same_shapes("the state's gradient_mean", mean)
            means = [
                old if g is None else average(old, g.astype(old.dtype))
                for g, old in zip(gradients.leaves, olds, strict=True)
            ]
            mean = gradients.treedef.unflatten(means)
            square = {
                name: average(square[name], jnp.square(norm([gradients.leaves[i] for i in places])))
                for name, places in groups.items()
            }

        def measure() -> Any:
            averages = gradients.leaves if mean is None else gradients.treedef.flatten_up_to(mean)
            trees = gradients.leaves, made.leaves, gradients.params(params, ()), averages
            found: dict[str, dict[str, jax.Array]] = {each: {} for each in self.measures}
            for name, places in groups.items():
                g, u, p, m = ([leaves[i] for i in places] for leaves in trees)
                group = Group(g, u, p, m, square.get(name), count, self.quantiles)
                for each in self.measures:
                    found[each][name] = MEASURES[each].function(group)
            return found

        if self.every == 1:
            measured = measure()
        else:
            measured = jax.lax.cond(count % self.every == 0, measure, lambda: state.measured)
        return new, DiagnoseState(count, measured, mean, square, inner_state)

    def _groups(self, tree: Any) -> dict[str, list[int]]:
        """From the name of each group to the places of its arrays among all, None among them."""
        paths = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None)
        groups: dict[str, list[int]] = {}
        for index, (path, leaf) in enumerate(paths):
            name = keystr(path) if self.group_by is None else self.group_by(keystr(path))
            places = groups.setdefault(name, [])
            if leaf is not None:
                places.append(index)
        return groups


def diagnose(
    inner: optax.GradientTransformation,
    measures: Sequence[str] = tuple(MEASURES)[:6],
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
        sparsity                  the share of the elements where θ + u is 0
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
    return Transformation.of(
        Diagnose(inner_member, tuple(measures), group_by, tuple(quantiles), every)
    )
