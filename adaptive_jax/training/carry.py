"""The state of a run that goes on with other arrays, or with another optimizer."""

from __future__ import annotations

from typing import Any

import jax
import optax

from .._core import pytrees
from .._core.arguments import one_of
from .._core.transformation import member
from .._core.wrapper import evaluating
from ..transforms.behind import average_of
from ..transforms.shards import Axes
from .arrays import is_used_up
from .carried import Carried
from .carry_plan import OldState, carried_over, nodes_of
from .state import TrainState


def carry_state(
    old_state: Any,
    tx: optax.GradientTransformation,
    params: Any = None,
    *,
    old_tx: optax.GradientTransformation | None = None,
    mixed: str = "refuse",
    average: optax.GradientTransformation | str | None = "keep",
    shard: Axes | None = None,
) -> tuple[Any, Carried]:
    """A state for another optimizer or other parameters, with all of the old one that still fits.

    For a run that changes: layers that are unfrozen, arrays of LoRA that come in, an embedding with more
    rows, another optimizer for one group. An array keeps what a rule has of it where the old state has all
    of that for the same rule, under the same path, in the same shape, dtype and storage. All else is as
    `tx.init(params)` makes it: of an array that changed its shape too, for nothing says which of its rows
    are which. Groups, chains and wrappers may be others than before.

    A rule's numbers for all of its arrays, such as the count of Adam's bias correction, go with the
    arrays: they are kept where all of them are, and start anew where all start anew. They cannot be right
    for arrays of both kinds: with the count of a long run, Adam's first steps of a new array are up to 6.6
    times too large. So this is refused, unless `mixed` says otherwise; give the new arrays a group of their
    own, which has its own count. Averages of the parameters, which a new array enters as it is, need no
    such care. The count of a schedule is kept where it has its old place, stands behind a rule that keeps
    something, or is the only one. A wrapper that is in the midst of an accumulation begins it again where
    an array is new.

    What is kept is handed over and not copied: go on with the new state alone.

    Args:
      old_state: the state of the optimizer so far, or the `TrainState`. Of that step, `model_state`,
        `rng`, `loss_scale` and `skipped` are kept.
      tx: the optimizer to go on with. What another library's transformation in it keeps is kept as a
        whole, where the old state has one such of the same types and shapes, or not at all.
      params: the parameters to go on with, as arrays, or as shapes, for a state of shapes. None for those
        of a `TrainState`.
      old_tx: the optimizer that made `old_state`, where that is no `TrainState`. With it, a rule is the
        same if its class and its options are. Without, if its state has the same name: AdaMax, RAdam and
        others have Adam's.
      mixed: what to do where a rule has numbers for kept and for new arrays: "refuse"; "keep" them for
        both; "restart" the rule, all of its arrays new.
      average: of a `TrainState`: what to keep an average of the parameters by, as in `TrainState.create`.
        "keep" is the average that the old optimizer ends with, if it does, unless tx has other parameters
        to evaluate with than it trains itself. None leaves it out.
      shard: of a `TrainState`: axes to split what is new over, as there. What is kept lies where it was.

    Returns:
      The state, a `TrainState` if the old one was, and a `Carried`, which prints what was kept, what is
      new and why, and what was left out.

    Raises:
      TypeError: for what is no state, no optimizer, or no parameters.
      ValueError: for numbers of a rule that are for kept and for new arrays; for a state that a step has
        used up, or that old_tx did not make.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> params = {"body": jnp.ones((2, 2)), "head": jnp.ones(2)}
      >>> groups = {"body": "body", "head": "head"}
      >>> frozen = aj.partition({"body": None, "head": aj.adam(1e-3)}, groups)
      >>> state = aj.TrainState.create(params, frozen)
      >>> trained = aj.partition({"body": aj.adam(1e-5), "head": aj.adam(1e-3)}, groups)
      >>> state, carried = aj.carry_state(state, trained)
      >>> print(carried)
        of      what  entries
      Adam  ['body']   mu, nu  new: the old state has no ScaleByAdamState of it
      Adam     count                              new: so are all of its arrays
      Adam  ['head']   mu, nu                                              kept
      Adam     count                                                       kept
    """
    one_of("mixed", mixed, _MIXED)
    _check_state(old_state)
    tx = member(tx, "carry_state")
    if isinstance(old_state, TrainState):
        if old_tx is not None:
            raise TypeError("old_tx is for the state of an optimizer: a TrainState has its own.")
        params = old_state.params if params is None else params
        if isinstance(average, str):
            if average != "keep":
                raise ValueError(
                    f'average={average!r} is not known: it must be "keep", None, or an average such as '
                    "aj.average(0.999)."
                )
            kept_average = None if evaluating(tx) else average_of(old_state.tx)
        else:
            kept_average = average
        kept = {
            name: getattr(old_state, name)
            for name in ("step", "model_state", "rng", "loss_scale", "skipped")
        }
        new = TrainState.create(
            params,
            tx,
            model_state=kept["model_state"],
            rng=kept["rng"],
            average=kept_average,
            shard=shard,
        )
        old = OldState(old_state.opt_state, old_state.tx)
        opt_state, carried = carried_over(old, new.tx, new.params, new.opt_state, mixed)
        return new.replace(opt_state=opt_state, **kept), carried
    for name, value in (("average", average), ("shard", shard)):
        if value is not None and not (name == "average" and value == "keep"):
            raise TypeError(
                f"{name}={value!r:.80} is for a TrainState, and old_state is that of an optimizer."
            )
    if params is None:
        raise TypeError(
            "params=None: carry_state(old_state, tx, params) needs the parameters, unless old_state is a "
            "TrainState."
        )
    pytrees.check_floats("params", params)
    is_abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params))
    init = (lambda x: jax.eval_shape(tx.init, x)) if is_abstract else tx.init
    return carried_over(OldState(old_state, old_tx), tx, params, init(params), mixed)


_MIXED = ("refuse", "keep", "restart")


def _check_state(state: Any) -> None:
    order = "The order is carry_state(old_state, tx, params)."
    if isinstance(state, optax.GradientTransformation):
        raise TypeError(f"old_state={state!r:.80} is an optimizer, and no state of one. {order}")
    if not isinstance(state, TrainState) and not any(True for _ in nodes_of(state)):
        raise TypeError(f"old_state={state!r:.80} is no state of an optimizer. {order}")
    if is_used_up(state):
        raise ValueError(
            "old_state is deleted: a step wrote over it. Carry the state that the step returned."
        )
