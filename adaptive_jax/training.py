"""The whole training step in one `jit`, and the loop around it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from . import _check, maths, precision
from ._transform import Text, exact, learning_rate, member
from .wrappers import all_finite

METRICS = (
    "loss",
    "learning_rate",
    "skipped",
    "gradient_norm",
    "update_norm",
    "parameter_norm",
    "update_ratio",
)
"""What `train_step` can measure."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["scale", "good_steps"],
    meta_fields=["growth_interval", "factor"],
)
@dataclass(frozen=True)
class LossScale:
    """A factor on the loss that keeps the gradients of a float16 network from underflowing.

        s ← s/2 after a step whose gradients are not finite, which is skipped, but not below 1;
        s ← 2s after 2000 good steps in a row

    Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740.

    Args:
      scale: s at first, a power of two. One below 1, for gradients that overflow, never shrinks.
      growth_interval: after so many good steps in a row s grows; None for a constant s.
      factor: by how much it grows and shrinks, above 1.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> state = aj.TrainState.create(jnp.ones(2), aj.adam(1e-3), loss_scale=aj.LossScale(1024.0))
      >>> print(state.loss_scale.scale)
      1024.0
    """

    scale: Any = 2.0**15
    growth_interval: int | None = 2000
    factor: float = 2.0
    good_steps: Any = 0

    def after(self, finite: jax.Array) -> LossScale:
        """The scale for the next step."""
        if self.growth_interval is None:
            return self
        good_steps = jnp.where(finite, self.good_steps + 1, 0)
        grows = good_steps >= self.growth_interval
        largest = jnp.finfo(jnp.float32).max / self.factor
        grown = jnp.where(grows, jnp.minimum(self.scale, largest) * self.factor, self.scale)
        shrunk = jnp.maximum(self.scale / self.factor, jnp.minimum(self.scale, 1.0))
        return dataclasses.replace(
            self,
            scale=jnp.where(finite, grown, shrunk),
            good_steps=jnp.where(grows, 0, good_steps),
        )


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
        copy: bool = True,
    ) -> TrainState:
        """The state before the first step.

        Args:
          params: the parameters, a tree of floating-point arrays.
          tx: the optimizer. Of this library it is data; any other optax transformation is static.
          model_state: a tree that the loss function takes and gives back, if it has an argument
            `model_state`.
          rng: a key, `jax.random.key(0)`, for a loss function with an argument `rng`.
          loss_scale: for float16 gradients.
          copy: False to hand the arrays over. A step writes over its state, and would delete them.

        Raises:
          TypeError: for parameters that are no arrays, by their path, and what is no optimizer.
          ValueError: for a loss scale that is not positive, never grows, or shrinks to grow.

        Example:
          >>> import adaptive_jax as aj, jax.numpy as jnp
          >>> state = aj.TrainState.create({"w": jnp.ones(3)}, aj.adam(1e-3))
          >>> state = state.replace(tx=aj.adam(3e-4))
        """
        tx = member(tx, "TrainState.create")
        _check.leaves("params", params)
        if rng is not None and not _is_key(rng):
            raise TypeError(f"rng={rng!r} is no random key: give jax.random.key(0).")
        if copy:
            params, model_state, rng = jax.tree.map(
                lambda x: jnp.array(x, copy=True), (params, model_state, rng)
            )
            tx = jax.tree.map(lambda x: jnp.copy(x) if isinstance(x, jax.Array) else x, tx)
        if loss_scale is not None:
            _check_scale("scale", loss_scale.scale)
            interval = loss_scale.growth_interval
            if loss_scale.factor <= 1 or (interval is not None and interval < 1):
                raise ValueError(
                    f"{loss_scale}: factor must be above 1, growth_interval 1 or more."
                )
            loss_scale = dataclasses.replace(
                loss_scale,
                scale=jnp.asarray(loss_scale.scale, jnp.float32),
                good_steps=jnp.asarray(loss_scale.good_steps, jnp.int32),
            )
        rest = {
            "step": jnp.zeros((), jnp.int32),
            "opt_state": tx.init(params),
            "model_state": model_state,
            "rng": rng,
            "loss_scale": loss_scale,
            "skipped": jnp.zeros((), jnp.int32),
        }
        return cls(params=params, tx=tx, **_on_the_mesh_of(params, rest))

    def __repr__(self) -> str:
        """The optimizer, and the shapes of the arrays."""

        def shown(value: Any) -> str:
            return repr(jax.tree.map(lambda x: Text(_check.describe(x)), value))

        fields = [(each.name, getattr(self, each.name)) for each in dataclasses.fields(self)]
        parts = (
            f"{name}={value!r}" if name == "tx" else f"{name}={shown(value)}"
            for name, value in fields
            if value is not None
        )
        return f"TrainState({', '.join(parts)})"

    def exact_params(self) -> Any:
        """The parameters in float32, with what `compensate` keeps of them: see `exact_params`."""
        return precision.exact_params(self.params, self.opt_state)

    def replace(self, **changes: Any) -> TrainState:
        """The state with other values for some of its fields."""
        if "tx" in changes:
            changes["tx"] = member(changes["tx"], "TrainState.replace")
        return dataclasses.replace(self, **changes)


def _is_key(rng: Any) -> bool:
    """Whether it is a random key, a new one or one of the old, arrays of unsigned integers."""
    dtype = getattr(rng, "dtype", None)
    return dtype is not None and (
        jnp.issubdtype(dtype, jax.dtypes.prng_key) or (dtype == jnp.uint32 and rng.ndim > 0)
    )


def _check_scale(name: str, value: Any) -> None:
    if isinstance(value, (int, float)) and not 0 < value < float("inf"):
        raise ValueError(f"{name}={value!r} must be a finite number above 0.")


def _on_the_mesh_of(params: Any, rest: Any) -> Any:
    """What is on one device, on all those that the parameters are on: a step would put it there."""
    shardings = (getattr(x, "sharding", None) for x in jax.tree.leaves(params))
    meshes = (x.mesh for x in shardings if isinstance(x, NamedSharding) and x.num_devices > 1)
    mesh = next(meshes, None)
    if mesh is None:
        return rest
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(
        lambda x: (
            jax.device_put(x, everywhere)
            if isinstance(getattr(x, "sharding", None), SingleDeviceSharding)
            else x
        ),
        rest,
    )


def train_step(
    loss_fn: Callable[..., Any],
    *,
    has_aux: bool = False,
    accumulate: int = 1,
    loss_scale: float | None = None,
    skip_nonfinite: bool = False,
    compute_dtype: Any = None,
    rounding: str = "stochastic",
    metrics: Sequence[str] = METRICS[:3],
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]:
    """One training step, compiled whole: loss, gradients, update, new parameters.

        (loss, g) of loss_fn at θ;   u, s ← tx.update(g, s, θ);   θ ← θ + u

    The state is donated: its arrays are written over, and the old state cannot be used any more.
    Errors come while the step is traced, before that. Arrays that are sharded stay so: a batch that is
    split between devices makes the step data parallel.

    Args:
      loss_fn: `loss_fn(params, batch)` returns the loss, a scalar. If it has an argument `rng` it gets
        a key of its own in every step; if it has an argument `model_state` it gets that of the state,
        and returns `(loss, new_model_state)`.
      has_aux: True if loss_fn returns something more at the end, `(loss, aux)` or `(loss,
        new_model_state, aux)`: it becomes the metric "aux".
      accumulate: into how many parts to split the batch, along the first axis of each of its arrays.
        The gradient is the mean of theirs, and memory is needed for one at a time. "aux" then has one
        entry per part.
      loss_scale: a constant factor on the loss while gradients are computed, for float16. One that
        adapts is in the state: `TrainState.create(…, loss_scale=aj.LossScale())`.
      skip_nonfinite: True to leave parameters, optimizer and model state as they are, bit for bit,
        where the loss, a gradient or an update is not finite. With a `LossScale` it always is so.
      compute_dtype: such as jnp.bfloat16: what floating-point parameters and batches are cast to for
        the loss. Gradients and updates have the parameters' dtype.
      rounding: "stochastic" or "nearest", how parameters below 32 bits take their update, as in
        `apply_updates`. Rounded to nearest, they lose most of it, unless the optimizer is in
        `compensate`, with which either gives the same.
      metrics: the names of what to measure, in float32 and on the device: "loss", "learning_rate" (of
        this step, if the optimizer has one), "skipped" (so many steps so far), "gradient_norm",
        "update_norm", "parameter_norm" (before the step) and "update_ratio", the quotient of the last
        two. Norms read every array once more.

    Returns:
      A function of a `TrainState` and a batch that returns the new state and a dict of metrics.

    Raises:
      TypeError, ValueError: for an unknown option; when the step is first called, for a loss that is no
        scalar, for what loss_fn returns too much or too little, for a batch that cannot be split, and
        for a missing key.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> step = aj.train_step(lambda params, batch: jnp.sum((params["w"] - batch) ** 2))
      >>> state = aj.TrainState.create({"w": jnp.zeros(2)}, aj.sgd(0.25))
      >>> state, metrics = step(state, jnp.array([1.0, 2.0]))
      >>> print(state.params["w"], metrics["loss"])
      [0.5 1. ] 5.0
    """
    _check.one_of("rounding", rounding, ("nearest", "stochastic"))
    if isinstance(metrics, str):
        raise TypeError(f"metrics={metrics!r} is a string: give a tuple of names.")
    for name in metrics:
        _check.one_of("metrics", name, METRICS)
    if not isinstance(accumulate, int) or isinstance(accumulate, bool) or accumulate < 1:
        raise ValueError(f"accumulate={accumulate!r} must be a whole number, 1 or more.")
    _check_scale("loss_scale", loss_scale)
    if not callable(loss_fn):
        raise TypeError(f"loss_fn={loss_fn!r} must be a function of the parameters and a batch.")
    loss = _Loss(loss_fn, has_aux, compute_dtype)
    if len(needed := loss.needs) > 2:
        raise TypeError(
            f"loss_fn needs the arguments {', '.join(needed)}, and is called with (params, batch): give "
            "the rest as a tuple, and unpack it inside, x, y = batch."
        )
    settings = _Settings(
        loss=loss,
        accumulate=accumulate,
        loss_scale=loss_scale,
        skip_nonfinite=skip_nonfinite,
        rounding=rounding,
        metrics=tuple(metrics),
    )
    return functools.wraps(loss_fn, assigned=("__name__", "__module__"), updated=())(
        _TrainStep(settings)
    )


class _TrainStep:
    """What `train_step` returns."""

    def __init__(self, settings: _Settings) -> None:
        # Not the optimizer: its hyperparameters stay as they are, Python numbers usually, and may be
        # shared between states.
        self._jitted = jax.jit(functools.partial(_train_step, settings), donate_argnums=1)
        self._tx: Any = None
        self._tx_on_device: Any = None

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        if not isinstance(state, TrainState):
            raise TypeError(
                f"a training step takes a TrainState, got {state!r:.200} of type "
                f"{type(state).__name__}: make one with TrainState.create(params, tx)."
            )
        is_array = isinstance(state.step, jax.Array) and not isinstance(state.step, Tracer)
        if is_array and state.step.is_deleted():
            raise ValueError(
                "this state was used up by a step before, which wrote over its arrays: go on with the "
                "state that it returned. (TrainState.create makes a new one, of its own copies.)"
            )
        rest = dataclasses.replace(state, tx=None)
        new, metrics = self._jitted(self._on_device(state.tx), rest, batch)
        return dataclasses.replace(new, tx=state.tx), metrics

    def lower(self, state: TrainState, batch: Any) -> Any:
        """The step lowered for these arguments, as `jax.jit` lowers: `.compile()` tells its memory."""
        return self._jitted.lower(
            self._on_device(state.tx), dataclasses.replace(state, tx=None), batch
        )

    def _on_device(self, tx: Any) -> Any:
        """The optimizer with its numbers as arrays, made once: to send each in every step takes time."""
        if tx is not self._tx:
            on_device = jax.tree.map(jnp.asarray, exact(tx))
            if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(on_device)):
                return on_device
            self._tx, self._tx_on_device = tx, on_device
        return self._tx_on_device


@dataclass(frozen=True)
class _Loss:
    """A loss function as the user wrote it."""

    function: Callable[..., Any]
    has_aux: bool
    compute_dtype: Any

    @functools.cached_property
    def wants(self) -> tuple[str, ...]:
        try:
            parameters = inspect.signature(self.function).parameters
        except (TypeError, ValueError):
            return ()
        return tuple(name for name in ("rng", "model_state") if name in parameters)

    @property
    def needs(self) -> list[str]:
        """The arguments without default that it has to be called with, by position."""
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except (TypeError, ValueError):
            return []
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return [
            each.name
            for each in parameters
            if each.default is each.empty
            and each.kind in positional
            and each.name not in self.wants
        ]

    def __call__(self, params: Any, model_state: Any, batch: Any, rng: Any, scale: Any) -> Any:
        """The loss times scale; and the loss, the new model state and aux."""
        if self.compute_dtype is not None:
            params, batch = jax.tree.map(self._cast, (params, batch))
        given = {"rng": rng, "model_state": model_state}
        result = self.function(params, batch, **{name: given[name] for name in self.wants})
        expected = ["loss"]
        expected += ["new_model_state"] if "model_state" in self.wants else []
        expected += ["aux"] if self.has_aux else []
        if len(expected) == 1:
            result = (result,)
        if not isinstance(result, (tuple, list)) or len(result) != len(expected):
            raise TypeError(
                f"the loss function must return {', '.join(expected)}, as its arguments and "
                f"has_aux={self.has_aux} say; it returned {_shown(result)}."
            )
        values = dict(zip(expected, result, strict=True))
        loss = values["loss"]
        if loss is None or isinstance(loss, (tuple, list, dict)):
            advice = (
                "Is its return missing?"
                if loss is None
                else "With has_aux=True it may return (loss, aux)."
            )
            raise TypeError(f"the loss function returned {_shown(loss)} for the loss. {advice}")
        if np.shape(loss) or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
            raise TypeError(
                f"the loss is {_check.describe(loss)}: it must be one real number, such as the mean "
                "over the batch."
            )
        new_state = values.get("new_model_state", model_state)
        _same_shapes("the new model state", new_state, "the model state", model_state)
        loss = jnp.asarray(loss, maths.compute_dtype(jnp.result_type(loss)))
        return loss * scale.astype(loss.dtype), (loss, new_state, values.get("aux"))

    def _cast(self, x: Any) -> Any:
        is_float = jnp.issubdtype(jnp.result_type(x), jnp.floating)
        return jnp.asarray(x, self.compute_dtype) if is_float else x


@dataclass(frozen=True)
class _Settings:
    """The arguments of `train_step`."""

    loss: _Loss
    accumulate: int
    loss_scale: float | None
    skip_nonfinite: bool
    rounding: str
    metrics: tuple[str, ...]


def _train_step(
    settings: _Settings, tx: Any, state: TrainState, batch: Any
) -> tuple[TrainState, dict[str, Any]]:
    """The step itself, a pure function."""
    rng = None
    if "rng" in settings.loss.wants:
        if state.rng is None:
            raise ValueError(
                "the loss function takes rng, and the state has none: make it with "
                "TrainState.create(params, tx, rng=jax.random.key(0))."
            )
        rng = jax.random.fold_in(state.rng, state.step)
    scale = _scale(settings, state)
    loss, model_state, aux, gradients = _gradients(settings, state, batch, rng, scale)
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    params = precision.apply_updates(
        state.params,
        updates,
        rounding=settings.rounding,
        step=state.step if settings.rounding == "stochastic" else None,
    )
    new = dataclasses.replace(
        state,
        step=optax.safe_increment(state.step),
        params=params,
        opt_state=opt_state,
        model_state=model_state,
    )
    if settings.skip_nonfinite or state.loss_scale is not None:
        finite = all_finite((loss, gradients, updates))
        keep = ("params", "opt_state", "model_state")
        chosen = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            [getattr(new, name) for name in keep],
            [getattr(state, name) for name in keep],
        )
        new = dataclasses.replace(
            new,
            **dict(zip(keep, chosen, strict=True)),
            skipped=jnp.where(finite, state.skipped, optax.safe_increment(state.skipped)),
            loss_scale=None if state.loss_scale is None else state.loss_scale.after(finite),
        )
    measured = _metrics(settings.metrics, tx, state, new, loss, gradients, updates)
    if settings.loss.has_aux:
        measured["aux"] = aux
    return new, measured


def _scale(settings: _Settings, state: TrainState) -> jax.Array:
    if settings.loss_scale is None:
        return jnp.ones(()) if state.loss_scale is None else state.loss_scale.scale
    if state.loss_scale is not None:
        raise ValueError(
            f"train_step has loss_scale={settings.loss_scale} and the state has another one: give one."
        )
    return jnp.asarray(settings.loss_scale, jnp.float32)


def _gradients(
    settings: _Settings, state: TrainState, batch: Any, rng: Any, scale: jax.Array
) -> tuple[Any, Any, Any, Any]:
    """Loss, model state, aux and gradients: of the batch, or the mean of those of its parts."""
    differentiated = jax.value_and_grad(settings.loss, has_aux=True)

    def of_part(model_state: Any, part: Any, rng: Any) -> tuple[Any, Any, Any, Any]:
        (_, (loss, model_state, aux)), gradients = differentiated(
            state.params, model_state, part, rng, scale
        )
        return loss, model_state, aux, gradients

    parts = settings.accumulate
    if parts == 1:
        loss, model_state, aux, gradients = of_part(state.model_state, batch, rng)
    else:
        split = _split(batch, parts)

        def part(index: Any) -> Any:
            return jax.tree.map(
                lambda x: jax.lax.dynamic_index_in_dim(x, index, axis=1, keepdims=False), split
            )

        def body(carry: Any, index: Any) -> tuple[Any, Any]:
            total, total_loss, model_state = carry
            part_rng = None if rng is None else jax.random.fold_in(rng, index)
            loss, model_state, aux, gradients = of_part(model_state, part(index), part_rng)
            # Of a part of each, so that no sum overflows.
            total = jax.tree.map(lambda t, g: t + g.astype(t.dtype) / parts, total, gradients)
            return (total, total_loss + loss / parts, model_state), aux

        zeros = jax.tree.map(
            lambda x: jnp.zeros_like(x, maths.compute_dtype(jnp.result_type(x))), state.params
        )
        kind = jax.eval_shape(lambda: of_part(state.model_state, part(0), rng)[0]).dtype
        (gradients, loss, model_state), aux = jax.lax.scan(
            body, (zeros, jnp.zeros((), kind), state.model_state), jnp.arange(parts)
        )
        gradients = jax.tree.map(lambda g, x: g.astype(jnp.result_type(x)), gradients, state.params)
    if settings.loss_scale is not None or state.loss_scale is not None:
        gradients = jax.tree.map(lambda g: maths.scaled(g, 1 / scale), gradients)
    return loss, model_state, aux, gradients


def _split(batch: Any, parts: int) -> Any:
    """The batch with a second axis for the parts, each of which has every parts-th row.

    So that the first axis keeps its sharding, and no part has to be moved between devices.
    """
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    if len({np.shape(x)[:1] for _, x in leaves}) > 1:
        lengths = ", ".join(
            f"batch{jax.tree_util.keystr(path)} is {_check.describe(x)}" for path, x in leaves
        )
        raise ValueError(
            f"the arrays of a batch are split along their first axis, with accumulate={parts}, and must "
            f"have it in common: {lengths}."
        )
    for path, x in leaves:
        rows = np.shape(x)[:1]
        if not rows or rows[0] % parts:
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)} is {_check.describe(x)}: with "
                f"accumulate={parts} the first axis of every array is split into {parts} parts of "
                "one size."
            )
    return jax.tree.map(lambda x: jnp.reshape(x, (-1, parts, *x.shape[1:])), batch)


def _metrics(
    names: Sequence[str],
    tx: Any,
    old: TrainState,
    new: TrainState,
    loss: Any,
    gradients: Any,
    updates: Any,
) -> dict[str, Any]:
    update_norm = functools.cache(lambda: maths.global_norm(updates))
    parameter_norm = functools.cache(lambda: maths.global_norm(old.params))
    measures: dict[str, Callable[[], Any]] = {
        "loss": lambda: loss,
        "learning_rate": lambda: learning_rate(tx, old.opt_state),
        "skipped": lambda: new.skipped,
        "gradient_norm": lambda: maths.global_norm(gradients),
        "update_norm": update_norm,
        "parameter_norm": parameter_norm,
        "update_ratio": lambda: (
            update_norm() / jnp.maximum(parameter_norm(), jnp.finfo(jnp.float32).tiny)
        ),
    }
    values = {name: measures[name]() for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _shown(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def _same_shapes(what: str, tree: Any, other_what: str, other: Any) -> None:
    def kinds(tree: Any) -> Any:
        return {
            jax.tree_util.keystr(path): (np.shape(x), jnp.result_type(x))
            for path, x in jax.tree_util.tree_leaves_with_path(tree)
        }

    new, old = kinds(tree), kinds(other)
    if jax.tree.structure(tree) != jax.tree.structure(other) or new != old:
        paths = [path for path in {**old, **new} if new.get(path) != old.get(path)]
        shown = "; ".join(f"at {path}: {new.get(path)}, not {old.get(path)}" for path in paths[:5])
        raise ValueError(f"{what} differs from {other_what} {shown or 'in its structure'}.")


def fit(
    state: TrainState,
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]],
    batches: Iterable[Any],
    *,
    steps: int | None = None,
    callback: Callable[[TrainState, dict[str, Any]], Any] | None = None,
    progress: bool | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """The loop: one training step per batch, with a progress bar and a history.

    The device is never waited for: metrics are fetched some steps later. Ctrl-C, or an interrupted
    notebook cell, ends the loop after the step at hand, and what was reached is returned; a second one
    interrupts at once. Where the batches or the callback raise an error, the state that was reached is
    its attribute `state`: the one that came in is used up.

    Args:
      state: the state to start from. Its arrays are written over.
      step: what `train_step` returns, or any function like it.
      batches: one batch per step, as long as they last.
      steps: after how many steps to stop; None for as many as there are batches.
      callback: called after each step with the new state and the metrics, both on the device: to
        evaluate, to save, to print. It stops the loop by returning True. It must not keep the state,
        which the next step writes over.
      progress: True for a progress bar, False for none; None for one where tqdm is installed and the
        output is a terminal.

    Returns:
      The last state; and the history, the metrics with a first axis for the steps, in NumPy arrays.

    Raises:
      ValueError: for a number of steps that is none, or fewer batches than that.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> step = aj.train_step(lambda params, batch: (params - batch) ** 2)
      >>> state = aj.TrainState.create(jnp.array(0.0), aj.sgd(0.25))
      >>> state, history = aj.fit(state, step, [1.0, 1.0, 1.0])
      >>> print(state.params, history["loss"])
      0.875 [1.     0.25   0.0625]
    """
    if steps is not None and (not isinstance(steps, int) or steps < 0):
        raise ValueError(f"steps={steps!r} must be a whole number, 0 or more, or None.")
    if not callable(step):
        raise TypeError(
            f"step={step!r:.200} must be a function of a state and a batch, such as aj.train_step "
            "returns: call fit(state, step, batches)."
        )
    try:
        iterator = iter(batches)
    except TypeError:
        raise TypeError(
            f"batches={batches!r:.200} must be an iterable with one batch for each step: a list, or a "
            "generator."
        ) from None
    done = 0
    pending: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []
    try:
        with progress_bar(progress, steps) as bar, _interrupt() as interrupted:
            while (steps is None or done < steps) and not interrupted.is_set():
                batch = next(iterator, _END)
                if batch is _END:
                    if steps is not None:
                        raise ValueError(
                            f"the batches ended after {done} of {steps} steps: give an iterator that "
                            "goes on, or steps=None."
                        )
                    break
                state, metrics = step(state, batch)
                done += 1
                pending.append(metrics)
                if len(pending) == 2 * _FETCHED_TOGETHER:
                    history += jax.device_get(pending[:_FETCHED_TOGETHER])
                    del pending[:_FETCHED_TOGETHER]
                    if "loss" in history[-1]:
                        bar.set_postfix_str(f"loss {history[-1]['loss']:.4g}", refresh=False)
                bar.update()
                if callback is not None and callback(state, metrics) is True:
                    break
    except Exception as error:
        error.state = state  # type: ignore[attr-defined]
        error.add_note(f"The state that was reached, after {done} steps, is error.state.")
        raise
    history += jax.device_get(pending)
    return state, jax.tree.map(lambda *values: np.stack(values), *history) if history else {}


_END = object()
_FETCHED_TOGETHER = 32


@contextmanager
def _interrupt() -> Any:
    """An event that the first Ctrl-C sets. The second one raises KeyboardInterrupt, as usual.

    An exception in the middle of a step would lose the state that the step has taken over.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    usual = signal.getsignal(signal.SIGINT)

    def once(number: int, frame: Any) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, once)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, usual)


class _NoBar:
    """A progress bar that is not shown."""

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None: ...
    def update(self, count: int = 1) -> None: ...
    def set_postfix_str(self, text: str, refresh: bool) -> None: ...


def progress_bar(progress: bool | None, total: int | None, unit: str = "step") -> Any:
    """A bar of tqdm, or one that is not shown: True, False, or None for what the output suits."""
    if progress is False:
        return _NoBar()
    try:
        from tqdm import tqdm
    except ImportError:
        if progress:
            raise ImportError("progress=True needs tqdm: pip install tqdm.") from None
        return _NoBar()
    # disable=None: no bar where the output is not a terminal.
    return tqdm(total=total, unit=unit, disable=None if progress is None else False)
