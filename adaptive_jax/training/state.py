"""Everything that a training run is, as one pytree."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._core import export, pytrees
from .._core.lifted import Unquoted
from .._core.placement import beside, is_key
from .._core.transformation import member
from .._core.wrapper import evaluating
from ..transforms.behind import with_average
from ..transforms.compensate import exact_params
from ..transforms.evaluate import eval_params
from ..transforms.shards import Axes, state_shardings
from .arrays import own_copies
from .loss_scale import LossScale, started


@export.node
@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "step", "params", "opt_state", "tx", "model_state", "rng", "loss_scale", "skipped",
    ],
    meta_fields=[],
)  # fmt: skip
@dataclass(frozen=True)
class TrainState:
    """Everything that a training run is, as one pytree: made by `TrainState.create`.

    The optimizer is part of it, with its hyperparameters as leaves: `state.replace(tx=aj.adam(3e-4))`
    changes the learning rate of a compiled step, `jax.vmap` over a function that makes a state makes
    an ensemble or a sweep, and a checkpoint of the state holds the hyperparameters.

    step: the number of steps so far, an int32.
    params: the parameters.
    opt_state: the optimizer's state.
    tx: the optimizer.
    model_state: what the loss function changes beside the gradients, such as batch statistics; None.
    rng: the random key of the run; None. Each step makes its own of it.
    loss_scale: a `LossScale`; None.
    skipped: how many steps were skipped because something was not finite, an int32.
    """

    step: Any
    params: Any
    opt_state: Any
    tx: Any
    model_state: Any = None
    rng: Any = None
    loss_scale: Any = None
    skipped: Any = None

    @classmethod
    def create(
        cls,
        params: Any,
        tx: optax.GradientTransformation,
        *,
        model_state: Any = None,
        rng: Any = None,
        loss_scale: LossScale | None = None,
        average: optax.GradientTransformation | None = None,
        copy: bool = True,
        shard: Axes | None = None,
    ) -> TrainState:
        """The state before the first step.

        Args:
          params: the parameters, a tree of floating-point arrays.
          tx: the optimizer. Of this library it is data; any other optax transformation is static.
          model_state: a tree that the loss function takes and gives back, if it has an argument
            `model_state`.
          rng: a key, `jax.random.key(0)`, for a loss function with an argument `rng`.
          loss_scale: for float16 gradients.
          average: what to keep an average of the parameters by, such as `aj.average(0.999)`, of each step
            that is taken. `eval_params()` is that average.
          copy: False to hand the arrays over. A step writes over its state, and would delete them.
          shard: axes of the mesh that the parameters are on, "data" say, or several: the optimizer's state
            is split over them, as `aj.state_shardings` says, and never is on one device as a whole.

        Raises:
          TypeError: for parameters that are no arrays, by their path, shapes of arrays among them, and
            what is no optimizer.
          ValueError: for an average of an optimizer that evaluates with other parameters than it trains
            itself; for a loss scale that is not positive, never grows, or shrinks to grow.

        Example:
          >>> import adaptive_jax as aj, jax.numpy as jnp
          >>> state = aj.TrainState.create({"w": jnp.ones(3)}, aj.adam(1e-3))
          >>> state = state.replace(tx=aj.adam(3e-4))
        """
        tx = member(tx, "TrainState.create")
        if average is not None:
            tx = with_average(tx, _checked_average(average))
        _check_no_shapes(params=params, model_state=model_state, rng=rng)
        pytrees.check_floats("params", params)
        if rng is not None and not (is_key(rng) or _is_old_key(rng)):
            raise TypeError(f"rng={rng!r} is no random key: give jax.random.key(0).")
        if copy:
            params, model_state, rng = jax.tree.map(
                lambda x: jnp.array(x, copy=True), (params, model_state, rng)
            )
            tx = jax.tree.map(lambda x: jnp.copy(x) if isinstance(x, jax.Array) else x, tx)
        init = tx.init
        if shard is not None:
            init = jax.jit(tx.init, out_shardings=state_shardings(tx, params, shard))
        rest = {
            "step": jnp.zeros((), jnp.int32),
            "opt_state": own_copies(init(params), (params, model_state, rng, tx)),
            "model_state": model_state,
            "rng": rng,
            "loss_scale": None if loss_scale is None else started(loss_scale),
            "skipped": jnp.zeros((), jnp.int32),
        }
        return cls(params=params, tx=tx, **beside(params, rest))

    def __repr__(self) -> str:
        """The optimizer, and the shapes of the arrays."""

        def shown(value: Any) -> str:
            return repr(jax.tree.map(lambda x: Unquoted(pytrees.describe(x)), value))

        fields = [(each.name, getattr(self, each.name)) for each in dataclasses.fields(self)]
        parts = (
            f"{name}={value!r}" if name == "tx" else f"{name}={shown(value)}"
            for name, value in fields
            if value is not None
        )
        return f"TrainState({', '.join(parts)})"

    def exact_params(self) -> Any:
        """The parameters in float32, with what `compensate` keeps of them: see `exact_params`."""
        return exact_params(self.params, self.opt_state)

    def eval_params(self) -> Any:
        """The parameters to evaluate with, which an optimizer may tell from those that it trains: see
        `eval_params`.
        """
        return eval_params(self.tx, self.params, self.opt_state)

    def replace(self, **changes: Any) -> TrainState:
        """The state with other values for some of its fields."""
        if "tx" in changes:
            changes["tx"] = member(changes["tx"], "TrainState.replace")
            if len(changes) == 1:  # A new learning rate may come in every step.
                new = object.__new__(type(self))
                new.__dict__.update(self.__dict__, **changes)
                return new
        names = [each.name for each in dataclasses.fields(self)]
        if unknown := [name for name in changes if name not in names]:
            raise TypeError(
                f"a TrainState has no {unknown[0]!r}: it has {', '.join(names)}. A new learning rate is a "
                "new optimizer, replace(tx=aj.adam(3e-4))."
            )
        return dataclasses.replace(self, **changes)


def _checked_average(average: Any) -> Any:
    """The average, if it has something to evaluate with."""
    if isinstance(average, float) and 0 < average < 1:
        raise TypeError(f"average={average!r} is a number: give aj.average({average!r}).")
    if not evaluating(average := member(average, "TrainState.create(average=…)")):
        raise TypeError(
            f"average={average!r} keeps no average of the parameters: give aj.average(0.999), "
            "aj.polynomial_average(), aj.tail_average(start) or aj.latest_average()."
        )
    return average


def _is_old_key(rng: Any) -> bool:
    """Whether it may be a random key as `jax.random.PRNGKey` makes it: an array of integers."""
    return getattr(rng, "dtype", None) == jnp.uint32 and rng.ndim > 0


def _check_no_shapes(**trees: Any) -> None:
    """Raises a TypeError, with the path, for the shape of an array in the place of the array."""
    for name, tree in trees.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if isinstance(leaf, jax.ShapeDtypeStruct):
                raise TypeError(
                    f"{name}{jax.tree_util.keystr(path)} is the shape of an array, "
                    f"{pytrees.describe(leaf)}: a state is made of arrays. For the shapes of a state: "
                    "jax.eval_shape(lambda params: TrainState.create(params, tx), params)."
                )
