"""Random settings of PyTorch's and Keras's optimizers, and the way that parameters take under them.

A trajectory is an array of shape (steps, elements): the parameters after each step. Every library
gets the same gradients, which do not depend on the parameters: so an error in one step is not made
larger by the steps after it, and what differs is the optimizer's doing.
"""

from __future__ import annotations

import contextlib
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaptive_jax import interop

STEPS = 200
ELEMENTS = 12
TOLERANCE = {"float64": 1e-10, "float32": 2e-5}


def problem(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of all steps, and the first parameters.

    Each element has a scale of its own between 0.3 and 30. A tenth of all gradients are exactly
    zero; one element begins with zeros, one ends with ten, one sees nothing else and starts at 0.
    (No smaller and no more: where an L2 penalty is most of the gradient, the parameter is in a loop
    in which Adam's steps around 0 are chaotic, and any rounding grows, in any library.)
    """
    rng = np.random.default_rng(1964)
    scale = 10.0 ** rng.uniform(-0.5, 1.5, ELEMENTS)
    gradients = scale * (rng.uniform(-1, 1, ELEMENTS) + rng.standard_normal((STEPS, ELEMENTS)))
    gradients[rng.random(gradients.shape) < 0.1] = 0.0
    gradients[:20, -3] = gradients[190:, -2] = gradients[:, -1] = 0.0
    params = rng.standard_normal(ELEMENTS)
    params[-1] = 0.0
    return gradients.astype(dtype), params.astype(dtype)


def _table(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).astype(
        np.float64
    )  # Numbers of float32, the same in all dtypes.


_COUNT = np.arange(STEPS)
SCHEDULES = {
    "warmup and cosine": _table(
        0.1 * np.minimum((_COUNT + 1) / 20, 0.5 + 0.5 * np.cos(np.pi * _COUNT / STEPS))
    ),
    "staircase": _table(0.05 * 0.5 ** (_COUNT // 40)),
    "on and off": _table(np.where(_COUNT % 7 < 3, 0.0, 0.02)),
}
"""Learning rates by name, one for each step."""


def _lookup(values: np.ndarray) -> Any:
    return lambda count: jnp.asarray(values)[count]


# One function per schedule: a schedule is compared by identity.
_AS_FUNCTIONS = {name: _lookup(values) for name, values in SCHEDULES.items()}


class _Draw:
    """Draws settings. Ten in a row have their choices in common, which is one compilation for all."""

    def __init__(self, name: str, index: int) -> None:
        self.numbers = np.random.default_rng(zlib.crc32(f"{name} {index}".encode()))
        self.choices = np.random.default_rng(zlib.crc32(f"{name} {index // 10}".encode()) + 1)

    def log(self, low: float, high: float) -> float:
        # Numbers of float32: Keras keeps a learning rate in a variable of its own precision.
        return float(np.float32(10 ** self.numbers.uniform(np.log10(low), np.log10(high))))

    def rate(self, low: float = 1e-3, high: float = 0.1) -> float | str:
        return self.maybe(self.log(low, high), self.one_of(list(SCHEDULES)))

    def decay_of_weights(self) -> float:
        # PyTorch multiplies by 1 - ηλ, this library adds -ηλθ: below 1e-6 or so, float32 rounds the
        # first to another decay.
        return self.log(1e-2, 0.3)

    def decay(self, low: float = 1e-3, high: float = 0.5) -> float:
        return 1.0 - self.log(low, high)

    def slow_decay(self) -> float:
        # For the variance: where λθ is all of the gradient, or all of it is clipped, it hardly changes,
        # and √(ν - μ²) is what rounding leaves of it, in any library: αᵗ of ν after t steps.
        return self.decay(1e-3, 0.02)

    def maybe(self, value: Any, otherwise: Any = 0.0) -> Any:
        return value if self.coin() else otherwise

    def coin(self) -> bool:
        return bool(self.choices.random() < 0.5)

    def one_of(self, values: list[str]) -> str:
        return str(self.choices.choice(values))


def torch_settings(name: str, index: int) -> dict[str, Any]:
    """Arguments for `torch.optim` and `interop.torch`; a string for lr names a schedule."""
    draw = _Draw(f"torch {name}", index)
    settings: dict[str, Any] = {"lr": draw.rate(), "maximize": draw.coin()}
    if name == "muon":
        del settings["maximize"]
        settings |= {"weight_decay": draw.maybe(draw.decay_of_weights()), "momentum": draw.decay()}
        settings |= {"nesterov": draw.coin(), "ns_steps": 3 + 2 * draw.coin()}
        settings["adjust_lr_fn"] = draw.maybe("match_rms_adamw", draw.maybe("original", None))
        return settings
    if name == "asgd":
        settings["lr"] = draw.log(1e-3, 0.1)
        settings["weight_decay"] = draw.maybe(draw.decay_of_weights())
        settings |= {"lambd": draw.log(1e-4, 1.0), "alpha": draw.log(0.1, 1.0)}
        settings["t0"] = draw.maybe(draw.log(1.0, 100.0), 1e6)
        return settings
    if name == "adafactor":
        settings["weight_decay"] = draw.maybe(draw.decay_of_weights())
        settings["beta2_decay"] = -draw.log(0.1, 2.0)
        settings["eps"] = (draw.maybe(draw.log(1e-9, 1.0), None), draw.log(1e-4, 1.0))
        settings["d"] = 1.0 + draw.maybe(draw.log(1e-2, 1.0))
        return settings
    if name == "rprop":
        settings["lr"] = draw.log(1e-3, 1.0)
        settings["etas"] = (1.0 - draw.log(0.1, 0.9), 1.0 + draw.log(0.01, 0.5))
        settings["step_sizes"] = (draw.log(1e-6, 1e-2), draw.log(1e-2, 1.0))
        return settings
    settings["weight_decay"] = draw.maybe(draw.decay_of_weights())
    if name in ("adam", "adamw", "nadam", "adamax", "radam"):
        settings["betas"] = (draw.decay(), draw.decay(1e-4, 0.5))
    if name != "sgd":
        settings["eps"] = draw.log(1e-9, 1e-2)
    if name in ("adam", "adamw"):
        settings["amsgrad"] = draw.coin()
    if name in ("adam", "nadam", "radam"):
        settings["decoupled_weight_decay"] = draw.coin()
    if name == "sgd":
        momentum = draw.maybe(1.0 - draw.log(1e-2, 1.0))
        settings |= {"momentum": momentum, "dampening": draw.maybe(1.0 - draw.log(1e-2, 1.0))}
        settings["nesterov"] = draw.coin() and momentum > 0 and settings["dampening"] == 0
    elif name == "adagrad":
        settings["lr_decay"] = draw.maybe(draw.log(1e-3, 1.0))
        settings["initial_accumulator_value"] = draw.maybe(draw.log(1e-3, 1.0))
    elif name == "adadelta":
        settings["rho"] = draw.decay()
    elif name == "rmsprop":
        settings |= {"alpha": draw.decay(), "centered": draw.coin()}
        if settings["centered"]:
            settings["alpha"] = draw.slow_decay()
        settings["momentum"] = draw.maybe(1.0 - draw.log(1e-2, 1.0))
    elif name == "nadam":
        settings["momentum_decay"] = draw.maybe(draw.log(1e-3, 1.0), 4e-3)
    return settings


def keras_settings(name: str, index: int) -> dict[str, Any]:
    """Arguments for `keras.optimizers` and `interop.keras`; a string for a rate names a schedule."""
    draw = _Draw(f"keras {name}", index)
    settings: dict[str, Any] = {"learning_rate": draw.rate()}
    settings["weight_decay"] = draw.maybe(draw.decay_of_weights(), 0.0)
    clipping = draw.one_of(["clipnorm", "clipvalue", "global_clipnorm", "none"])
    if clipping != "none":
        settings[clipping] = draw.log(1e-2, 10.0)
    if name == "muon":
        settings |= {"adam_beta_1": draw.decay(), "adam_beta_2": draw.decay()}
        settings["adam_weight_decay"] = draw.maybe(draw.decay_of_weights(), 0.0)
        settings |= {"epsilon": draw.log(1e-9, 1e-2), "adam_lr_ratio": draw.log(0.1, 10.0)}
        settings |= {"momentum": draw.decay(), "nesterov": draw.coin()}
        settings |= {"ns_steps": 3 + 2 * draw.coin(), "muon_a": draw.maybe(3.0, 3.4445)}
        settings["rms_rate"] = draw.maybe(draw.log(1e-2, 1.0), None)
        return settings
    if name == "schedule_free_adamw":
        settings |= {"beta_1": 1.0 - draw.log(1e-2, 0.5), "beta_2": draw.decay()}
        settings |= {"epsilon": draw.log(1e-9, 1e-2), "warmup_steps": draw.maybe(20, 0)}
        return settings
    if name == "ftrl":
        if settings["learning_rate"] not in ("staircase",):  # Keras divides by it.
            settings["learning_rate"] = draw.log(1e-2, 1.0)
        settings["learning_rate_power"] = -draw.log(0.1, 1.0)
        settings["initial_accumulator_value"] = draw.log(1e-3, 1.0)
        for each in ("l1_regularization", "l2_regularization", "l2_shrinkage_regularization"):
            settings[f"{each}_strength"] = draw.maybe(draw.log(1e-3, 1.0))
        settings["beta"] = draw.maybe(draw.log(1e-2, 1.0))
        return settings
    if name == "adafactor":
        settings["beta_2_decay"] = -draw.log(0.1, 2.0)
        settings |= {"epsilon_1": draw.log(1e-30, 1e-2), "epsilon_2": draw.log(1e-4, 1.0)}
        settings |= {"clip_threshold": draw.log(0.1, 2.0), "relative_step": draw.coin()}
        return settings
    if name in ("adam", "adamw", "nadam", "adamax", "lion", "lamb"):
        settings |= {"beta_1": draw.decay(), "beta_2": draw.decay()}
    if name not in ("sgd", "lion"):
        settings["epsilon"] = draw.log(1e-9, 1e-2)
    if name in ("adam", "adamw"):
        settings["amsgrad"] = draw.coin()
    if name == "sgd":
        settings["momentum"] = draw.maybe(1.0 - draw.log(1e-2, 1.0))
        settings["nesterov"] = draw.coin()
    elif name == "adagrad":
        settings["initial_accumulator_value"] = draw.log(1e-3, 1.0)
    elif name == "adadelta":
        settings["rho"] = draw.decay()
    elif name == "rmsprop":
        settings |= {"rho": draw.decay(), "centered": draw.coin()}
        if settings["centered"]:
            settings["rho"] = draw.slow_decay()
        settings["momentum"] = draw.maybe(1.0 - draw.log(1e-2, 1.0))
    return settings


LIBRARIES = {
    "torch": (
        torch_settings,
        [
            "sgd",
            "adagrad",
            "adadelta",
            "rmsprop",
            "adam",
            "adamw",
            "nadam",
            "adamax",
            "radam",
            "rprop",
            "adafactor",
            "muon",
            "asgd",
        ],
    ),
    "keras": (
        keras_settings,
        [
            "sgd",
            "adagrad",
            "adadelta",
            "rmsprop",
            "adam",
            "adamw",
            "nadam",
            "adamax",
            "lion",
            "adafactor",
            "lamb",
            "muon",
            "ftrl",
            "schedule_free_adamw",
        ],
    ),
}
"""Of each library: what draws settings, and its optimizers."""

FEWER = {"rprop", "lion", "adafactor", "lamb", "ftrl", "muon", "asgd", "schedule_free_adamw"}
"""Of which some of the settings are tried: their steps are many operations, or have few choices."""


def recorded(name: str) -> range:
    """Which settings are replayed where the libraries are not installed.

    Ten settings in a row have their choices in common: these have none.
    """
    return range(0, 100, 30 if name in FEWER else 10)


def ours(library: str, name: str, settings: dict[str, Any], dtype: str) -> np.ndarray:
    """The trajectory under the port of this library's optimizer."""
    rate = "lr" if library == "torch" else "learning_rate"
    settings = dict(settings)
    settings[rate] = _AS_FUNCTIONS.get(settings[rate], settings[rate])
    gradients, params = problem(dtype)
    with jax.enable_x64(dtype == "float64"):
        tx = getattr(getattr(interop, library), name)(**settings)
        params = _split(library, name, params)
        state, trajectory = tx.init(params), []
        for gradient in gradients:
            updates, state = tx.update(_split(library, name, gradient), state, params)
            params = [p + np.asarray(u) for p, u in zip(params, updates, strict=True)]
            trajectory.append(_joined(params))
    return np.stack(trajectory)


def _split(library: str, name: str, array: Any) -> list[Any]:
    """Two arrays, so that the norm of one is not the norm of all: vectors, or a matrix where it matters."""
    if name == "adafactor" or (library, name) == ("keras", "muon"):
        return [array[:6].reshape(2, 3), array[6:]]
    if name == "muon":
        return [array[:6].reshape(2, 3), array[6:].reshape(3, 2)]
    return [array[:5], array[5:]]


def _joined(parts: Any) -> np.ndarray:
    return np.concatenate([np.ravel(part) for part in parts])


def theirs_in_torch(name: str, settings: dict[str, Any], dtype: str) -> np.ndarray:
    """The trajectory under `torch.optim`."""
    import torch

    classes = {each.lower(): each for each in dir(torch.optim)}
    gradients, params = problem(dtype)
    tensors = [torch.nn.Parameter(torch.tensor(part)) for part in _split("torch", name, params)]
    settings = dict(settings)
    schedule = SCHEDULES.get(settings["lr"])
    if schedule is not None:
        settings["lr"] = 0.0
    optimizer = getattr(torch.optim, classes[name])(tensors, **settings)
    trajectory = []
    with default_dtype(torch, dtype):
        for step, gradient in enumerate(gradients):
            if schedule is not None:
                optimizer.param_groups[0]["lr"] = float(schedule[step])
            for tensor, part in zip(tensors, _split("torch", name, gradient), strict=True):
                tensor.grad = torch.from_numpy(part.copy())
            optimizer.step()
            trajectory.append(_joined([tensor.detach().numpy() for tensor in tensors]))
    return np.stack(trajectory)


@contextlib.contextmanager
def default_dtype(torch: Any, dtype: str) -> Any:
    """The dtype that torch gives to step counts and to NAdam's product, whatever the parameters."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def theirs_in_keras(name: str, settings: list[dict[str, Any]], dtype: str) -> list[np.ndarray]:
    """The trajectories under `keras.optimizers` with its JAX backend, of many settings at once.

    Keras keeps hyperparameters outside of what is compiled, and its steps outside of `jit` take
    milliseconds each: so many optimizers go into one compiled loop.
    """
    import keras

    classes = {each.lower(): each for each in dir(keras.optimizers)}
    name, own = name.replace("_", ""), name
    gradients, params = problem(dtype)
    # A learning rate, and the product of Nadam, are variables of this dtype.
    keras.config.set_floatx(dtype)
    with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion("standard"):
        optimizers, first = [], []
        for each in settings:
            each = dict(each)
            if each["learning_rate"] in SCHEDULES:
                each["learning_rate"] = _keras_schedule(keras, each["learning_rate"], dtype)
            optimizer = getattr(keras.optimizers, classes[name])(**each)
            variables = [keras.Variable(part, dtype=dtype) for part in _split("keras", own, params)]
            optimizer.build(variables)
            optimizers.append(optimizer)
            first.append(([v.value for v in variables], [v.value for v in optimizer.variables]))

        def step(carry: Any, gradient: Any) -> Any:
            new = [
                optimizer.stateless_apply(state, _split("keras", own, gradient), params)
                for optimizer, (params, state) in zip(optimizers, carry, strict=True)
            ]
            new = jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype), new, carry)
            return new, [jnp.concatenate([jnp.ravel(p) for p in params]) for params, _ in new]

        with jax.numpy_rank_promotion("allow"):
            first = [tuple(each) for each in first]
            trajectories = jax.jit(lambda g: jax.lax.scan(step, first, g)[1])(
                jnp.asarray(gradients)
            )
    return [np.asarray(trajectory) for trajectory in trajectories]


def _keras_schedule(keras: Any, name: str, dtype: str) -> Any:
    class Table(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step: Any) -> Any:
            return jnp.asarray(SCHEDULES[name], dtype)[jnp.asarray(step.value)]

        def get_config(self) -> dict[str, Any]:
            return {}

    return Table()


def tolerance(library: str, settings: dict[str, Any], dtype: str) -> float:
    """The largest error allowed.

    Keras takes 1 - βᵗ of numbers in the variables' dtype. In float32 that is wrong by 2^-24/(1-β) in
    the first step, 6e-5 for 0.999: by so much the step is wrong for β₁, and by half of it for β₂.
    Nothing else in Keras is less precise than its variables, if `keras.config.floatx` is their dtype:
    otherwise the learning rate is, and the means in Adafactor and the norm in Muon, which are float32's in
    any case.
    """
    if "adjust_lr_fn" in settings:
        return 0.1  # PyTorch's Muon computes in bfloat16, five times one after the other.
    if library == "keras" and dtype == "float64" and {"beta_2_decay", "rms_rate"} & set(settings):
        return 1e-6
    if library == "keras" and dtype == "float32":
        b1, b2 = (
            settings.get(f"adam_{name}", settings.get(name, 0.0)) for name in ("beta_1", "beta_2")
        )
        own = [2.0**-24 / (1 - b1), 2.0**-25 / (1 - b2)]
        return max(TOLERANCE[dtype], *own)
    return TOLERANCE[dtype]


def error(actual: np.ndarray, expected: np.ndarray, first: np.ndarray) -> float:
    """The largest relative error of a trajectory.

    In float64, an element's error is measured against how far it has moved, or a ten-thousandth of
    its size if that is more: a wrong step is not hidden behind a large parameter. In float32 the
    parameter's own rounding would then show, so it is measured against the largest size that the
    parameter has had.
    """
    size = np.abs(expected).max(axis=0)
    if expected.dtype == np.float64:
        size = np.maximum(np.abs(expected - first).max(axis=0), 1e-4 * size)
    difference = np.abs(actual.astype(np.float64) - expected).max(axis=0)
    return float(np.max(np.where(difference == 0, 0, difference / np.maximum(size, 1e-30))))
