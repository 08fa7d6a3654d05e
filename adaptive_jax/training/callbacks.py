"""What looks on while a loop runs: functions of the user's, early stopping, the best parameters."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import warnings
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core.arguments import number, whole
from .._core.placement import is_key, put
from ..maths import compute_dtype
from .checkpoint.entries import entries_of, is_number, kind_of
from .checkpoint.placement import as_in_state
from .evaluation import PREFIX
from .state import TrainState


class Callback:
    """What `aj.fit(…, callback=…)` calls. Subclass it for what looks at evaluations too.

    What it remembers is in the checkpoints of `fit(…, checkpoints=…)` if it has `to_save` and `restore`. A
    new one gets it back in a run that goes on from `aj.restore_checkpoint`: the one of the same class and,
    if they have such an attribute, the same `name`; of several alike, the one at the same place.

    Example:
      >>> import adaptive_jax as aj
      >>> class Highest(aj.Callback):
      ...     value = -float("inf")
      ...     def after_evaluation(self, state, values):
      ...         self.value = max(self.value, float(values["eval_loss"]))
      ...     def to_save(self):
      ...         return {"value": self.value}
      ...     def restore(self, saved, state):
      ...         self.value = saved["value"]
    """

    def after_step(self, state: Any, metrics: dict[str, Any]) -> Any:
        """After each step, with the new state and its metrics, on the device. True stops the loop."""

    def after_evaluation(self, state: Any, values: dict[str, Any]) -> Any:
        """After each evaluation, with its values by their names, "eval_loss". True stops the loop."""

    def to_save(self) -> dict[str, Any]:
        """What a checkpoint keeps: numbers, strings, arrays of numbers by names, alike in all processes."""
        return {}

    def restore(self, saved: dict[str, Any], state: Any) -> Any:
        """Goes on from what `to_save` returned, with the state of then. True if the loop had stopped."""


class Watching(Callback):
    """What judges by one number of the evaluations."""

    def __init__(self, name: str, maximize: bool | None) -> None:
        kind = type(self).__name__
        if not isinstance(name, str) or not name.startswith(PREFIX):
            raise ValueError(
                f"{kind} looks at evaluations, and {name!r} is none: {PREFIX}loss for the number that "
                f"evaluate returns, {PREFIX}accuracy for what it returns as 'accuracy' in a dict."
            )
        self.name = name
        self.maximize = maximize is not None and _true_or_false("maximize", maximize)
        self._advice = ""
        if maximize is None and (good := _good_where_large(name)):
            self._advice = f"; for {good} give maximize=True"
            warnings.warn(
                f"{kind}({name!r}) takes small for good: for {good} give maximize=True. Where small is "
                "good, maximize=False says so, without this warning.",
                stacklevel=3,
            )

    def check_name(self, names: Iterable[str]) -> None:
        """Raises a ValueError if there is no number of its name."""
        if self.name not in (there := list(names)):
            raise ValueError(
                f"{type(self).__name__} looks at {self.name!r}, and there is {', '.join(there)}: give it "
                "one of these names."
            )

    def _value(self, values: dict[str, Any]) -> Any:
        self.check_name(values)
        return values[self.name]

    def _starts_anew(self, why: str) -> None:
        warnings.warn(
            f"{self!r} starts anew, since what the checkpoint has of it is of another run: {why}. Take "
            "what it had then, or give this run a folder of its own.",
            stacklevel=2,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}{', maximize=True' if self.maximize else ''})"


def _true_or_false(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}={value!r:.80} must be True or False.")
    return bool(value)


_GOOD_WHERE_LARGE = {
    "acc": "an accuracy",
    "accuracy": "an accuracy",
    "f1": "an F1 score",
    "auc": "an AUC",
    "precision": "a precision",
    "recall": "a recall",
    "r2": "an R²",
    "score": "a score",
    "bleu": "a BLEU score",
}


def _good_where_large(name: str) -> str:
    """What a name says that is good where it is large; nothing for others."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    return next((_GOOD_WHERE_LARGE[word] for word in words if word in _GOOD_WHERE_LARGE), "")


class EarlyStopping(Watching):
    """Stops `aj.fit` where an evaluation gets no better.

    It waits for the value of each evaluation, and for no step. NaN is never better. In another `fit` it
    goes on where it was, and a new one starts anew. Checkpoints of `fit` have the best value and the
    evaluations since: a run that is restored stops where it would have, at once where it had, and with a
    larger patience it goes on.

    Prechelt 1998, https://doi.org/10.1007/3-540-49430-8_3.

    Args:
      name: which number of the evaluation, "eval_loss", or "eval_accuracy" of a dict with "accuracy".
      patience: how many evaluations in a row may be no better than the best one: the last of them stops.
      minimum_change: by how much a value must be better than the best one to count as better, >= 0.
      maximize: True where large is good. None for False, with a UserWarning for a name that is that of an
        accuracy or a score.

    Raises:
      ValueError: for a name that is none of an evaluation, a patience below 1, and a negative change.
      TypeError: for a maximize that is neither True nor False.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> step = aj.train_step(lambda params, batch: jnp.sum(params**2))
      >>> state = aj.TrainState.create(jnp.ones(2), aj.sgd(0.5))
      >>> stopping = aj.EarlyStopping("eval_loss", patience=2)
      >>> state, history = aj.fit(state, step, [None] * 100, evaluate=jnp.sum, evaluate_every=10,
      ...                         callback=stopping)
      >>> print(state.step, history["eval_loss"], history.stopped_by)
      30 [0. 0. 0.] EarlyStopping('eval_loss'): no lower than 0 for 2 evaluations
    """

    def __init__(
        self,
        name: str = "eval_loss",
        *,
        patience: int = 5,
        minimum_change: float = 0.0,
        maximize: bool | None = None,
    ) -> None:
        super().__init__(name, maximize)
        self.patience = whole("patience", patience, 1)
        number("minimum_change", minimum_change, 0.0)
        self.minimum_change = minimum_change
        self.best, self.waited = math.inf, 0

    def after_evaluation(self, state: Any, values: dict[str, Any]) -> Any:
        """Whether there was none better for so long."""
        value = float(self._value(values))
        value = -value if self.maximize else value
        if value < self.best - (self.minimum_change if math.isfinite(self.best) else 0.0):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self._verdict()

    def to_save(self) -> dict[str, Any]:
        """The best value, and how many evaluations there were since."""
        return {"maximize": self.maximize, "best": self.best, "waited": self.waited}

    def restore(self, saved: dict[str, Any], state: Any) -> Any:
        """Goes on from these, unless good was the opposite then."""
        if saved["maximize"] != self.maximize:
            return self._starts_anew(f"maximize was {saved['maximize']}")
        self.best, self.waited = saved["best"], saved["waited"]
        return self._verdict()

    def _verdict(self) -> str | None:
        """Why it stops; None where it does not."""
        if self.waited < self.patience:
            return None
        best = -self.best if self.maximize else self.best
        than = "higher" if self.maximize else "lower"
        count = f"{self.waited} evaluation{'s' if self.waited > 1 else ''}"
        return f"no {than} than {best:.4g} for {count}{self._advice}"


class KeepBest(Watching):
    """Keeps the parameters that an evaluation was best with.

    A copy, since a step writes over its state: it costs the memory of the parameters once more (and that
    of the model state), and with whole_state that of the whole state too. What is better is decided on the
    device, and nothing is waited for. NaN is never better. In another `fit` it goes on where it was, and a
    new one starts anew. What it keeps is in the checkpoints of `fit` too, which grow by as much: a run that
    is restored has the best of before.

    After the loop it has `params`, the best parameters to evaluate with, None before the first evaluation
    that is finite; `model_state`, which belongs to them; `step`, after which they were, and `value`, what
    the evaluation came to; and `state`, the whole one, if it is kept.

    Args:
      name: which number of the evaluation, "eval_loss", or "eval_accuracy" of a dict with "accuracy".
      maximize: True where large is good. None for False, with a UserWarning for a name that is that of an
        accuracy or a score.
      whole_state: True to keep the whole state, to train on from.

    Raises:
      ValueError: for a name that is none of an evaluation.
      TypeError: for what is neither True nor False.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> step = aj.train_step(lambda params, batch: -params)  # It runs away.
      >>> best = aj.KeepBest("eval_loss")
      >>> state, _ = aj.fit(aj.TrainState.create(jnp.array(0.0), aj.sgd(1.0)), step, [None] * 9,
      ...                   evaluate=lambda params: (params - 4) ** 2, evaluate_every=1, callback=best)
      >>> print(state.params, best.params, best.step, best.value)
      9.0 4.0 4 0.0
    """

    def __init__(
        self,
        name: str = "eval_loss",
        *,
        maximize: bool | None = None,
        whole_state: bool = False,
    ) -> None:
        super().__init__(name, maximize)
        self.whole_state = _true_or_false("whole_state", whole_state)
        self._kept: Any = None
        self._count = 0
        self._optimizers: list[tuple[int, Any, Any]] = []  # From which evaluation on, and a copy.

    def after_evaluation(self, state: Any, values: dict[str, Any]) -> None:
        """Keeps the parameters if they are better."""
        new = self._of_state(state)
        if "state" in new:
            # Its numbers are usually no arrays, and the same all the time.
            new["state"] = dataclasses.replace(state, tx=None)
            if not self._optimizers or self._optimizers[-1][1] is not state.tx:
                self._optimizers.append((self._count, state.tx, _copied(state.tx)))
        value = self._value(values)
        if self._kept is None:
            dtype = compute_dtype(jnp.result_type(value))
            self._kept = _copied(new), np.full((), np.inf, dtype), np.int32(-1)
        self._kept = _better(*self._kept, new, value, np.int32(self._count), self.maximize)
        self._count += 1

    def to_save(self) -> dict[str, Any]:
        """All that it keeps, each entry under its path; nothing before there is one."""
        if self._number() < 0:
            return {}
        kept = {**self._kept[0]}
        if "state" in kept:
            kept["state"] = dataclasses.replace(kept["state"], tx=self._optimizer())
        entries = {name: _plain(x) for name, x in entries_of(kept).items()}
        return {"maximize": self.maximize, "value": np.asarray(self._kept[1])} | entries

    def restore(self, saved: dict[str, Any], state: Any) -> None:
        """Keeps what it kept then, if the state is of such arrays still."""
        new = self._of_state(state)
        entries = entries_of(new)
        others = ("maximize", "value", *(() if self.whole_state else ("['state']",)))
        kept = {name: x for name, x in saved.items() if not name.startswith(others)}
        if saved["maximize"] != self.maximize:
            return self._starts_anew(f"maximize was {saved['maximize']}")
        for name in [*entries, *kept]:
            then, now = _kind(kept.get(name)), _kind(entries.get(name))
            if then != now and {then, now} != {"number[]", "float32[]"}:
                return self._starts_anew(f"{name} was {then}, and is {now}")
        leaves = [_placed(as_in_state(kept[name], x), x) for name, x in entries.items()]
        tree = jax.tree.unflatten(jax.tree.structure(new), leaves)
        if "state" in tree:
            self._optimizers = [(0, None, tree["state"].tx)]
            tree["state"] = dataclasses.replace(tree["state"], tx=None)
        self._kept, self._count = (tree, saved["value"], np.int32(0)), 1

    def _of_state(self, state: Any) -> dict[str, Any]:
        """What is kept of a state."""
        if not isinstance(state, TrainState):
            return {"params": state}
        kept = {"params": state.eval_params(), "model_state": state.model_state, "step": state.step}
        return {**kept, "state": state} if self.whole_state else kept

    def _optimizer(self) -> Any:
        """The one of the state that is kept."""
        return [copy for first, _, copy in self._optimizers if first <= self._number()][-1]

    def _of(self, name: str) -> Any:
        return self._kept[0].get(name) if self._number() >= 0 else None

    def _number(self) -> int:
        """Which of the evaluations was best; -1 if none was."""
        return -1 if self._kept is None else int(self._kept[2])

    @property
    def params(self) -> Any:
        """The best parameters to evaluate with."""
        return self._of("params")

    @property
    def model_state(self) -> Any:
        """The model state that belongs to them."""
        return self._of("model_state")

    @property
    def state(self) -> Any:
        """The whole state, if it is kept: a copy, which a step may write over."""
        state = self._of("state")
        if state is None:
            return None
        return _copied(dataclasses.replace(state, tx=self._optimizer()))

    @property
    def step(self) -> int | None:
        """After which step that was."""
        step = self._of("step")
        return None if step is None else int(step)

    @property
    def value(self) -> float | None:
        """What the evaluation came to."""
        if self._number() < 0:
            return None
        value = float(self._kept[1])
        return -value if self.maximize else value


def _copied(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.copy(x) if isinstance(x, jax.Array) else x, tree)


def _plain(x: Any) -> Any:
    """An array, of a random key as well."""
    return jax.random.key_data(x) if is_key(x) else x


def _kind(x: Any) -> str:
    """What an entry is, to compare."""
    if x is None:
        return "missing"
    shape, dtype = kind_of(_plain(x))
    return f"{dtype}{shape}"


def _placed(value: Any, leaf: Any) -> Any:
    """What was restored, on the devices of a leaf."""
    if is_number(value) or not isinstance(leaf, jax.Array) or value.sharding == leaf.sharding:
        return value
    is_at_hand = value.is_fully_addressable or value.is_fully_replicated
    return put(value, leaf.sharding) if is_at_hand else jax.device_put(value, leaf.sharding)


@functools.partial(jax.jit, donate_argnums=0, static_argnames="maximize")
def _better(
    old: Any, best: Any, best_number: Any, new: Any, value: Any, number: Any, maximize: bool
) -> Any:
    value = jnp.asarray(value, best.dtype)
    value = -value if maximize else value
    is_better = value < best
    return (
        jax.tree.map(lambda x, y: jnp.where(is_better, x, y), new, old),
        jnp.where(is_better, value, best),
        jnp.where(is_better, number, best_number),
    )
