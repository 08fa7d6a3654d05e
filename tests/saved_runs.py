"""Runs whose checkpoints are kept in tests/data/checkpoints, as older versions wrote them."""

from __future__ import annotations

import functools
import io
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import adaptive_jax as aj

SAVED_AT, ENDS_AT = 3, 6
PARAMS = {
    "w": jnp.arange(1.0, 13.0).reshape(3, 4) / 12,
    "b": jnp.array([0.5, -0.25]),
    "low": jnp.array([1.0, -2.0, 3.0], jnp.bfloat16),
    "frozen": None,
}


def falling(count: Any) -> jax.Array:
    """A learning rate."""
    return 0.1 / (1.0 + jnp.asarray(count, jnp.float32))


def rising(count: Any) -> jax.Array:
    """A weight decay."""
    return 0.01 * (1.0 + jnp.asarray(count, jnp.float32))


def matrices(params: Any) -> Any:
    """A mask."""
    return jax.tree.map(lambda x: x.ndim > 1, params)


DECAY = {"weight_decay": 0.1, "mask": matrices}
SMALL = {"min_size": 0}
RUNS: dict[str, Any] = {
    "sgd": lambda: aj.sgd(0.1),
    "sgd falling": lambda: aj.sgd(falling),
    "sgd decay": lambda: aj.sgd(falling, **DECAY),
    "sgd momentum": lambda: aj.sgd(0.1, 0.9, nesterov=True),
    "sgd momentum decay": lambda: aj.sgd(falling, 0.9, **DECAY),
    "sgd dampened": lambda: aj.sgd(0.1, 0.9, dampening=0.5, dampen_first=False),
    "sgd steps": lambda: aj.sgd(falling, 0.9, velocity="steps"),
    "sgd steps decay": lambda: aj.sgd(0.1, 0.9, velocity="steps", **DECAY),
    "sgd steps falling decay": lambda: aj.sgd(falling, 0.9, velocity="steps", **DECAY),
    "adagrad": lambda: aj.adagrad(0.1),
    "adagrad decay": lambda: aj.adagrad(falling, weight_decay=rising),
    "adadelta": lambda: aj.adadelta(),
    "adadelta decay": lambda: aj.adadelta(falling, **DECAY),
    "adadelta rising": lambda: aj.adadelta(0.5, weight_decay=rising),
    "rmsprop": lambda: aj.rmsprop(0.1),
    "rmsprop falling": lambda: aj.rmsprop(falling, bias_correction=True, eps_in_sqrt=False),
    "rmsprop decay": lambda: aj.rmsprop(0.1, **DECAY),
    "rmsprop centered": lambda: aj.rmsprop(0.1, centered=True),
    "rmsprop momentum": lambda: aj.rmsprop(0.1, momentum=0.9),
    "rmsprop momentum falling": lambda: aj.rmsprop(falling, momentum=0.9, centered=True),
    "rmsprop momentum decay": lambda: aj.rmsprop(falling, momentum=0.9, **DECAY),
    "rmsprop gradients": lambda: aj.rmsprop(falling, momentum=0.9, velocity="gradients"),
    "rmsprop gradients decay": lambda: aj.rmsprop(0.1, momentum=0.9, velocity="gradients", **DECAY),
    "adam": lambda: aj.adam(0.1),
    "adam falling": lambda: aj.adam(falling),
    "adam decay": lambda: aj.adam(falling, **DECAY),
    "adam b1 falling": lambda: aj.adam(0.1, b1=falling),
    "adam mu in bfloat16": lambda: aj.adam(0.1, mu_dtype=jnp.bfloat16),
    "adamw": lambda: aj.adamw(0.1),
    "adamw without decay": lambda: aj.adamw(falling, weight_decay=0.0),
    "adamw falling": lambda: aj.adamw(falling, weight_decay=0.1),
    "adamw rising": lambda: aj.adamw(0.1, weight_decay=rising),
    "adamw falling rising": lambda: aj.adamw(falling, weight_decay=rising, mask=matrices),
    "adamw masked": lambda: aj.adamw(0.1, **DECAY),
    "nadam": lambda: aj.nadam(0.1),
    "nadam momentum decay": lambda: aj.nadam(0.1, momentum_decay=0.004, **DECAY),
    "nadamw": lambda: aj.nadamw(falling, **DECAY),
    "amsgrad": lambda: aj.amsgrad(falling),
    "adamax": lambda: aj.adamax(0.1),
    "radam": lambda: aj.radam(falling),
    "transform": lambda: aj.transform(
        aj.rules.Trace(0.9), aj.WeightDecay(rising, matrices), aj.LearningRate(falling)
    ),
    "transform decay": lambda: aj.transform(aj.rules.Adam(), aj.LearningRate(falling, rising)),
    "chain": lambda: aj.chain(
        aj.clip_by_global_norm(0.1),
        aj.scale_by_adam(),
        aj.add_decayed_weights(rising, matrices),
        aj.scale_by_learning_rate(falling),
    ),
    "chain of chains": lambda: aj.chain(
        aj.monitor({"norm": aj.global_norm}), aj.chain(aj.clip(1.0), aj.adamw(falling))
    ),
    "skip_nonfinite": lambda: aj.skip_nonfinite(aj.adamw(falling), 2),
    "multi_steps": lambda: aj.multi_steps(aj.rmsprop(falling, momentum=0.9), 2),
    "compensate": lambda: aj.compensate(aj.adamw(falling)),
    "diagnose": lambda: aj.diagnose(aj.sgd(falling, 0.9, weight_decay=0.1)),
    "bfloat16": lambda: aj.adamw(falling, storage=aj.BFloat16(**SMALL)),
    "int8": lambda: aj.adamw(falling, storage=aj.Blocks(**SMALL)),
    "int16": lambda: aj.adadelta(0.5, weight_decay=rising, storage=aj.Blocks(bits=16, **SMALL)),
    "int8 steps": lambda: aj.rmsprop(0.1, momentum=0.9, storage={"trace": aj.Blocks(**SMALL)}),
    "factored": lambda: aj.adamw(falling, storage={"nu": aj.Factored(min_size=2)}),
    "torch.sgd": lambda: aj.interop.torch.sgd(0.1, 0.9, 0.5, 0.1, maximize=True),
    "torch.adam": lambda: aj.interop.torch.adam(falling, weight_decay=0.1, mask=matrices),
    "torch.adamw": lambda: aj.interop.torch.adamw(0.1, amsgrad=True, mask=matrices),
    "torch.rmsprop": lambda: aj.interop.torch.rmsprop(0.1, centered=True, momentum=0.9),
    "keras.sgd": lambda: aj.interop.keras.sgd(falling, 0.9, weight_decay=0.1, mask=matrices),
    "keras.adamw": lambda: aj.interop.keras.adamw(falling, mask=matrices, clipnorm=1.0),
    "keras.nadam": lambda: aj.interop.keras.nadam(0.1),
    "optax": lambda: optax.adamw(falling, weight_decay=0.1),
}
"""The optimizer of each run."""


def create(name: str) -> aj.TrainState:
    """The state at the start of a run."""
    return aj.TrainState.create(PARAMS, RUNS[name]())


def go_on(state: aj.TrainState, until: int) -> tuple[aj.TrainState, Any]:
    """The state after so many steps, and the last loss."""
    step, metrics = aj.train_step(_loss, metrics=("loss",)), {}
    # What optax makes mixes dtypes.
    with jax.numpy_dtype_promotion("standard"):
        while state.step < until:
            state, metrics = step(state, jnp.float32(state.step))
    return state, metrics["loss"]


def _loss(params: Any, batch: jax.Array) -> jax.Array:
    targets = [
        jnp.cos(batch + jnp.arange(x.size).reshape(x.shape)) for x in jax.tree.leaves(params)
    ]
    return sum(
        jnp.sum(jnp.square(x.astype(jnp.float32) - target))
        for x, target in zip(jax.tree.leaves(params), targets, strict=True)
    )


DATA = Path(__file__).parent / "data" / "checkpoints"
VERSIONS = sorted(path.stem for path in DATA.glob("*.zip"))


@functools.cache
def saved(version):
    """The runs that a version saved, as files in a zip."""
    with zipfile.ZipFile(DATA / f"{version}.zip") as outer:
        return zipfile.ZipFile(io.BytesIO(outer.read("runs.zip")))


def unpacked(version, name, folder):
    """The folder of one run that a version saved."""
    runs = saved(version)
    runs.extractall(folder, [each for each in runs.namelist() if each.startswith(f"{name}/")])
    return folder / name
