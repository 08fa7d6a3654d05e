"""The loss and the gradients of a batch: of the whole, or the mean over its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from .. import maths
from .._core import pytrees
from .._core.storage.sharding import explicit_sharding
from ..transforms import precision
from ..transforms.extra_args import zeros_like
from .settings import Settings
from .state import TrainState


class Evaluated(NamedTuple):
    """What the loss of a batch gave beside its gradients.

    loss: the loss, unscaled: the mean over the parts of the batch.
    model_state: the new model state; that of the state where the loss function takes none.
    aux: what the loss function returned last, with has_aux; None.
    """

    loss: Any
    model_state: Any
    aux: Any


def value_and_grad(
    settings: Settings,
    state: TrainState,
    params: Any,
    batch: Any,
    rng: Any,
    scale: jax.Array,
    parts: int,
    at_home: Callable[[Any], Any] = lambda tree: tree,
) -> tuple[Evaluated, Any]:
    """The loss of a batch at some parameters, and what JAX calls its gradients: the mean over parts.

    The gradients are unscaled.

    at_home: puts gradients where their parameters lie, while those of all parts are added up: devices
      exchange them once, at the end.
    """
    differentiated = jax.value_and_grad(settings.loss, has_aux=True)
    # Divided by the number of parts within the loss, so that devices can add up the gradients of all
    # parts before they exchange them. In float16, small ones would be lost.
    within = all(jnp.result_type(x) != jnp.float16 for x in jax.tree.leaves(params))

    def of_part(model_state: Any, part: Any, rng: Any) -> tuple[Any, Any, Any]:
        share = scale / parts if within and parts > 1 else scale
        (_, (loss, model_state, aux)), gradients = differentiated(
            params, model_state, part, rng, share
        )
        if parts > 1:
            loss = loss / parts
            if not within:
                gradients = jax.tree.map(lambda g: maths.precise(g) / parts, gradients)
        return (gradients, loss), model_state, aux

    (gradients, loss), model_state, aux = _added_up(
        of_part, params, state.model_state, batch, rng, parts, at_home
    )
    gradients = jax.tree.map(
        lambda g, x: g.astype(update_dtype(jnp.result_type(x))), gradients, params
    )
    if settings.loss_scale is not None or state.loss_scale is not None:
        gradients = jax.tree.map(lambda g: maths.scaled(g, 1 / scale), gradients)
    return Evaluated(loss, model_state, aux), gradients


def loss_of_batch(
    settings: Settings, params: Any, model_state: Any, batch: Any, rng: Any
) -> jax.Array:
    """The loss of the whole batch, the mean over its parts."""
    parts = settings.accumulate

    def of_part(model_state: Any, part: Any, rng: Any) -> tuple[Any, Any, None]:
        _, (loss, model_state, _) = settings.loss(params, model_state, part, rng, jnp.ones(()))
        return (None, loss if parts == 1 else loss / parts), model_state, None

    (_, loss), _, _ = _added_up(of_part, None, model_state, batch, rng, parts)
    return loss


def _added_up(
    of_part: Callable[..., Any],
    params: Any,
    model_state: Any,
    batch: Any,
    rng: Any,
    parts: int,
    at_home: Callable[[Any], Any] = lambda tree: tree,
) -> tuple[Any, Any, Any]:
    """The sum of gradients and a loss over the parts of a batch, the model state, and all aux.

    of_part: a function of the model state, a part and a key that gives these for the part: of the mean
      over all parts its share, so that no sum overflows.
    params: what there are gradients of.
    """
    if parts == 1:
        return of_part(model_state, batch, rng)
    part = _parts(batch, parts)

    def body(carry: Any, index: Any) -> tuple[Any, Any]:
        total, model_state = carry
        part_rng = None if rng is None else jax.random.fold_in(rng, index)
        values, model_state, aux = of_part(model_state, part(index), part_rng)
        gradients, loss = jax.tree.map(lambda t, x: t + x.astype(t.dtype), total, values)
        return ((at_home(gradients), loss), model_state), aux

    kind = jax.eval_shape(lambda: of_part(model_state, part(0), rng)[0][1]).dtype
    total = at_home(zeros_like(params)), jnp.zeros((), kind)
    carry = total, model_state
    ((gradients, loss), model_state), aux = jax.lax.scan(body, carry, jnp.arange(parts))
    return (at_home(gradients), loss), model_state, aux


def scale_in_force(settings: Settings, state: TrainState) -> jax.Array:
    """The factor on the loss: a constant of the step, or that of the state; a ValueError for both."""
    if settings.loss_scale is None:
        return jnp.ones(()) if state.loss_scale is None else state.loss_scale.scale
    if state.loss_scale is not None:
        raise ValueError(
            f"train_step has loss_scale={settings.loss_scale} and the state has another one: give one."
        )
    return jnp.asarray(settings.loss_scale, jnp.float32)


def update_dtype(dtype: Any) -> Any:
    """The dtype of the gradients and updates of a parameter: its own, but float32 for few bits.

    An update of 8 bits would be rounded twice, the first time to the nearest number, which may be 0.
    """
    return jnp.dtype(jnp.float32) if precision.is_coarse(dtype) else dtype


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
