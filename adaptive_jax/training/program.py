"""What a training step computes, as a pure function."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import maths
from .._core import pytrees
from .._core.sharing import known_places
from ..transforms import precision
from ..transforms.finite import all_finite, finite_after
from .estimator import estimated, numbers_of
from .gradients import loss_of_batch, scale_in_force
from .metrics import measured_metrics
from .outline import Outline
from .places import Places
from .settings import Settings
from .state import TrainState
from .tiles import backend_of


def one_step(
    settings: Settings,
    platform: str,
    places: Places | None,
    outline: Outline,
    numbers: Any,
    written: Any,
    rng: Any,
    batch: Any,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The step itself: what of the state is written over, as it is afterwards, and the metrics.

    platform: on which it is to run.
    places: where all lies that is on several devices; None on one.
    written: the same before the step.
    """
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
    scale = scale_in_force(settings, state)
    at_home, at_work = (
        (_as_it_is, _as_it_is) if places is None else (places.at_home, places.at_work)
    )
    (loss, model_state, aux), gradients, extra_args = estimated(
        settings, state, batch, rng, scale, at_home
    )
    gradients, params = at_work(maths.ascent(gradients)), at_work(state.params)

    def value_fn(params: Any) -> Any:
        return loss_of_batch(settings, params, state.model_state, batch, rng)

    given = {"value": loss, "grad": gradients, "value_fn": value_fn, **extra_args}
    adding = precision.Rounding(
        settings.rounding, state.step if settings.rounding == "stochastic" else None
    )
    trees = gradients, state.opt_state, params
    updates, backend = None, backend_of(settings, platform, state)
    try:
        with known_places(None if places is None else places.known):
            if backend is not None:
                params, updated = precision.update_and_add(tx, *trees, adding, backend, **given)
            else:
                updates, updated = tx.update(*trees, **given)
                params = at_work(adding.apply(params, updates))
    except ValueError as error:
        if type(error).__name__ == "TypePromotionError":  # Not public before jax 0.9.
            _explain_promotion(error, state)
        raise
    new = dataclasses.replace(
        state,
        # It wraps round: where it stopped instead, all further steps would have the same random bits.
        step=state.step + 1,
        params=params,
        opt_state=updated,
        model_state=model_state,
    )
    new = new if places is None else places.left(new)
    if settings.skips(state):
        finite = all_finite((loss, gradients, numbers_of(extra_args))) & finite_after(
            state.params, updates
        )
        new = _chosen(finite, new, state)
    measured = measured_metrics(
        settings, state, new, updated, loss, gradients, updates, value_fn, extra_args
    )
    if settings.loss.has_aux:
        measured["aux"] = aux
    return (
        new.step, new.params, new.opt_state, new.model_state, new.loss_scale, new.skipped,
    ), measured  # fmt: skip


def _as_it_is(tree: Any) -> Any:
    return tree


def _chosen(finite: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    """The new state, or where something was not finite the old one, with what counts such steps."""
    keep = ("params", "opt_state", "model_state")
    kept = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        [getattr(new, name) for name in keep],
        [getattr(old, name) for name in keep],
    )
    return dataclasses.replace(
        new,
        **dict(zip(keep, kept, strict=True)),
        skipped=jnp.where(finite, old.skipped, optax.safe_increment(old.skipped)),
        loss_scale=None if old.loss_scale is None else old.loss_scale.after(finite),
    )


def _explain_promotion(error: Exception, state: TrainState) -> None:
    """Raises an error by name where another library meets float32 gradients of 8-bit parameters."""
    for path, param in jax.tree_util.tree_leaves_with_path(state.params):
        if precision.is_coarse(jnp.result_type(param)):
            raise TypeError(
                f"the parameter at {jax.tree_util.keystr(path) or 'the root'} is "
                f"{pytrees.describe(param)}, and its gradient float32, which {state.tx!r:.200} does not "
                f"take together: take one of this library's optimizers. ({error})"
            ) from error
