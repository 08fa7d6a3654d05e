"""The whole training step in one `jit`, and the loop around it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
import re
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from .. import maths
from .._core import export, pytrees
from .._core.arguments import floating, is_number, one_of, whole
from .._core.lifted import Unquoted, are_decays
from .._core.storage.sharding import explicit_sharding
from .._core.transformation import member
from ..transforms import precision
from ..transforms.finite import all_finite, finite_after
from . import checkpoint
from .rates import UnknownRate, learning_rate

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


@export.node
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
          TypeError: for parameters that are no arrays, by their path, shapes of arrays among them, and
            what is no optimizer.
          ValueError: for a loss scale that is not positive, never grows, or shrinks to grow.

        Example:
          >>> import adaptive_jax as aj, jax.numpy as jnp
          >>> state = aj.TrainState.create({"w": jnp.ones(3)}, aj.adam(1e-3))
          >>> state = state.replace(tx=aj.adam(3e-4))
        """
        tx = member(tx, "TrainState.create")
        _check_no_shapes(params=params, model_state=model_state, rng=rng)
        pytrees.check_floats("params", params)
        if rng is not None and not _is_key(rng):
            raise TypeError(f"rng={rng!r} is no random key: give jax.random.key(0).")
        if copy:
            params, model_state, rng = jax.tree.map(
                lambda x: jnp.array(x, copy=True), (params, model_state, rng)
            )
            tx = jax.tree.map(lambda x: jnp.copy(x) if isinstance(x, jax.Array) else x, tx)
        if loss_scale is not None:
            if not isinstance(loss_scale, LossScale):
                raise TypeError(
                    f"loss_scale={loss_scale!r:.80} must be an aj.LossScale, such as aj.LossScale(128.0). "
                    "A constant number is an argument of train_step."
                )
            _check_scale("scale", loss_scale.scale)
            interval = loss_scale.growth_interval
            if loss_scale.factor <= 1:
                raise ValueError(f"factor={loss_scale.factor!r} in {loss_scale} must be above 1.")
            loss_scale = dataclasses.replace(
                loss_scale,
                growth_interval=None if interval is None else whole("growth_interval", interval, 1),
                scale=jnp.array(loss_scale.scale, jnp.float32),
                good_steps=jnp.array(loss_scale.good_steps, jnp.int32),
            )
        rest = {
            "step": jnp.zeros((), jnp.int32),
            "opt_state": _own(tx.init(params), (params, model_state, rng, tx)),
            "model_state": model_state,
            "rng": rng,
            "loss_scale": loss_scale,
            "skipped": jnp.zeros((), jnp.int32),
        }
        return cls(params=params, tx=tx, **_on_the_mesh_of(params, rest))

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
        return precision.exact_params(self.params, self.opt_state)

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


def _is_key(rng: Any) -> bool:
    """Whether it is a random key, a new one or one of the old, arrays of unsigned integers."""
    dtype = getattr(rng, "dtype", None)
    return dtype is not None and (
        jnp.issubdtype(dtype, jax.dtypes.prng_key) or (dtype == jnp.uint32 and rng.ndim > 0)
    )


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


def _own(opt_state: Any, others: Any) -> Any:
    """The optimizer's state without arrays that are elsewhere too, or there twice: copies of these.

    A step writes over each array once. Other libraries keep the parameters themselves in their states,
    and arrays of the user's, which are numbers usually.
    """
    taken = {buffer for x in _arrays(others) for buffer in _buffers(x)}

    def own(x: Any) -> Any:
        if not isinstance(x, jax.Array) or isinstance(x, Tracer):
            return x
        buffers = _buffers(x)
        if x.ndim == 0 or buffers & taken:
            return jnp.copy(x)
        taken.update(buffers)
        return x

    return jax.tree.map(own, opt_state)


def _buffers(x: Any) -> set[Any]:
    """Where an array is in the memory of each device: two arrays can be one there."""
    try:
        if len(x.devices()) == 1:
            return {x.unsafe_buffer_pointer()}
        return {shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards}
    except Exception:  # Not every backend tells.
        return {id(x)}


def _explain(error: Exception, state: TrainState, batch: Any) -> None:
    """Raises an error in the user's words where a step failed because of what it was given."""
    if "has been deleted" in str(error):  # Before: that is not what failed just now.
        _check_not_used_up(state)
    if isinstance(error, TypeError):
        for each in dataclasses.fields(state):
            pytrees.check_arrays(f"state.{each.name}", getattr(state, each.name))
        pytrees.check_arrays("batch", batch)
    if "donate" in str(error):
        _refuse_repeated(state, batch, _buffers)


def _is_spread(x: Any) -> bool:
    """Whether it is on several devices."""
    sharding = None if isinstance(x, Tracer) else getattr(x, "sharding", None)
    return sharding is not None and sharding.num_devices > 1


def _check_repeated(state: TrainState, batch: Any) -> None:
    """Raises a ValueError, with both paths, for an array that a step would have to write over twice.

    With several devices XLA does not refuse it, and ends the process. So a state is looked at, unless
    it comes from a step: it then is marked.
    """
    if isinstance(state.step, Tracer):
        return
    arrays = list(map(id, _arrays(_written(state))))
    others = map(id, _arrays((state.tx, state.rng, batch)))
    if len(set(arrays)) < len(arrays) or not set(arrays).isdisjoint(others):
        _refuse_repeated(state, batch, lambda x: {id(x)})


def _written(state: TrainState) -> TrainState:
    """What a step writes over."""
    return dataclasses.replace(state, tx=None, rng=None, skipped=None)


def _refuse_repeated(state: TrainState, batch: Any, buffers: Callable[[Any], set[Any]]) -> None:
    owners: dict[Any, str] = {}
    written, tx = _written(state), state.tx

    def refuse(x: Any, first: str, second: str) -> None:
        raise ValueError(
            f"{first} and {second} are one array, {pytrees.describe(x)}. A step writes over the arrays "
            "of its state, each of which must be there once: put a copy, jnp.copy(…), in one of the two "
            "places. The state is as it was."
        ) from None

    for path, x in jax.tree_util.tree_leaves_with_path(written):
        name = f"state{jax.tree_util.keystr(path)}"
        for buffer in buffers(x) if _arrays(x) else ():
            if owners.setdefault(buffer, name) != name:
                refuse(x, owners[buffer], name)
    # These are only read, and may have an array twice.
    for root, tree in (("state.tx", tx), ("state.rng", state.rng), ("batch", batch)):
        for path, x in jax.tree_util.tree_leaves_with_path(tree):
            for buffer in buffers(x) if _arrays(x) else ():
                if buffer in owners:
                    refuse(x, owners[buffer], f"{root}{jax.tree_util.keystr(path)}")


def _check_scale(name: str, value: Any) -> None:
    if is_number(value) and not 0 < value < float("inf"):
        raise ValueError(f"{name}={value!r} must be a finite number above 0.")
    if isinstance(value, LossScale):
        raise TypeError(
            f"{name}={value!r} adapts, and is in the state: TrainState.create(…, loss_scale=…)."
        )
    if isinstance(value, (str, bool)):
        raise TypeError(f"{name}={value!r} must be a number above 0.")


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
    metrics: Sequence[str] | None = None,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]:
    """One training step, compiled whole: loss, gradients, update, new parameters.

        (loss, g) of loss_fn at θ;   u, s ← tx.update(g, s, θ);   θ ← θ + u

    g is the direction in which the loss grows fastest: of complex parameters, the conjugate of JAX's
    gradient. The update gets optax's extra arguments as well, `value`, `grad` and `value_fn`, for what
    takes them, such as `optax.contrib.reduce_on_plateau` and `optax.lbfgs`: the loss, its gradients, and
    the loss of this batch as a function of the parameters.

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
        where the loss, a gradient, an update or a parameter after it is not finite. With a `LossScale`
        it always is so.
      compute_dtype: such as jnp.bfloat16: what floating-point parameters and batches are cast to for
        the loss. Gradients and updates have the parameters' dtype; float32 where that has 8 bits or
        less, so that an update is rounded once, in the parameters.
      rounding: "stochastic" or "nearest", how parameters below 32 bits take their update, as in
        `apply_updates`. Rounded to nearest, they lose most of it, unless the optimizer is in
        `compensate`, with which either gives the same.
      metrics: the names of what to measure, in float32 and on the device: "loss", "learning_rate" (of
        this step, the product of all rates in the optimizer), "skipped" (so many steps so far),
        "gradient_norm", "update_norm", "parameter_norm" (before the step) and "update_ratio", the
        quotient of the last two, 0 where the parameters are. Norms read every array once more. None for
        the first three, without a learning rate that cannot be known, as in most optimizers of optax.

    Returns:
      A function of a `TrainState` and a batch that returns the new state and a dict of metrics.

    Raises:
      TypeError, ValueError: for an unknown option; when the step is first called, for a loss that is no
        scalar, for what loss_fn returns too much or too little, for a batch that cannot be split, for a
        missing key, and for a metric by name that cannot be known.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> step = aj.train_step(lambda params, batch: jnp.sum((params["w"] - batch) ** 2))
      >>> state = aj.TrainState.create({"w": jnp.zeros(2)}, aj.sgd(0.25))
      >>> state, metrics = step(state, jnp.array([1.0, 2.0]))
      >>> print(state.params["w"], metrics["loss"])
      [0.5 1. ] 5.0
    """
    one_of("rounding", rounding, ("nearest", "stochastic"))
    if isinstance(metrics, str):
        raise TypeError(f"metrics={metrics!r} is a string: give a tuple of names.")
    for name in metrics or ():
        one_of("metrics", name, METRICS)
    accumulate = whole("accumulate", accumulate, 1)
    _check_scale("loss_scale", loss_scale)
    if not callable(loss_fn):
        raise TypeError(f"loss_fn={loss_fn!r} must be a function of the parameters and a batch.")
    if compute_dtype is not None:
        compute_dtype = floating("compute_dtype", compute_dtype)
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
        metrics=METRICS[:3] if metrics is None else tuple(metrics),
        by_name=metrics is not None,
    )
    return functools.wraps(loss_fn, assigned=("__name__", "__module__"), updated=())(
        _TrainStep(settings)
    )


class _TrainStep:
    """What `train_step` returns."""

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings
        self._skips = settings.skip_nonfinite
        self._measures_skipped = "skipped" in settings.metrics
        # Not donated: the optimizer's numbers, and what a step leaves as it is.
        self._jitted = jax.jit(
            functools.partial(_train_step, settings), static_argnums=0, donate_argnums=2
        )
        self._sent: tuple[Any, Any, Any, Any] = None, None, None, None
        self._outlines: dict[Any, _Outline] = {}
        self._skipped: tuple[Any, Any] = None, None

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        return self._run(self._jitted, self._arguments(state), state, batch)

    def lower(self, state: TrainState, batch: Any) -> _Lowered:
        """The step lowered for these arguments, as `jax.jit` lowers. `.compile()` gives a step for
        arguments like these, called in the same way, that also tells its memory.
        """
        arguments = self._arguments(state)
        return _Lowered(self, arguments[0], self._jitted.lower(*arguments, batch))

    def __reduce__(self) -> Any:
        if _pickled_by_value():
            return _TrainStep, (self._settings,), {"__name__": getattr(self, "__name__", "loss")}
        raise TypeError(
            f"the training step of {getattr(self, '__name__', 'this loss')} is compiled code, and is not "
            "pickled: make it again with train_step where it is needed. The state can be: "
            "aj.save_checkpoint, or pickle.dumps(jax.device_get(state))."
        )

    def __copy__(self) -> _TrainStep:
        return self

    def __deepcopy__(self, memo: Any) -> _TrainStep:
        return self

    # What follows runs in every step, and is written to be quick.

    def _arguments(self, state: TrainState) -> tuple[Any, ...]:
        """What the jitted function takes, but for the batch."""
        if not isinstance(state, TrainState):
            raise TypeError(
                f"a training step takes a TrainState, got {state!r:.200} of type "
                f"{type(state).__name__}: make one with TrainState.create(params, tx)."
            )
        tx, mesh, outline, numbers = self._sent
        sharding = getattr(state.step, "sharding", None)
        if tx is not state.tx or sharding != mesh:
            outline, numbers = self._send(state.tx, sharding)
        scale = state.loss_scale
        skipped = state.skipped if self._skips or scale is not None else None
        written = state.step, state.params, state.opt_state, state.model_state, scale, skipped
        return outline, numbers, written, state.rng

    def _run(
        self, function: Callable[..., Any], arguments: Sequence[Any], state: TrainState, batch: Any
    ) -> tuple[TrainState, dict[str, Any]]:
        """The jitted or the compiled function's step."""
        if "_has_each_once" not in state.__dict__ or _is_spread(state.step):
            _check_repeated(state, batch)
        try:
            written, metrics = function(*arguments, batch)
        except Exception as error:
            _explain(error, state, batch)
            raise
        return self._returned(state, written, metrics)

    def _returned(
        self, state: TrainState, written: tuple[Any, ...], metrics: dict[str, Any]
    ) -> tuple[TrainState, dict[str, Any]]:
        step, params, opt_state, model_state, scale, skipped = written
        if skipped is None:
            skipped = state.skipped
            if self._measures_skipped and skipped is not None:
                original, copy = self._skipped
                metrics["skipped"] = copy if original is skipped else self._copied(skipped)
        new = object.__new__(TrainState)
        new.__dict__.update(
            step=step, params=params, opt_state=opt_state, tx=state.tx, model_state=model_state,
            rng=state.rng, loss_scale=scale, skipped=skipped, _has_each_once=True,
        )  # fmt: skip
        return new, metrics

    def _copied(self, skipped: Any) -> Any:
        """A copy of a number that is the same in every step, for whoever donates the state."""
        if isinstance(skipped, Tracer):
            return skipped
        copy = jnp.copy(skipped)
        if not isinstance(
            copy, Tracer
        ):  # As within the user's own jit, which closes over the state.
            self._skipped = skipped, copy
        return copy

    def _send(self, tx: Any, sharding: Any) -> tuple[_Outline, Any]:
        """The optimizer's numbers on the device: those of Python in one array, sent once."""
        leaves, treedef = jax.tree.flatten(tx)
        is_float = tuple([isinstance(leaf, float) for leaf in leaves])
        outline = self._outlines.get((treedef, is_float))
        if outline is None:
            outline = self._outlines[treedef, is_float] = _Outline(treedef, is_float)
        with jax.transfer_guard_host_to_device("allow"):  # It is asked for.
            numbers = outline.numbers(leaves)
        if not any(isinstance(number, Tracer) for number in numbers):
            if (
                sharding is not None and sharding.num_devices > 1
            ):  # Else each step would send them on.
                numbers = jax.device_put(numbers, sharding)
            self._sent = tx, sharding, outline, numbers
        return outline, numbers


def _pickled_by_value() -> bool:
    """Whether it is cloudpickle that asks, which also takes functions that have no name."""
    frame = inspect.currentframe()
    while frame is not None and not frame.f_globals.get("__name__", "").endswith("cloudpickle"):
        frame = frame.f_back
    return frame is not None


def _check_not_used_up(state: TrainState) -> None:
    step = state.step
    if isinstance(step, jax.Array) and not isinstance(step, Tracer) and step.is_deleted():
        raise ValueError(
            "this state was used up by a step before, which wrote over its arrays: go on with the "
            "state that it returned. (TrainState.create makes a new one, of its own copies.)"
        ) from None


class _Outline:
    """An optimizer without its numbers. Compared by identity, which is quick: one of each is made."""

    def __init__(self, treedef: Any, is_float: tuple[bool, ...]) -> None:
        self._treedef, self._is_float = treedef, is_float
        self._is_decay = are_decays(treedef.unflatten(is_float))

    def numbers(self, leaves: Sequence[Any]) -> tuple[jax.Array, ...]:
        """Its numbers as arrays: those of Python in one, with 1 minus each, which is exact so."""
        pairs = list(zip(leaves, self._is_float, strict=True))
        floats = [leaf for leaf, is_float in pairs if is_float]
        dtype = jax.dtypes.canonicalize_dtype(np.float64)
        both = _put(np.array([floats, [1.0 - each for each in floats]], dtype))
        return both, *[jnp.asarray(leaf) for leaf, is_float in pairs if not is_float]

    def optimizer(self, numbers: Sequence[jax.Array]) -> Any:
        """The optimizer with these numbers."""
        values, complements = (iter(jnp.unstack(each)) for each in numbers[0])
        others = iter(numbers[1:])
        leaves = []
        for is_float, is_decay in zip(self._is_float, self._is_decay, strict=True):
            if not is_float:
                leaves.append(next(others))
                continue
            value, complement = next(values), next(complements)
            leaves.append(maths.DecayRate(value, complement) if is_decay else value)
        return self._treedef.unflatten(leaves)


@functools.partial(jax.jit, inline=True)
def _put(numbers: Any) -> Any:
    """Numbers on the device. In half of the time that `jnp.asarray` takes."""
    return numbers


@dataclass(frozen=True)
class _Lowered:
    """A lowered step: what `jax.stages.Lowered` is, for a state and a batch."""

    step: _TrainStep
    outline: _Outline
    lowered: Any

    def compile(self, *args: Any, **options: Any) -> _Compiled:
        """The compiled step, a function of a state and a batch."""
        return _Compiled(self.step, self.outline, self.lowered.compile(*args, **options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lowered, name)


@dataclass(frozen=True)
class _Compiled:
    """A compiled step: what `jax.stages.Compiled` is, for a state and a batch."""

    step: _TrainStep
    outline: _Outline
    compiled: Any

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        outline, *arguments = self.step._arguments(state)
        if outline is not self.outline:
            raise TypeError(
                f"this step was compiled for another optimizer than {state.tx!r:.200}, of other rules or "
                "options: lower and compile it again."
            )
        return self.step._run(self.compiled, arguments, state, batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.compiled, name)


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
                f"the loss is {pytrees.describe(loss)}: it must be one real number, such as the mean "
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
    by_name: bool
    told: list[str] = field(default_factory=list)  # What was warned about.

    def skips(self, state: TrainState) -> bool:
        """Whether a step that is not finite is left out."""
        return self.skip_nonfinite or state.loss_scale is not None


def _train_step(
    settings: _Settings, outline: _Outline, numbers: Any, written: Any, rng: Any, batch: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The step itself, a pure function."""
    tx = outline.optimizer(numbers)
    step, params, opt_state, model_state, loss_scale, skipped = written
    state = TrainState(step, params, opt_state, tx, model_state, rng, loss_scale, skipped)
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

    def value_fn(params: Any) -> Any:
        return _value(settings, params, state.model_state, batch, rng)

    try:
        updates, updated = tx.update(
            gradients, state.opt_state, state.params, value=loss, grad=gradients, value_fn=value_fn
        )
    except ValueError as error:
        if type(error).__name__ == "TypePromotionError":  # Not public before jax 0.9.
            _explain_promotion(error, state)
        raise
    params = precision.apply_updates(
        state.params,
        updates,
        rounding=settings.rounding,
        step=state.step if settings.rounding == "stochastic" else None,
    )
    new = dataclasses.replace(
        state,
        # It wraps round: where it stopped instead, all further steps would have the same random bits.
        step=state.step + 1,
        params=params,
        opt_state=updated,
        model_state=model_state,
    )
    if settings.skips(state):
        finite = all_finite((loss, gradients)) & finite_after(state.params, updates)
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
    measured = _metrics(settings, state, new, updated, loss, gradients, updates)
    if settings.loss.has_aux:
        measured["aux"] = aux
    return (
        new.step, new.params, new.opt_state, new.model_state, new.loss_scale, new.skipped,
    ), measured  # fmt: skip


def _explain_promotion(error: Exception, state: TrainState) -> None:
    """Raises an error by name where another library meets float32 gradients of 8-bit parameters."""
    for path, param in jax.tree_util.tree_leaves_with_path(state.params):
        if precision.is_coarse(jnp.result_type(param)):
            raise TypeError(
                f"the parameter at {jax.tree_util.keystr(path) or 'the root'} is "
                f"{pytrees.describe(param)}, and its gradient float32, which {state.tx!r:.200} does not "
                f"take together: take one of this library's optimizers. ({error})"
            ) from error


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
    dtypes = jax.tree.map(lambda x: _update_dtype(jnp.result_type(x)), state.params)
    if parts == 1:
        loss, model_state, aux, gradients = of_part(state.model_state, batch, rng)
    else:
        part = _parts(batch, parts)

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
    gradients = jax.tree.map(lambda g, dtype: g.astype(dtype), gradients, dtypes)
    if settings.loss_scale is not None or state.loss_scale is not None:
        gradients = jax.tree.map(lambda g: maths.scaled(g, 1 / scale), gradients)
    return loss, model_state, aux, maths.ascent(gradients)


def _update_dtype(dtype: Any) -> Any:
    """The dtype of the gradients and updates of a parameter: its own, but float32 for few bits.

    An update of 8 bits would be rounded twice, the first time to the nearest number, which may be 0.
    """
    return jnp.dtype(jnp.float32) if precision.is_coarse(dtype) else dtype


def _value(settings: _Settings, params: Any, model_state: Any, batch: Any, rng: Any) -> jax.Array:
    """The loss of the whole batch, the mean over its parts."""

    def of_part(model_state: Any, part: Any, rng: Any) -> tuple[Any, Any]:
        _, (loss, model_state, _) = settings.loss(params, model_state, part, rng, jnp.ones(()))
        return loss, model_state

    parts = settings.accumulate
    if parts == 1:
        return of_part(model_state, batch, rng)[0]
    part = _parts(batch, parts)

    def body(carry: Any, index: Any) -> tuple[Any, None]:
        total, model_state = carry
        part_rng = None if rng is None else jax.random.fold_in(rng, index)
        loss, model_state = of_part(model_state, part(index), part_rng)
        return (total + loss / parts, model_state), None

    kind = jax.eval_shape(lambda: of_part(model_state, part(0), rng)[0]).dtype
    carry = jnp.zeros((), kind), model_state
    return jax.lax.scan(body, carry, jnp.arange(parts))[0][0]


def _parts(batch: Any, parts: int) -> Callable[[Any], Any]:
    """A function from the number of a part of the batch to that part."""
    split = _split(batch, parts)
    return lambda index: jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, index, axis=1, keepdims=False), split
    )


def _split(batch: Any, parts: int) -> Any:
    """The batch with a second axis for the parts, each of which has every parts-th row.

    So that the first axis keeps its sharding, and no part has to be moved between devices.
    """
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    if len({np.shape(x)[:1] for _, x in leaves}) > 1:
        lengths = ", ".join(
            f"batch{jax.tree_util.keystr(path)} is {pytrees.describe(x)}" for path, x in leaves
        )
        raise ValueError(
            f"the arrays of a batch are split along their first axis, with accumulate={parts}, and must "
            f"have it in common: {lengths}."
        )
    for path, x in leaves:
        rows = np.shape(x)[:1]
        if not rows or rows[0] % parts:
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)} is {pytrees.describe(x)}: with "
                f"accumulate={parts} the first axis of every array is split into {parts} parts of "
                "one size."
            )

    def cut(x: Any) -> Any:
        shape = x.shape[0] // parts, *x.shape[1:]
        # Fewer rows than devices cannot be split between these: all have them.
        sharding = explicit_sharding(x, shape)
        if sharding is not None:
            first, *rest = sharding.spec
            sharding = sharding.update(spec=PartitionSpec(first, None, *rest))
        return lax.reshape(x, (shape[0], parts, *shape[1:]), out_sharding=sharding)

    return jax.tree.map(cut, batch)


def _metrics(
    settings: _Settings,
    old: TrainState,
    new: TrainState,
    updated: Any,
    loss: Any,
    gradients: Any,
    updates: Any,
) -> dict[str, Any]:
    """updated: the optimizer's state after the update, which may be skipped."""
    update_norm = functools.cache(lambda: maths.global_norm(updates))
    parameter_norm = functools.cache(lambda: maths.global_norm(old.params))
    measures: dict[str, Callable[[], Any]] = {
        "loss": lambda: loss,
        "learning_rate": lambda: learning_rate(old.tx, old.opt_state, updated),
        "skipped": lambda: new.skipped,
        "gradient_norm": lambda: maths.global_norm(gradients),
        "update_norm": update_norm,
        "parameter_norm": parameter_norm,
        "update_ratio": lambda: maths.ratio(update_norm(), parameter_norm()),
    }
    values = {}
    for name in settings.metrics:
        try:
            values[name] = measures[name]()
        except UnknownRate as error:
            if settings.by_name:
                raise ValueError(
                    f"metrics={settings.metrics!r} names {name!r}, and {error}, or leave the name out."
                ) from None
            if name not in settings.told:
                settings.told.append(name)
                warnings.warn(
                    f'The metric {name!r} is left out: {error}. metrics=("loss", "skipped") does '
                    "without it, and without this warning.",
                    stacklevel=2,
                )
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
) -> tuple[TrainState, History]:
    """The loop: one training step per batch, with a progress bar and a history.

    The device is never waited for: metrics are fetched many steps at a time, some steps later.

    Ctrl-C, or an interrupted notebook cell, ends the loop after the step at hand, and what was reached
    is returned (unless the process ignores it, or has a handler of its own for it);
    `history.interrupted` tells a script with more to do. A second one interrupts at once, or after the
    step at hand if there is one, a third one always. Whatever ends the loop otherwise, an error in the
    batches or the callback, `sys.exit` or that second Ctrl-C, has the state that was reached as its
    attribute `state`, and its history as `history`: the state that came in is used up.
    A failure within a step, as where memory is out, leaves no state: `state` is None, and a note says
    which checkpoint was the last one.

    Args:
      state: the state to start from. Its arrays are written over.
      step: what `train_step` returns, or any function like it.
      batches: one batch per step, as long as they last.
      steps: after how many steps to stop; None for as many as there are batches.
      callback: called after each step with the new state and the metrics, both on the device: to
        evaluate, to save, to print. It stops the loop by returning True, one of NumPy or JAX as well
        (which is waited for); it goes on with False or None. It must not keep the state, which the next
        step writes over, and cannot change it: that is done by a step around the step.
      progress: True for a progress bar, False for none; None for one where tqdm is installed and the
        output is a terminal.

    Returns:
      The last state; and the `History`, a dict of the metrics with a first axis for the steps, in NumPy
      arrays. Metrics whose shape changes from step to step are arrays of objects.

    Raises:
      TypeError: for what is no step, no batches or no callback, and an answer of the callback that is
        neither true, false nor None.
      ValueError: for a number of steps that is none, or fewer batches than that.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> step = aj.train_step(lambda params, batch: (params - batch) ** 2)
      >>> state = aj.TrainState.create(jnp.array(0.0), aj.sgd(0.25))
      >>> state, history = aj.fit(state, step, [1.0, 1.0, 1.0])
      >>> print(state.params, history["loss"], history.interrupted)
      0.875 [1.     0.25   0.0625] False
    """
    if steps is not None:
        hint = " None is for as many as there are batches."
        steps = whole("steps", steps, 0, hint=hint)
    step = _as_step(state, step)
    iterator = _iterator(batches)
    if callback is not None and not callable(callback):
        raise TypeError(
            f"callback={callback!r:.200} must be a function of the state and the metrics."
        )
    done, record, was_used_up = 0, _Record(), _is_used_up(state)
    interrupts = _Interrupts()
    try:
        with progress_bar(progress, steps) as bar, interrupts:
            while (steps is None or done < steps) and not interrupts.count:
                batch = next(iterator, _END)
                if batch is _END:
                    if steps is not None:
                        raise ValueError(
                            f"the batches ended after {done} of {steps} steps: give an iterator that "
                            "goes on, or steps=None."
                        )
                    break
                interrupts.in_step = True
                state, metrics = step(state, batch)
                done += 1
                has_news = record.add(metrics)
                interrupts.leave_step()
                if has_news:
                    bar.set_postfix_str(record.loss(), refresh=False)
                bar.update()
                if callback is not None and _stops(callback(state, metrics)):
                    break
        jax.block_until_ready(state)  # An error that comes late is one of this loop still.
        history = record.history()
    except BaseException as error:
        # Who presses Ctrl-C twice does not wait for a device that hangs.
        wait = not isinstance(error, KeyboardInterrupt) or _has_arrived(record.metrics(), 1.0)
        lost = _is_lost(state, wait)
        history = record.rescued(wait)
        # Not by assignment, which an exception that is a frozen dataclass refuses.
        vars(error).update(state=None if lost else state, history=history)
        history.interrupted = interrupts.count > 0
        note = (
            _lost_note(done)
            if lost
            else f"The state that was reached, after {done} steps, is error.state; the metrics are in "
            "error.history."
        )
        if not (lost and was_used_up):
            with contextlib.suppress(AttributeError):
                error.add_note(note)
        raise
    history.interrupted = interrupts.count > 0
    return state, history


_END = object()


class History(dict[str, Any]):
    """What `fit` returns beside the state: a dict of the metrics of all steps, in NumPy arrays.

    interrupted: whether Ctrl-C ended the loop, so that a script that has more to do can stop too.
    """

    interrupted: bool = False


def _flatten_history(history: History) -> Any:
    names = tuple(sorted(history))
    children = [(jax.tree_util.DictKey(name), history[name]) for name in names]
    return children, names  # Not whether it was interrupted: two histories are mapped together.


def _unflatten_history(aux: Any, values: Iterable[Any]) -> History:
    return History(zip(aux, values, strict=True))


# A subclass of dict would be a leaf of a tree.
jax.tree_util.register_pytree_with_keys(History, _flatten_history, _unflatten_history)


def _as_step(state: Any, step: Any) -> Callable[[Any, Any], tuple[Any, Any]]:
    """The step of `fit`; one that `train_step` did not make is looked at when it is called."""
    if isinstance(state, _TrainStep) or isinstance(step, TrainState):
        raise TypeError(
            f"state={state!r:.80} and step={step!r:.80} are in the wrong order: call "
            "fit(state, step, batches)."
        )
    if not callable(step):
        raise TypeError(
            f"step={step!r:.200} must be a function of a state and a batch, such as aj.train_step "
            "returns: call fit(state, step, batches)."
        )
    if isinstance(step, _TrainStep):
        return step
    name = getattr(step, "__name__", f"{step!r:.80}")
    advice = (
        "It must return the new state and a dict of metrics. If it is a loss function, make a step of "
        "it: aj.train_step(loss_fn)."
    )

    def checked(old: Any, batch: Any) -> tuple[Any, Any]:
        try:
            result: Any = step(old, batch)
        except Exception as error:
            # As Python and JAX name a type, where a loss takes the state for the parameters.
            if not re.search(r"'(adaptive_jax\.training\.)?TrainState'", str(error)):
                raise
            raise TypeError(
                f"step={name} was called with the state and a batch, and failed: "
                f"{type(error).__name__}: {error}. {advice}"
            ) from error
        is_pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)
        if not is_pair or (isinstance(old, TrainState) and not isinstance(result[0], TrainState)):
            raise TypeError(f"step={name} returned {_outlined(result)}. {advice}")
        return result

    return checked


def _outlined(value: Any) -> str:
    """What a value is, in a few words: the parts of a tuple, the dtype and shape of an array."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_outlined, value))})"
    is_number = isinstance(value, (bool, int, float, np.generic, np.ndarray, jax.Array))
    return pytrees.describe(value) if is_number else _shown(value)


def _iterator(batches: Any) -> Any:
    if isinstance(batches, (Mapping, str)):
        raise TypeError(
            f"batches is {_shown(batches)}, which is one batch: give a list of them, or a generator."
        )
    try:
        return iter(batches)
    except TypeError:
        raise TypeError(
            f"batches={batches!r:.200} must be an iterable with one batch for each step: a list, or a "
            "generator."
        ) from None


def _stops(answer: Any) -> bool:
    """Whether what a callback returned ends the loop."""
    if answer is None or answer is True or answer is False:
        return bool(answer)
    is_array = isinstance(answer, (np.bool_, np.ndarray, jax.Array))
    if is_array and answer.shape == () and answer.dtype == np.bool_:
        return bool(answer)
    if any(isinstance(each, TrainState) for each in jax.tree.leaves(answer, is_leaf=_is_state)):
        raise TypeError(
            "the callback returned a TrainState: it cannot change the state, and returns True to stop "
            "the loop. To change the state after a step, give fit a step around the step: "
            "def changing(state, batch): state, metrics = step(state, batch); "
            "return change(state), metrics."
        )
    raise TypeError(
        f"the callback returned {_outlined(answer)}: it must return True to stop the loop, and False or "
        "None to go on."
    )


def _is_state(x: Any) -> bool:
    return isinstance(x, TrainState)


def _arrays(tree: Any) -> list[Any]:
    leaves = jax.tree.leaves(tree)
    return [x for x in leaves if isinstance(x, jax.Array) and not isinstance(x, Tracer)]


def _is_used_up(tree: Any) -> bool:
    """Whether a step has written over an array."""
    return any(x.is_deleted() for x in _arrays(tree))


def _is_ready(x: Any) -> bool:
    """Whether an array has been computed. Random keys do not tell, and the step has them from others."""
    return not hasattr(x, "is_ready") or x.is_ready()


def _has_arrived(tree: Any, seconds: float) -> bool:
    """Whether all arrays have been computed within so many seconds, or have failed."""
    end = time.monotonic() + seconds
    for x in _arrays(tree):
        while not (x.is_deleted() or _is_ready(x)):
            if time.monotonic() > end:
                return False
            time.sleep(0.001)
    return True


def _is_there(tree: Any, wait: bool) -> bool:
    """Whether all arrays have been computed, without an error: in the end, or by now."""
    try:
        arrays = _arrays(tree)
        if _is_used_up(arrays) or not (wait or all(map(_is_ready, arrays))):
            return False
        jax.block_until_ready(arrays)
    except Exception:
        return False
    return True


def _is_lost(state: Any, wait: bool) -> bool:
    """Whether the state was written over by a step that failed, as far as is known by now."""
    arrays = _arrays(state)
    if _is_used_up(arrays):
        return True
    try:
        jax.block_until_ready([x for x in arrays if wait or _is_ready(x)])
    except Exception:
        return True
    return False


def _lost_note(done: int) -> str:
    last = checkpoint.last()
    where = "the last checkpoint that you saved" if last is None else f"the last checkpoint, {last}"
    return (
        f"The state is lost, after {done} steps at most: a step failed that had taken its arrays over. "
        f"error.state is None; error.history has the metrics that there are. Go on from {where}."
    )


def _paths(tree: Any) -> list[str]:
    """The path of each leaf."""
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


_TOGETHER = 32


class _Record:
    """The metrics of all steps, brought to the host many steps at a time, as one array for each.

    What is on its way there is left alone until as many more steps have been taken, by when it has
    arrived. Nothing of a device, nor a view of it, is kept.
    """

    def __init__(self) -> None:
        self._recent: list[Any] = []
        self._sent: tuple[list[Any], list[Any]] | None = None
        self._treedef: Any = None
        self._blocks: list[list[np.ndarray]] = []

    def add(self, metrics: Any) -> bool:
        """Takes the metrics of a step. Whether there is something new on the host."""
        self._recent.append(metrics)
        if len(self._recent) < _TOGETHER:
            return False
        return self._advance()

    def _advance(self) -> bool:
        """Fetches what was sent, and sends what is recent."""
        has_arrived = self._sent is not None
        if self._sent is not None:
            self._blocks.append([_fetched(column) for column in jax.device_get(self._sent[1])])
            self._sent = None
        if self._recent:
            self._sent, self._recent = (self._recent, self._columns(self._recent)), []
        return has_arrived

    def _columns(self, metrics: list[Any]) -> list[Any]:
        """One column for each metric, on its way to the host."""
        leaves, treedef = jax.tree.flatten(metrics)
        each = treedef.children()
        if self._treedef is None:
            self._treedef = each[0]
        for other, structure in zip(metrics, each, strict=True):
            if structure != self._treedef:
                first = self._treedef.unflatten(range(self._treedef.num_leaves))
                raise ValueError(
                    f"a step returned the metrics {', '.join(_paths(other))}, and the first one "
                    f"{', '.join(_paths(first))}: they must be the same in every step."
                )
        count = self._treedef.num_leaves
        try:
            return [_sent(leaves[place::count]) for place in range(count)]
        except Exception:
            paths = itertools.chain.from_iterable(map(_paths, metrics))
            for path, x in zip(paths, leaves, strict=True):
                if _is_used_up(x):
                    raise ValueError(
                        f"metrics{path} is an array of the state, and was written over by the step "
                        "after: let the step return a copy of it, jnp.copy(…)."
                    ) from None
            raise

    def loss(self) -> str:
        """The last loss that has arrived, for a progress bar."""
        last = self._treedef.unflatten([column[-1] for column in self._blocks[-1]])
        loss = np.asarray(last.get("loss", ""))
        is_number = loss.ndim == 0 and jnp.issubdtype(loss.dtype, jnp.floating)
        return f"loss {float(loss):.4g}" if is_number else ""

    def history(self) -> History:
        """All of them. It waits for the last one."""
        while self._recent or self._sent:
            self._advance()
        if not self._blocks:
            return History()
        columns = [_joined(parts) for parts in zip(*self._blocks, strict=True)]
        return History(self._treedef.unflatten(columns))

    def metrics(self) -> list[Any]:
        """Those of the last steps, as long as they are not on the host."""
        return (self._sent[0] if self._sent else []) + self._recent

    def rescued(self, wait: bool) -> History:
        """Those of the steps before the first one that failed, or that is not done yet."""
        there = [*itertools.takewhile(lambda each: _is_there(each, wait), self.metrics())]
        self._sent, self._recent = None, there
        try:
            return self.history()
        except Exception:  # What made it fail: metrics that differ.
            self._sent, self._recent = None, []
            return self.history()


@jax.jit
def _stack(*numbers: jax.Array) -> jax.Array:
    return jax.lax.concatenate([jax.lax.expand_dims(x, [0]) for x in numbers], 0)


def _sent(values: list[Any]) -> Any:
    """The values of a metric, one for each step, on their way to the host: numbers as one array."""
    is_number = isinstance(values[0], jax.Array) and values[0].shape == ()
    if is_number and len(values) == _TOGETHER and len(set(map(type, values))) == 1:
        # Numbers of different shapes, dtypes or devices cannot be one array, and do not raise below.
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            values = _stack(*values)
    for x in _arrays(values):
        x.copy_to_host_async()
    return values


def _fetched(column: Any) -> np.ndarray:
    """The values of a metric on the host, one for each step, in an array of their own."""
    if isinstance(column, np.ndarray):
        return np.array(column)
    return _joined([np.asarray(each)[None] for each in column])


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays one after the other; where their rows have different shapes, an array of the rows."""
    if len({part.shape[1:] for part in parts}) == 1:
        return np.concatenate(parts)
    rows = [row for part in parts for row in part]
    joined = np.empty(len(rows), object)
    for place, row in enumerate(rows):
        joined[place] = row
    return joined


class _Interrupts:
    """What Ctrl-C does: it is counted first, to end the loop, and interrupts at the second time.

    An exception in the middle of a step would lose the state that the step has taken over, so a second
    one waits for its end. A third one does not.
    """

    def __init__(self) -> None:
        self.count = 0
        self.in_step = False
        self._usual: Any = None

    def __enter__(self) -> _Interrupts:
        # Signals come to the main thread.
        if threading.current_thread() is threading.main_thread():
            self._usual = signal.getsignal(signal.SIGINT)
            if self._usual is signal.default_int_handler:  # Somebody's own is left to do its work.
                signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        if self._usual is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._usual)

    def _interrupt(self, number: int, frame: Any) -> None:
        self.count += 1
        if self.count > 2 or (self.count == 2 and not self.in_step):
            self._as_usual()

    def leave_step(self) -> None:
        self.in_step = False
        if self.count > 1:
            self._as_usual()

    def _as_usual(self) -> None:
        signal.signal(signal.SIGINT, self._usual)
        signal.raise_signal(signal.SIGINT)


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
