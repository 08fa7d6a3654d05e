"""The parameters to evaluate with."""

from __future__ import annotations

from typing import Any

import jax
import optax

from .._core import states
from .._core.evaluate import evaluate_tree
from .._core.lifted import Lifted, with_complements
from .._core.pytrees import is_inexact
from .._core.transformation import data_of, member
from .._core.wrapper import Wrapper, check_one_evaluates, evaluating
from .compensate import CompensateState, exact_params


def eval_params(tx: optax.GradientTransformation, params: Any, opt_state: Any) -> Any:
    """The parameters to evaluate with, where they are not those that are trained.

    Some optimizers take the gradient at one point, and mean another one: an average of all so far, say.
    Here the parameters get what `compensate` keeps of them, then each rule that has an `evaluate` makes
    of them what it means, from the last rule to the first. All others leave them as they are.

    Args:
      tx: the optimizer that made the state.
      params: the parameters that are trained.
      opt_state: its state.

    Returns:
      The parameters to evaluate with, in float32 at least. Before the first update they are params.

    Raises:
      ValueError: for a state of another optimizer; where two rules have an `evaluate`; and where one
        that has lies in a wrapper of another library, which hides what it is given.

    Example:
      >>> from dataclasses import dataclass
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> @dataclass(frozen=True)
      ... class Averaged(aj.Rule):
      ...     decay: aj.Hyper = 0.5
      ...     slots = {"mean": aj.Slot("param")}
      ...     needs_params = True
      ...     def update(self, grad, slots, param, ctx):
      ...         mean = self.decay * slots["mean"] + (1 - self.decay) * (param + grad)
      ...         return grad, {"mean": mean}
      ...     def evaluate(self, param, slots, ctx):
      ...         return slots["mean"]
      >>> tx = aj.transform(aj.LearningRate(0.5), Averaged())
      >>> params = jnp.ones(())
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(params + updates, aj.eval_params(tx, params + updates, state))
      0.5 0.75
    """
    tx = member(tx, "eval_params")
    check_one_evaluates(tx)
    # In a whole module there are functions and integers, too.
    leaves, treedef = jax.tree.flatten(params, is_leaf=lambda x: x is None)
    arrays = treedef.unflatten([x if is_inexact(x) else None for x in leaves])
    found = treedef.flatten_up_to(exact_params(_evaluated(tx, arrays, opt_state), ()))
    return treedef.unflatten(
        [old if new is None else new for old, new in zip(leaves, found, strict=True)]
    )


def _evaluated(transformation: Any, params: Any, state: Any) -> Any:
    data = data_of(transformation)
    if isinstance(data, Wrapper):
        data.check(state)
        return data.evaluate(params, state, _evaluated)
    if isinstance(data, Lifted):
        data.split(state)  # Raises for that of another optimizer.
        return evaluate_tree(with_complements(data), params, state) if evaluating(data) else params
    return _of_others(data, params, state)


def _of_others(transformation: Any, params: Any, state: Any) -> Any:
    """What another library's transformation leaves of the parameters, which is all of them."""

    def is_own(x: Any) -> bool:
        return states.evaluates(x) or isinstance(x, CompensateState)

    found = [x for x in jax.tree.leaves(state, is_leaf=is_own) if is_own(x)]
    for each in found:
        if states.evaluates(each):
            raise ValueError(
                f"{type(each).__name__} is the state of a rule that evaluates with other parameters than "
                f"it trains, and it lies in {transformation!r}, which is not of this library, so that "
                "nobody knows which parameters it is given. Use aj.chain, and the wrappers of this library."
            )
    return exact_params(params, found) if found else params
