"""The whole training step in one `jit`, called with a state and a batch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from .._core.arguments import floating, one_of, whole
from ..transforms.skip import skips_in
from .arrays import is_spread
from .donation import check_read, check_repeated, explain_failure
from .estimator import check_estimator
from .loss import Loss
from .loss_scale import check_scale
from .metrics import METRICS
from .outline import Outline
from .places import Places
from .program import one_step
from .settings import Settings
from .state import TrainState
from .tiles import check_tiles, platform_of


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
    gradient: Callable[..., Any] | None = None,
    tiles: bool | None = None,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]:
    """One training step, compiled whole: loss, gradients, update, new parameters.

        (loss, g) of loss_fn at θ;   u, s ← tx.update(g, s, θ);   θ ← θ + u

    g is the direction in which the loss grows fastest: of complex parameters, the conjugate of JAX's
    gradient. The update gets optax's extra arguments as well, `value`, `grad` and `value_fn`, for what
    takes them, such as `optax.contrib.reduce_on_plateau` and `optax.lbfgs`: the loss, unscaled, its
    gradients, and the loss of this batch as a function of the parameters, all of the whole batch, however
    many parts it is split into.

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
        it always is so. The metric "nonfinite" says in which steps which arrays; an `aj.skip_nonfinite`
        around the optimizer also ends a run that skips too many in a row, and names them.
      compute_dtype: such as jnp.bfloat16: what floating-point parameters and batches are cast to for
        the loss. Gradients and updates have the parameters' dtype; float32 where that has 8 bits or
        less, so that an update is rounded once, in the parameters.
      rounding: "stochastic" or "nearest", how parameters below 32 bits take their update, as in
        `apply_updates`. Rounded to nearest, they lose most of it, unless the optimizer is in
        `compensate`, with which either gives the same.
      metrics: the names of what to measure, in float32 and on the device: "loss", "learning_rate" (of
        this step, the product of all rates in the optimizer, and the largest where arrays have different
        ones; of an `aj.partition` "learning_rate/<label>" comes with it), "skipped" (so many steps so far,
        also by an `aj.skip_nonfinite` in the optimizer),
        "gradient_norm", "update_norm", "parameter_norm" (before the step), "update_ratio", the
        quotient of the last two, 0 where the parameters are, "measured", what an `aj.diagnose` in the
        optimizer measured, by measure and group, "nonfinite", a dict of bools by the names "loss" and,
        of each array, "params['w']": whether that, its gradient, update or new value is not finite, and
        "loss_at_eval_params", the loss of this batch at `state.eval_params()` of before the step, beside
        "loss" at those that are trained.
        Norms read every array once more, and "loss_at_eval_params" runs the model once more. None for
        the first three, without a learning rate that cannot be known, as in most optimizers of optax.
      gradient: an estimator, a function that makes the gradients of the step out of those of the loss,
        and what else the optimizer is to know, such as the diagonal of the Hessian: `gradient(
        value_and_grad, params, batch, step, key)` returns `(first, gradients, extra_args)`.
        `value_and_grad(params)` gives `(first, gradients)` of the whole batch, the mean over `accumulate`,
        unscaled, at any parameters like those of the state, and may be called often, under
        `jax.vmap` and in `jax.jvp`; `value_and_grad(params, rows)` of another batch, in one piece.
        Each call starts from the `model_state` of before the step, with one and the same `rng`. first is
        a tuple of loss, model_state and aux: hand back that which the step is to go on with, or a mean
        of several. extra_args, a dict, goes to the optimizer's `update`. step is the number of steps so
        far; key one for this step, None where the state has no `rng`. Gradients are here what
        `jax.value_and_grad` gives, also where they are complex: `aj.maths.ascent(gradients)` is the
        direction. None for the gradients of the loss themselves.
      tiles: True to update each array of two axes or more in one kernel on a GPU or TPU, tile by tile:
        each number is read once and written once, also where slots have 8 or 16 bits, and the update is
        added to the parameter in it. It is for element-wise rules, in float32, and a last axis of 256 or
        more; smaller arrays and all other rules are left to XLA, and so is on GPUs what has no slot in
        8 or 16 bits with scales. The numbers are the same but for the rounding of the compiler. Where
        it can have no effect, a warning says once why. None for True where it has been run: on one GPU
        of NVIDIA's.

    Returns:
      A function of a `TrainState` and a batch that returns the new state and a dict of metrics.

    Raises:
      TypeError, ValueError: for an unknown option; when the step is first called, for a loss that is no
        scalar, for what loss_fn returns too much or too little, for a batch that cannot be split, for a
        missing key, for a metric by name that cannot be known, and for what an estimator returns that
        is not what it should.

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp
      >>> step = aj.train_step(lambda params, batch: jnp.sum((params["w"] - batch) ** 2))
      >>> state = aj.TrainState.create({"w": jnp.zeros(2)}, aj.sgd(0.25))
      >>> state, metrics = step(state, jnp.array([1.0, 2.0]))
      >>> print(state.params["w"], metrics["loss"])
      [0.5 1. ] 5.0

      An estimator of one's own, which clips the gradient of each row; `aj.sam`, `aj.asam`, `aj.hutchinson`
      and `aj.gauss_newton_bartlett` are there:

      >>> def clipped_by_row(value_and_grad, params, batch, step, key, limit=1.0):
      ...     def of_row(row):
      ...         first, g = value_and_grad(params, row[None])
      ...         return first, jax.tree.map(lambda x: x * limit / jnp.maximum(aj.global_norm(g), limit), g)
      ...     first, gradients = jax.tree.map(lambda x: x.mean(0), jax.vmap(of_row)(batch))
      ...     return first, gradients, {}
      >>> step = aj.train_step(lambda w, batch: jnp.mean(batch @ w), gradient=clipped_by_row)
      >>> state = aj.TrainState.create(jnp.zeros(2), aj.sgd(1.0))
      >>> print(step(state, jnp.array([[3.0, 4.0], [0.0, 0.5]]))[0].params)
      [-0.3  -0.65]
    """
    one_of("rounding", rounding, ("nearest", "stochastic"))
    if isinstance(metrics, str):
        raise TypeError(f"metrics={metrics!r} is a string: give a tuple of names.")
    for name in metrics or ():
        one_of("metrics", name, METRICS)
    accumulate = whole("accumulate", accumulate, 1)
    check_scale("loss_scale", loss_scale)
    check_tiles(tiles)
    if not callable(loss_fn):
        raise TypeError(f"loss_fn={loss_fn!r} must be a function of the parameters and a batch.")
    if compute_dtype is not None:
        compute_dtype = floating("compute_dtype", compute_dtype)
    check_estimator(gradient)
    loss = Loss(loss_fn, has_aux, compute_dtype)
    if len(needed := loss.needs) > 2:
        raise TypeError(
            f"loss_fn needs the arguments {', '.join(needed)}, and is called with (params, batch): give "
            "the rest as a tuple, and unpack it inside, x, y = batch."
        )
    settings = Settings(
        loss=loss,
        accumulate=accumulate,
        loss_scale=loss_scale,
        skip_nonfinite=skip_nonfinite,
        rounding=rounding,
        metrics=METRICS[:3] if metrics is None else tuple(metrics),
        by_name=metrics is not None,
        gradient=gradient,
        tiles=tiles,
    )
    return functools.wraps(loss_fn, assigned=("__name__", "__module__"), updated=())(
        TrainStep(settings)
    )


class TrainStep:
    """What `train_step` returns."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._skips = settings.skip_nonfinite
        self._measures_skipped = "skipped" in settings.metrics
        # Not donated: the optimizer's numbers, and what a step leaves as it is.
        self._jitted = jax.jit(
            functools.partial(one_step, settings), static_argnums=(0, 1, 2), donate_argnums=4
        )
        self._places: dict[Any, Places] = {}
        self._sent: tuple[Any, Any, Any, Any] = None, None, None, None
        self._outlines: dict[Any, Outline] = {}
        self._skipping: set[Outline] = set()  # Those that count what they skip.
        self._skipped: tuple[Any, Any] = None, None

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        """The new state, and the metrics."""
        platform, places = self._platform(state), self._places_of(state)
        arguments = platform, places, *self._arguments(state)
        new, metrics = self._run(self._jitted, arguments, state, batch)
        if places is not None:
            new.__dict__["_places"] = places
        return new, metrics

    def lower(self, state: TrainState, batch: Any) -> _Lowered:
        """The step lowered for these arguments, as `jax.jit` lowers. `.compile()` gives a step for
        arguments like these, called in the same way, that also tells its memory.
        """
        arguments, static = self._arguments(state), (self._platform(state), self._places_of(state))
        lowered = self._jitted.lower(*static, *arguments, batch)
        return _Lowered(self, arguments[0], lowered)

    def __reduce__(self) -> Any:
        if _pickled_by_value():
            return TrainStep, (self._settings,), {"__name__": getattr(self, "__name__", "loss")}
        raise TypeError(
            f"the training step of {getattr(self, '__name__', 'this loss')} is compiled code, and is not "
            "pickled: make it again with train_step where it is needed. The state can be: "
            "aj.save_checkpoint, or pickle.dumps(jax.device_get(state))."
        )

    def __copy__(self) -> TrainStep:
        return self

    def __deepcopy__(self, memo: Any) -> TrainStep:
        return self

    # What follows runs in every step, and is written to be quick.

    def _platform(self, state: TrainState) -> str:
        """The platform of the step, where it makes a difference."""
        return platform_of(getattr(state, "step", None), self._settings.tiles)

    def _places_of(self, state: TrainState) -> Places | None:
        """Where the arrays of a state lie; None for one device, and while all is traced."""
        if not is_spread(getattr(state, "step", None)):
            return None
        known = state.__dict__.get("_places")  # A step leaves every array where it was.
        if known is None:
            leaves, treedef = jax.tree.flatten((state.params, state.opt_state, state.model_state))
            key = treedef, tuple([getattr(x, "sharding", None) for x in leaves])
            if key not in self._places:
                self._places[key] = Places(state)
            known = self._places[key]
        return known

    def _arguments(self, state: TrainState) -> tuple[Any, ...]:
        """What the jitted function takes, but for the batch."""
        if not isinstance(state, TrainState):
            raise TypeError(
                f"a training step takes a TrainState, got {state!r:.200} of type "
                f"{type(state).__name__}: make one with TrainState.create(params, tx)."
            )
        tx, mesh, outline, numbers = self._sent
        # Of the shape of a state: its devices need not be here.
        is_array = isinstance(state.step, jax.Array)
        sharding = getattr(state.step, "sharding", None) if is_array else None
        if tx is not state.tx or sharding != mesh:
            outline, numbers = self._send(state, sharding)
        scale = state.loss_scale
        counts = self._skips or scale is not None or outline in self._skipping
        skipped = state.skipped if counts else None
        written = state.step, state.params, state.opt_state, state.model_state, scale, skipped
        return outline, numbers, written, state.rng

    def _run(
        self, function: Callable[..., Any], arguments: Sequence[Any], state: TrainState, batch: Any
    ) -> tuple[TrainState, dict[str, Any]]:
        """The jitted or the compiled function's step."""
        if "_has_each_once" not in state.__dict__:
            check_repeated(state, batch)
        elif is_spread(state.step):
            check_read(state, batch)
        try:
            written, metrics = function(*arguments, batch)
        except Exception as error:
            explain_failure(error, state, batch)
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
        # It is one within the user's own jit, which closes over the state.
        if not isinstance(copy, Tracer):
            self._skipped = skipped, copy
        return copy

    def _send(self, state: TrainState, sharding: Any) -> tuple[Outline, Any]:
        """The optimizer's numbers on the device: those of Python in one array, sent once."""
        tx = state.tx
        leaves, treedef = jax.tree.flatten(tx)
        is_float = tuple([isinstance(leaf, float) for leaf in leaves])
        outline = self._outlines.get((treedef, is_float))
        if outline is None:
            outline = self._outlines[treedef, is_float] = Outline(treedef, is_float)
            if self._measures_skipped and any(skips_in(state.opt_state)):
                self._skipping.add(outline)
        with jax.transfer_guard_host_to_device("allow"):  # It is asked for.
            numbers = outline.numbers(leaves)
        if not any(isinstance(number, Tracer) for number in numbers):
            # Else each step would send them on.
            if sharding is not None and sharding.num_devices > 1:
                numbers = jax.device_put(numbers, sharding)
            self._sent = tx, sharding, outline, numbers
        return outline, numbers


def _pickled_by_value() -> bool:
    """Whether it is cloudpickle that asks, which also takes functions that have no name."""
    frame = inspect.currentframe()
    while frame is not None and not frame.f_globals.get("__name__", "").endswith("cloudpickle"):
        frame = frame.f_back
    return frame is not None


@dataclass(frozen=True)
class _Lowered:
    """A lowered step: what `jax.stages.Lowered` is, for a state and a batch."""

    step: TrainStep
    outline: Outline
    lowered: Any

    def compile(self, *args: Any, **options: Any) -> _Compiled:
        """The compiled step, a function of a state and a batch."""
        return _Compiled(self.step, self.outline, self.lowered.compile(*args, **options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lowered, name)


@dataclass(frozen=True)
class _Compiled:
    """A compiled step: what `jax.stages.Compiled` is, for a state and a batch."""

    step: TrainStep
    outline: Outline
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
