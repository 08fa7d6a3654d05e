"""Hyperparameters found by descent: the derivative of a whole run with respect to its optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._core import arguments, hyper, pytrees
from ..._core.arguments import is_number
from ..._core.hyper import Interval
from ..._core.rule import Rule, fields
from ..._core.transformation import Transformation
from ...rules.adam import adam
from ...schedules import cosine_decay_schedule


@dataclass(frozen=True, repr=False, eq=False)
class Tuned:
    """What `tune` returns.

    tx: the optimizer with the hyperparameters of the lowest loss, as numbers of Python.
    loss: that loss.
    losses: what train returned in each step, of shape (steps,).
    values: from the name of each hyperparameter that was tuned to its values, of shape (steps,).
    slopes: from these names to the derivatives of the loss by what is descended: by log η, say.
    stopped: why it ended before all steps were done; None where it did not.
    """

    tx: Any
    loss: float
    losses: np.ndarray
    values: dict[str, np.ndarray]
    slopes: dict[str, np.ndarray]
    stopped: str | None = None

    def __repr__(self) -> str:
        ended = "" if self.stopped is None else f"; stopped: {self.stopped}"
        text = (
            f"{self.tx!r}, loss {self.losses[0]:.4g} → {self.loss:.4g} in {len(self.losses)} steps"
        )
        return text + ended

    def plot(self, name: str | None = None, *, ax: Any = None) -> Any:
        """The loss in each step of the descent, or a hyperparameter.

        name: the name of a hyperparameter, of those in `values`; None for the loss.
        ax: matplotlib's Axes to draw into; None for new ones.

        Returns the Axes.
        """
        from ... import plotting

        if name is not None:
            arguments.one_of("name", name, tuple(self.values))
        shown = self.losses if name is None else self.values[name]
        ax = plotting.loss_curves({name or "train(tx)": shown}, ax=ax)
        ax.set_xlabel("step of the descent")
        ax.set_ylabel("loss" if name is None else name)
        return ax


def tune(
    train: Callable[[Any], Any],
    tx: Any,
    steps: int,
    *,
    only: Sequence[str] | None = None,
    rate: float = 0.3,
    forward: bool = False,
) -> Tuned:
    """Descends the hyperparameters themselves, by the derivative of a run with respect to its optimizer.

        s ← s - clip(Adam's step of ∂ train(tx(s))/∂s),   s = log h, log(1 - h), or log(h/(1 - h))

    Hyperparameters are leaves of an optimizer, so that `jax.grad` goes through a run that is unrolled, or
    in a `jax.lax.scan`. Those above 0 are descended in their logarithm, decay rates in that of their
    complement, and fractions in their odds, as each rule declares them, so that none leaves its interval;
    others as they are. s moves by rate at most in a step, and by less and less.

    Where it works: short runs of some ten to some hundred steps, at rates with which the run is stable.
    Where it does not: the derivatives of a long run explode once its steps are larger than what the
    curvature allows, and then say nothing, however finite they are; what is best for a short run has too
    small a rate for a long one (Wu et al. 2018, https://arxiv.org/abs/1803.02021); a noisy loss is noise in
    the derivatives, so let train use the same batches in each call; and it goes to the next local minimum.
    It stops at a loss or a derivative that is not finite, says which, and returns the best so far.

    Maclaurin, Duvenaud & Adams 2015, https://arxiv.org/abs/1502.03492.

    Args:
      train: `train(tx)`, a loss after training with tx, a JAX function: on held-out data at best. Memory is
        needed for all steps of it: `jax.checkpoint` around one of them saves most of that.
      tx: the optimizer to start from. Numbers that are 0, and fractions at either end, stay: they have no
        logarithm. Those of schedules are tuned as well.
      steps: how many steps of the descent, each of which trains once, 1 or more.
      only: the names of the hyperparameters to tune, such as ("learning_rate",); None for all.
      rate: by how much s may change in a step, > 0: 0.3 is a factor of 1.35.
      forward: True to differentiate forward, one run for each hyperparameter, side by side, with no
        memory for the steps of train: for few hyperparameters.

    Returns:
      `Tuned`: `.tx`, `.losses`, `.values`, `.plot()`.

    Raises:
      TypeError: for a train that is no function or returns no number, and an optimizer of others, which
        has no leaves.
      ValueError: for unknown names, nothing to tune, and a loss that is not finite to begin with.

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp
      >>> def train(tx):
      ...     w = jnp.array([1.0, -2.0])
      ...     updates, _ = tx.update(4 * w, tx.init(w), w)
      ...     return jnp.sum((w + updates) ** 2)
      >>> tuned = aj.tune(train, aj.sgd(0.01), 40)
      >>> print(f"{tuned.tx.data.rules[-1].learning_rate:.2f}")
      0.25
    """
    if not callable(train):
        raise TypeError(
            f"train={train!r:.200} must be a function of an optimizer that returns a loss."
        )
    steps = arguments.whole("steps", steps, 1)
    if not (is_number(rate) and 0 < rate < math.inf):
        raise ValueError(f"rate={rate!r} must be a finite number above 0.")
    if not isinstance(tx, Transformation):
        raise TypeError(
            f"tune takes an optimizer of this library, whose hyperparameters are leaves, got {tx!r:.200} "
            f"of type {type(tx).__name__}."
        )
    leaves, treedef = jax.tree.flatten(tx)
    tuned = _chosen(_numbers(tx), leaves, only)
    place = jnp.asarray([each.inward(float(leaves[each.index])) for each in tuned], jnp.float32)

    def with_values(values: Any) -> Any:
        new = list(leaves)
        for each, value in zip(tuned, values, strict=True):
            new[each.index] = value
        return treedef.unflatten(new)

    def loss(place: Any) -> Any:
        found = train(with_values([each.outward(s) for each, s in zip(tuned, place, strict=True)]))
        if jnp.shape(found) != () or not jnp.issubdtype(jnp.result_type(found), jnp.floating):
            raise TypeError(
                f"train returned {pytrees.describe(jnp.asarray(found))}: it must return one real number, "
                "the loss."
            )
        return found

    slope = jax.jit(_forward(loss) if forward else jax.value_and_grad(loss))
    descent = adam(cosine_decay_schedule(rate, steps), b1=0.5, b2=0.9)
    state = descent.init(place)
    limits = jnp.asarray([each.largest for each in tuned], jnp.float32)
    losses, values, slopes, stopped = [], [], [], None
    for _ in range(steps):
        found, by_place = slope(place)
        losses.append(float(found))
        values.append([float(each.outward(s)) for each, s in zip(tuned, place, strict=True)])
        slopes.append(np.asarray(by_place, np.float64))
        stopped = _why_it_stops(tuned, values, losses, slopes)
        if stopped is not None:
            break
        change, state = descent.update(by_place, state, place)
        place = jnp.minimum(place + jnp.clip(jnp.asarray(change), -rate, rate), limits)
    best = int(np.nanargmin(np.where(np.isfinite(losses), losses, np.inf)))
    columns = np.array(values).T, np.array(slopes).T
    names = [each.name for each in tuned]
    return Tuned(
        # As given where nothing has moved yet: a logarithm and back is a rounding.
        tx if best == 0 else with_values(values[best]),
        losses[best],
        np.array(losses),
        dict(zip(names, columns[0], strict=True)),
        dict(zip(names, columns[1], strict=True)),
        stopped,
    )


def _forward(loss: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The value and the derivatives of a function of a vector, forward."""

    def twice(place: Any) -> Any:
        found = loss(place)
        return found, found

    def value_and_slopes(place: Any) -> Any:
        slopes, value = jax.jacfwd(twice, has_aux=True)(place)
        return value, slopes

    return value_and_slopes


def _why_it_stops(tuned: Any, values: Any, losses: Any, slopes: Any) -> str | None:
    """What is not finite in the last step, if anything is."""
    step, where = len(losses), ", ".join(
        f"{each.name}={value:.4g}" for each, value in zip(tuned, values[-1], strict=True)
    )  # fmt: skip
    if not math.isfinite(losses[-1]):
        if step == 1:
            raise ValueError(
                f"train(tx) gives {losses[-1]} with {where}, to begin with: start from a smaller learning "
                "rate, with which the run is stable."
            )
        return f"in step {step} the loss is {losses[-1]}, with {where}"
    wrong = [e.name for e, slope in zip(tuned, slopes[-1], strict=True) if not math.isfinite(slope)]
    if not wrong:
        return None
    return (
        f"in step {step} the derivative by {', '.join(wrong)} is not finite, with {where}: train for fewer "
        "steps, or start from a smaller learning rate"
    )


@dataclass(frozen=True)
class _Number:
    """A hyperparameter: its name, which leaf of the optimizer it is, and the values that it may have."""

    name: str
    index: int
    interval: Interval

    @property
    def kind(self) -> str:
        if self.interval.high == 1:
            return "complement" if self.interval.open_above else "odds"
        return "log" if self.interval.low == 0 else "itself"

    @property
    def largest(self) -> float:
        """The largest s."""
        return 0.0 if self.kind == "complement" else math.inf

    def can_move(self, value: Any) -> bool:
        """Whether there is an s for the value."""
        if not is_number(value) and np.shape(value) != ():
            return False
        value = float(value)
        return {
            "complement": value < 1,
            "odds": 0 < value < 1,
            "log": 0 < value < math.inf,
            "itself": math.isfinite(value),
        }[self.kind]

    def inward(self, value: float) -> float:
        """s of a value."""
        return {
            "complement": lambda: math.log1p(-value),
            "odds": lambda: math.log(value / (1 - value)),
            "log": lambda: math.log(value),
            "itself": lambda: value,
        }[self.kind]()

    def outward(self, s: Any) -> Any:
        """The value of an s."""
        functions: dict[str, Callable[[Any], Any]] = {
            "complement": lambda s: -jnp.expm1(s),
            "odds": jax.nn.sigmoid,
            "log": jnp.exp,
            "itself": lambda s: s,
        }
        return functions[self.kind](s)


def _numbers(tx: Any) -> list[_Number]:
    """All hyperparameters of rules. Where several rules have one, it is named after its rule too."""
    found: list[tuple[str, str, _Number]] = []
    index = 0
    for node in jax.tree.leaves(tx, is_leaf=lambda x: isinstance(x, Rule)):
        if not isinstance(node, Rule):
            index += 1
            continue
        for name in fields(type(node)).data:
            interval = fields(type(node)).intervals[name]
            for where, each in hyper.named(name, getattr(node, name)):
                # Those of a schedule are its own, of which the lengths and peaks are above 0.
                own = Interval(0.0) if hyper.is_schedule(each) else interval
                for path, _ in jax.tree_util.tree_leaves_with_path(each):
                    full = f"{where}{jax.tree_util.keystr(path)}"
                    found.append((type(node).__name__, full, _Number(full, index, own)))
                    index += 1
    names = [full for _, full, _ in found]
    return [
        each if names.count(full) == 1 else _Number(f"{rule}.{full}", each.index, each.interval)
        for rule, full, each in found
    ]


def _chosen(numbers: list[_Number], leaves: list[Any], only: Any) -> list[_Number]:
    """Those that are to be tuned, and can be."""
    if isinstance(only, str):
        raise TypeError(f"only={only!r} is a string: give a tuple of names.")

    def is_meant(each: _Number, name: str) -> bool:
        return name == each.name or each.name.split("[")[0].split(".")[-1] == name

    movable = [each for each in numbers if each.can_move(leaves[each.index])]
    names = [each.name for each in movable]
    for name in only or ():
        if not any(is_meant(each, name) for each in movable):
            stays = any(is_meant(each, name) for each in numbers)
            why = "stays where it is, at an end of its interval" if stays else "is not known"
            raise ValueError(
                f"only={tuple(only)!r}: {name!r} {why}. What can be tuned: {', '.join(names)}."
            )
    if not movable:
        raise ValueError(
            "the optimizer has no hyperparameter that can be tuned: all are 0, or none are."
        )
    if only is None:
        return movable
    return [each for each in movable if any(is_meant(each, name) for name in only)]
