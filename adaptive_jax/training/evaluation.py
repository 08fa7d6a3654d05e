"""What a loop measures beside its steps: with the parameters to evaluate with, on data held out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core.arguments import whole
from .agreement import check_alike
from .arrays import is_there
from .history import History
from .returned import is_real_number, outlined, shown
from .state import TrainState
from .step import TrainStep

PREFIX = "eval_"
"""Before the names of what is evaluated, in the history and wherever else they stand."""


class Evaluation:
    """The means of one or several numbers over batches, for `aj.fit(…, evaluate=…)`.

        Σ n·f(θ, batch) / Σ n, with n the rows of each batch

    So the last batch may be a smaller one, where f is a mean over rows. f is compiled, nothing waits for
    the device, and the sums are in float32 and stay there.

    Args:
      function: f, `function(params, batch)`, or `function(params, batch, model_state)` if it has an
        argument of that name: returns a number, which is called "loss", or a dict of numbers.
      batches: what it is evaluated on, gone through in each evaluation: a list, or a function that makes
        a new iterator. A row is what the first axis counts of the first array of a batch.

    Raises:
      TypeError: for what is no function, for batches that can be gone through once, and, when it is called,
        for values that are no numbers.
      ValueError: when it is called, if there are no batches.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> evaluation = aj.Evaluation(lambda w, x: jnp.mean((x - w) ** 2), [jnp.ones(3), jnp.zeros(1)])
      >>> print(evaluation(jnp.zeros(())))
      {'loss': Array(0.75, dtype=float32)}

      `evaluation(state)` evaluates a `TrainState`, at its `eval_params()`.
    """

    def __init__(
        self, function: Callable[..., Any], batches: Iterable[Any] | Callable[[], Iterable[Any]]
    ) -> None:
        if not callable(function) or isinstance(function, TrainStep):
            raise TypeError(
                f"function={function!r:.200} must be a function of the parameters and a batch that returns "
                "a number or a dict of numbers, such as a loss function."
            )
        is_one = isinstance(batches, (Mapping, str)) or not (
            callable(batches) or hasattr(batches, "__iter__")
        )
        if is_one or isinstance(batches, (np.ndarray, jax.Array)):
            raise TypeError(
                f"batches is {outlined(batches)}, which is one batch: give a list of them, or a function "
                "that makes a generator."
            )
        if not callable(batches) and iter(batches) is batches:
            raise TypeError(
                f"batches is {shown(batches)}, which can be gone through once: give a list, or a function "
                "that makes a new one, batches=lambda: …, for the next evaluation."
            )
        self._function, self._batches = function, batches
        self._takes_model_state = "model_state" in _arguments(function)
        self._jitted = jax.jit(self._added)

    def __call__(self, params: Any, model_state: Any = None) -> dict[str, Any]:
        """The means, on the device; of a `TrainState`, at its `eval_params()`."""
        if isinstance(params, TrainState):
            params, model_state = params.eval_params(), params.model_state
        sums = None
        for batch in self._batches() if callable(self._batches) else self._batches:
            sums = self._jitted(sums, params, model_state, batch)
        if sums is None:
            raise ValueError(f"{self!r} has no batches.")
        values, rows = sums
        return {name: value / rows for name, value in values.items()}

    def of_first_batch(self, params: Any, model_state: Any = None) -> dict[str, Any]:
        """The numbers of the first batch alone, times its rows."""
        for batch in self._batches() if callable(self._batches) else self._batches:
            return self._jitted(None, params, model_state, batch)[0]
        raise ValueError(f"{self!r} has no batches.")

    def __repr__(self) -> str:
        return f"Evaluation({getattr(self._function, '__name__', self._function)!s:.80})"

    def _added(self, sums: Any, params: Any, model_state: Any, batch: Any) -> Any:
        more = {"model_state": model_state} if self._takes_model_state else {}
        values = named(self._function(params, batch, **more), repr(self))
        shapes = [np.shape(x) for x in jax.tree.leaves(batch)]
        rows = shapes[0][0] if shapes and shapes[0] else 1
        count = jnp.float32(rows)
        # The mean of no rows is NaN, and counts for nothing.
        values = {
            name: count * jnp.asarray(x if rows else 0, jnp.float32) for name, x in values.items()
        }
        if sums is None:
            return values, count
        return {name: sums[0][name] + x for name, x in values.items()}, sums[1] + count


class Evaluations:
    """What `evaluate` gives, every so many steps, and the history of it.

    Nothing is waited for but what the evaluation before came to.
    """

    def __init__(self, function: Any, every: Any, are_together: bool) -> None:
        if function is None and every is not None:
            raise ValueError(f"evaluate_every={every!r} needs something to evaluate: evaluate=….")
        if function is not None and (not callable(function) or isinstance(function, TrainStep)):
            raise TypeError(
                f"evaluate={function!r:.200} must be a function of the parameters that returns a number or "
                "a dict of numbers: aj.Evaluation(loss_fn, batches) makes one."
            )
        if every is not None:
            every = whole("evaluate_every", every, 1, hint=" None is for once an epoch.")
        if len(needed := _needed(function)) > 1:
            raise TypeError(
                f"evaluate needs the arguments {', '.join(needed)}, and is called with the parameters "
                "alone: aj.Evaluation(function, batches) calls it with batches too."
            )
        if trouble := _refused(function):
            raise TypeError(f"evaluate cannot be called with the parameters alone: {trouble}.")
        self.every = every
        self._function: Any = function
        self._are_together = are_together
        self._arguments = _arguments(function)
        self._steps: list[int] = []
        self._values: dict[str, list[Any]] = {}

    def names(self, state: Any) -> list[str] | None:
        """What the values will be called, before the first step; None where that cannot be known.

        Only what is compiled is looked at: another function may do what is to be done once an evaluation.
        """
        function = self._function
        if isinstance(function, Evaluation):
            function = function.of_first_batch
        elif not (hasattr(function, "trace") and hasattr(function, "lower")):
            return None
        found = jax.eval_shape(lambda state: named(self._of(function, state), "evaluate"), state)
        return [f"{PREFIX}{name}" for name in found]

    def is_due(self, number: int) -> bool:
        """Whether to evaluate after the step with this number, by the count of steps."""
        return self.every is not None and number % self.every == 0

    def is_missing(self, number: int) -> bool:
        """Whether the step with this number, the last one of an epoch or of all, was not evaluated."""
        return self._function is not None and self._steps[-1:] != [number]

    def check_names(self, metrics: Any) -> None:
        """Raises a ValueError for a step that has metrics called like an evaluation."""
        taken = [name for name in metrics if str(name).startswith(PREFIX)]
        if self._function is not None and taken:
            raise ValueError(
                f"the step returns the metric {taken[0]!r}, and {PREFIX}… is what evaluate returns: give "
                "that of the step another name."
            )

    def add(self, number: int, state: Any) -> dict[str, Any]:
        """Evaluates, after the step with this number. The values, by their names in the history."""
        found = named(self._of(self._function, state), "evaluate")
        # Copies: the next step may write over what an evaluation hands on.
        values = {
            f"{PREFIX}{name}": jnp.copy(x) if isinstance(x, jax.Array) else np.asarray(x)
            for name, x in found.items()
        }
        if self._values and values.keys() != self._values.keys():
            raise ValueError(
                f"evaluate returned {', '.join(values)}, and {', '.join(self._values)} before: these must "
                "be the same every time."
            )
        if self._are_together:
            values = {name: np.asarray(x) for name, x in values.items()}
            facts = {name: f"{x}" for name, x in values.items()}
            check_alike(f"What is evaluated after step {number}", facts)
        self.settle()
        self._steps.append(number)
        for name, x in values.items():
            if isinstance(x, jax.Array):
                x.copy_to_host_async()
            self._values.setdefault(name, []).append(x)
        return values

    def settle(self) -> None:
        """Brings what the last evaluation came to to the host."""
        for column in self._values.values():
            column[-1:] = map(np.asarray, column[-1:])

    def add_to(self, history: History) -> None:
        """Puts all into a history: the steps of the evaluations, and what they came to."""
        if self._steps:
            self.settle()
            history[f"{PREFIX}step"] = np.array(self._steps)
            history.update({name: np.stack(column) for name, column in self._values.items()})

    def rescue(self, history: History, wait: bool) -> None:
        """The same, but for the last one where it failed, or is not there and must not be waited for."""
        last = [column[-1] for column in self._values.values() if column]
        if not is_there(last, wait):
            del self._steps[-1:]
            for column in self._values.values():
                del column[-1:]
        self.add_to(history)

    def _of(self, function: Any, state: Any) -> Any:
        """What the function, or another one with its arguments, comes to."""
        if not isinstance(state, TrainState):
            return function(state)
        params = state.eval_params()
        if self._arguments[:1] == ["state"]:
            return function(state.replace(params=params))
        if "model_state" in self._arguments:
            return function(params, model_state=state.model_state)
        return function(params)


def named(values: Any, what: str) -> dict[str, Any]:
    """The numbers that a function returned, by name; a TypeError for what is none."""
    found = values if isinstance(values, Mapping) else {"loss": values}
    if not found:
        raise TypeError(
            f"{what} returned an empty dict: it must return a number or a dict of numbers."
        )
    for name, x in found.items():
        if not is_real_number(x):
            place = f" for {name!r}" if isinstance(values, Mapping) else ""
            advice = ", such as jnp.mean(…) of it" if getattr(x, "shape", ()) else ""
            raise TypeError(
                f"{what} returned {outlined(x)}{place}: it must return one real number, or a dict of such "
                f"numbers{advice}."
            )
    return {str(name): x for name, x in found.items()}


def _needed(function: Any) -> list[str]:
    """The arguments without default that it has to be called with by position, but for the model state."""
    if function is None or not _arguments(function):
        return []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [
        each.name
        for each in inspect.signature(function).parameters.values()
        if each.default is each.empty and each.kind in positional and each.name != "model_state"
    ]


def _refused(function: Any) -> str:
    """Why a function does not take what it is called with; empty where it does, or nothing is known."""
    names = _arguments(function)
    if function is None:
        return ""
    by_name = {"model_state": None} if "model_state" in names[1:] else {}
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return ""
    try:
        signature.bind(None, **by_name)
    except TypeError as error:
        return str(error)
    return ""


def _arguments(function: Any) -> list[str]:
    """The names of a function's arguments; none where Python does not know them."""
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []
