"""Every optimizer, in every variant, against the papers' formulas in reference/, step by step.

How the error is measured. Library and reference get the same gradients, rounded to the dtype under
test, and in every step the same parameters, those of the reference. Of each element of each update,

    error = |library - reference| / size

where size is what the update would have been had no two terms of it cancelled: the same formula for
the gradients |g|, plus ηλ|θ| for weight decay. An average of gradients of both signs may come out
near zero; no arithmetic gets many digits of such a difference right, but it can be right compared
with its terms. An element is never measured against another element, nor a step against another
step: being wrong for small gradients alone, or in the first step alone, shows. Where size is 0 the
update must be exactly 0.

Centered RMSprop subtracts under the root too: see `condition_of_variance`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import CATALOGUE, OF_ALL_ARRAYS, OF_WHOLE_ARRAYS, SETTINGS, extra_args_of

import adaptive_jax as aj
from tests import reference
from tests.departures import OTHERWISE_IN_OPTAX

# The largest error allowed, as defined above: 9000 roundings to nearest in float64, 34 in float32.
# A moving average collects one or two of them, of either sign, in each of the 200 steps.
TOLERANCE = {"float64": 1e-12, "float32": 2e-6, "complex64": 2e-6}

STEPS = 200
ELEMENTS = 48


class Schedule:
    """A hyperparameter that changes: a schedule for the library, a sequence for the reference.

    The values are numbers of float32, so that both see the same ones in every dtype.
    """

    def __init__(self, function: Callable[[np.ndarray], np.ndarray]):
        self.values = function(np.arange(STEPS)).astype(np.float32).astype(np.float64)

    def __call__(self, count):
        return jnp.asarray(self.values)[count]

    def __repr__(self):
        return f"Schedule from {self.values[0]:.3g}"


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A factory with settings, the formula that it promises, and optax's counterpart if any."""

    name: str
    factory: Callable[..., optax.GradientTransformation]
    formula: Callable[..., np.ndarray]
    optax: Callable[..., optax.GradientTransformation] | None
    settings: dict[str, Any]

    def expected(self, gradients: np.ndarray, params: np.ndarray, **changes: Any) -> np.ndarray:
        """The reference's updates, with some settings changed."""
        return self.formula(gradients, params, **(self.values | changes))

    @property
    def values(self) -> dict[str, Any]:
        """The settings, as the reference takes them."""
        return {
            name: value.values if isinstance(value, Schedule) else value
            for name, value in self.settings.items()
        }

    def per_step(self, name: str, steps: int) -> np.ndarray:
        """A setting in each step, by default the reference's default, 1 if that is None."""
        value = self.settings.get(name, inspect.signature(self.formula).parameters[name].default)
        value = value.values if isinstance(value, Schedule) else value
        value = 1.0 if value is None else value
        return np.broadcast_to(np.asarray(value), steps)[:, None]


warmup_and_decay = Schedule(lambda count: 0.1 * np.minimum((count + 1) / 20, 0.99**count))
rising = Schedule(lambda count: 0.95 - 0.45 * 0.97**count)
falling = Schedule(lambda count: 0.3 / (count + 1))
# Zero in the first step, as in Adafactor.
from_zero = Schedule(lambda count: 1 - (count + 1.0) ** -0.8)


def case(name, factory, formula, optax_factory=None, /, **settings) -> Case:
    return Case(name, factory, formula, optax_factory, {"learning_rate": 0.1} | settings)


def arguments(library: Any, name: str) -> Any:
    """The names of a function's arguments, none if the library has no such function."""
    return inspect.signature(getattr(library, name, lambda: None)).parameters


# The settings make each option matter: with eps = 1e-3 some gradients lie above it and some below.
CASES = [
    case("sgd", aj.sgd, reference.sgd, optax.sgd),
    case("sgd scheduled", aj.sgd, reference.sgd, optax.sgd, learning_rate=warmup_and_decay),
    case("sgd momentum", aj.sgd, reference.sgd, optax.sgd, momentum=0.9),
    case("sgd nesterov", aj.sgd, reference.sgd, optax.sgd, momentum=0.9, nesterov=True),
    case(
        "sgd momentum scheduled", aj.sgd, reference.sgd, optax.sgd,
        learning_rate=warmup_and_decay, momentum=0.9,
    ),
    case("sgd momentum rising", aj.sgd, reference.sgd, momentum=rising),
    case("sgd moving average", aj.sgd, reference.sgd, momentum=0.9, dampening=0.9),
    case("sgd dampening", aj.sgd, reference.sgd, momentum=0.8, dampening=0.3),
    case(
        "sgd dampening but for the first step", aj.sgd, reference.sgd,
        momentum=0.8, dampening=0.3, dampen_first=False,
    ),
    case(
        "sgd moving average nesterov", aj.sgd, reference.sgd,
        momentum=0.9, dampening=0.9, nesterov=True,
    ),
    case(
        "sgd velocity of steps", aj.sgd, reference.sgd,
        momentum=0.9, velocity="steps", learning_rate=warmup_and_decay,
    ),
    case(
        "sgd velocity of steps nesterov", aj.sgd, reference.sgd,
        momentum=0.9, velocity="steps", nesterov=True, learning_rate=warmup_and_decay,
    ),
    case(
        "sgd velocity of steps dampening", aj.sgd, reference.sgd,
        momentum=0.9, velocity="steps", dampening=0.5, learning_rate=warmup_and_decay,
    ),
    case("sgd weight decay", aj.sgd, reference.sgd, weight_decay=0.3),
    case("sgd momentum weight decay", aj.sgd, reference.sgd, momentum=0.9, weight_decay=0.3),
    case(
        "sgd nesterov weight decay scheduled", aj.sgd, reference.sgd,
        momentum=0.9, nesterov=True, weight_decay=falling, learning_rate=warmup_and_decay,
    ),
    case(
        "sgd velocity of steps weight decay", aj.sgd, reference.sgd,
        momentum=0.9, velocity="steps", weight_decay=0.3, learning_rate=warmup_and_decay,
    ),
    #
    case("adagrad", aj.adagrad, reference.adagrad, optax.adagrad),
    case("adagrad eps inside", aj.adagrad, reference.adagrad, optax.adagrad, eps=1e-3),
    case("adagrad eps outside", aj.adagrad, reference.adagrad, eps=1e-3, eps_in_sqrt=False),
    case(
        "adagrad from zero", aj.adagrad, reference.adagrad, optax.adagrad,
        initial_accumulator_value=0.0, eps=1e-6,
    ),
    case(
        "adagrad from zero eps outside", aj.adagrad, reference.adagrad,
        initial_accumulator_value=0.0, eps=1e-10, eps_in_sqrt=False,
    ),
    case("adagrad weight decay", aj.adagrad, reference.adagrad, weight_decay=0.3),
    case(
        "adagrad scheduled", aj.adagrad, reference.adagrad, optax.adagrad,
        learning_rate=warmup_and_decay,
    ),
    #
    case("adadelta", aj.adadelta, reference.adadelta, optax.adadelta, learning_rate=1.0),
    case("adadelta no rate", aj.adadelta, reference.adadelta, learning_rate=None, eps=1e-5),
    case("adadelta rho", aj.adadelta, reference.adadelta, optax.adadelta, rho=0.95, eps=1e-3),
    case("adadelta weight decay", aj.adadelta, reference.adadelta, weight_decay=0.3),
    case(
        "adadelta scheduled", aj.adadelta, reference.adadelta, optax.adadelta,
        learning_rate=warmup_and_decay,
    ),
    #
    case("rmsprop", aj.rmsprop, reference.rmsprop, optax.rmsprop),
    case("rmsprop eps inside", aj.rmsprop, reference.rmsprop, optax.rmsprop, eps=1e-3, decay=0.99),
    case(
        "rmsprop eps outside", aj.rmsprop, reference.rmsprop, optax.rmsprop,
        eps=1e-3, decay=0.99, eps_in_sqrt=False,
    ),
    case("rmsprop initial scale", aj.rmsprop, reference.rmsprop, optax.rmsprop, initial_scale=0.5),
    case(
        "rmsprop bias correction", aj.rmsprop, reference.rmsprop, optax.rmsprop,
        decay=0.999, bias_correction=True,
    ),
    case(
        "rmsprop bias correction eps outside", aj.rmsprop, reference.rmsprop, optax.rmsprop,
        decay=0.999, bias_correction=True, eps_in_sqrt=False, eps=1e-3,
    ),
    case(
        "rmsprop bias correction initial scale", aj.rmsprop, reference.rmsprop, optax.rmsprop,
        decay=0.99, bias_correction=True, initial_scale=0.5,
    ),
    case(
        "rmsprop scheduled decay", aj.rmsprop, reference.rmsprop,
        decay=from_zero, bias_correction=True,
    ),
    case("rmsprop momentum", aj.rmsprop, reference.rmsprop, optax.rmsprop, momentum=0.9),
    case(
        "rmsprop momentum before the rate", aj.rmsprop, reference.rmsprop,
        momentum=0.9, velocity="gradients", learning_rate=warmup_and_decay,
    ),
    case(
        "rmsprop momentum after the rate", aj.rmsprop, reference.rmsprop, optax.rmsprop,
        momentum=0.9, velocity="steps", learning_rate=warmup_and_decay,
    ),
    case(
        "rmsprop nesterov", aj.rmsprop, reference.rmsprop, optax.rmsprop,
        momentum=0.9, nesterov=True, learning_rate=warmup_and_decay,
    ),
    case(
        "rmsprop nesterov before the rate", aj.rmsprop, reference.rmsprop,
        momentum=0.9, nesterov=True, velocity="gradients", learning_rate=warmup_and_decay,
    ),
    case(
        "rmsprop scheduled", aj.rmsprop, reference.rmsprop, optax.rmsprop,
        learning_rate=warmup_and_decay,
    ),
    case("rmsprop weight decay", aj.rmsprop, reference.rmsprop, weight_decay=0.3),
    case(
        "rmsprop momentum weight decay", aj.rmsprop, reference.rmsprop,
        momentum=0.9, weight_decay=0.3,
    ),
    case(
        "rmsprop momentum before the rate weight decay", aj.rmsprop, reference.rmsprop,
        momentum=0.9, velocity="gradients", weight_decay=0.3, learning_rate=warmup_and_decay,
    ),
    case("rmsprop centered", aj.rmsprop, reference.rmsprop, optax.rmsprop, centered=True),
    case(
        "rmsprop centered eps inside", aj.rmsprop, reference.rmsprop, optax.rmsprop,
        centered=True, eps=1e-3,
    ),
    case(
        "rmsprop centered eps outside", aj.rmsprop, reference.rmsprop, optax.rmsprop,
        centered=True, eps=1e-3, eps_in_sqrt=False,
    ),
    case(
        "rmsprop centered bias correction", aj.rmsprop, reference.rmsprop, optax.rmsprop,
        centered=True, bias_correction=True, eps=1e-3, decay=0.99,
    ),
    case(
        "rmsprop centered initial scale", aj.rmsprop, reference.rmsprop, optax.rmsprop,
        centered=True, initial_scale=0.5,
    ),
    case(
        "rmsprop centered momentum", aj.rmsprop, reference.rmsprop, optax.rmsprop,
        centered=True, momentum=0.9,
    ),
    case(
        "rmsprop centered nesterov weight decay", aj.rmsprop, reference.rmsprop,
        centered=True, momentum=0.9, nesterov=True, velocity="gradients", weight_decay=0.3,
    ),
    #
    case("adam", aj.adam, reference.adam, optax.adam),
    case("adam rates", aj.adam, reference.adam, optax.adam, b1=0.5, b2=0.9, eps=1e-3),
    case("adam b1 zero", aj.adam, reference.adam, optax.adam, b1=0.0),
    case("adam b2 near one", aj.adam, reference.adam, b2=0.9999),
    case("adam eps root", aj.adam, reference.adam, optax.adam, eps=0.0, eps_root=1e-3),
    case("adam eps and eps root", aj.adam, reference.adam, optax.adam, eps=1e-3, eps_root=1e-3),
    case("adam no bias correction", aj.adam, reference.adam, bias_correction=False),
    case(
        "adam no bias correction eps root", aj.adam, reference.adam,
        bias_correction=False, eps=0.0, eps_root=1e-3,
    ),
    case("adam eps hat", aj.adam, reference.adam, eps_hat=True, eps=1e-3),
    case("adam eps hat eps root", aj.adam, reference.adam, eps_hat=True, eps=1e-3, eps_root=1e-6),
    case("adam nesterov", aj.adam, reference.adam, optax.adam, nesterov=True),
    case(
        "adam nesterov no bias correction", aj.adam, reference.adam,
        nesterov=True, bias_correction=False,
    ),
    case("adam nesterov eps hat", aj.adam, reference.adam, nesterov=True, eps_hat=True, eps=1e-3),
    case("adam weight decay", aj.adam, reference.adam, weight_decay=0.3),
    case("adam scheduled", aj.adam, reference.adam, optax.adam, learning_rate=warmup_and_decay),
    case("adam scheduled b1", aj.adam, reference.adam, b1=rising),
    case("adam scheduled b2", aj.adam, reference.adam, b2=rising),
    case("adam scheduled b2 from zero", aj.adam, reference.adam, b2=from_zero),
    case(
        "adam all scheduled", aj.adam, reference.adam,
        learning_rate=warmup_and_decay, b1=rising, b2=from_zero,
    ),
    case(
        "adam scheduled b1 no bias correction", aj.adam, reference.adam,
        b1=rising, bias_correction=False,
    ),
    #
    case("adamw", aj.adamw, reference.adamw, optax.adamw),
    case("adamw weight decay", aj.adamw, reference.adamw, optax.adamw, weight_decay=0.3),
    case(
        "adamw scheduled", aj.adamw, reference.adamw, optax.adamw,
        weight_decay=0.3, learning_rate=warmup_and_decay,
    ),
    case(
        "adamw scheduled weight decay", aj.adamw, reference.adamw, optax.adamw,
        weight_decay=falling,
    ),
    case(
        "adamw nesterov", aj.adamw, reference.adamw, optax.adamw,
        weight_decay=0.3, nesterov=True,
    ),
    case(
        "adamw eps root", aj.adamw, reference.adamw, optax.adamw,
        weight_decay=0.3, eps_root=1e-3,
    ),
    case("adamw eps hat", aj.adamw, reference.adamw, weight_decay=0.3, eps_hat=True, eps=1e-3),
    case(
        "adamw no bias correction", aj.adamw, reference.adamw,
        weight_decay=0.3, bias_correction=False,
    ),
    #
    case("nadam", aj.nadam, reference.nadam, optax.nadam),
    case("nadam rates", aj.nadam, reference.nadam, optax.nadam, b1=0.5, b2=0.9, eps=1e-3),
    case(
        "nadam scheduled", aj.nadam, reference.nadam, optax.nadam,
        learning_rate=warmup_and_decay,
    ),
    case("nadam scheduled b1", aj.nadam, reference.nadam, b1=rising),
    case("nadam weight decay", aj.nadam, reference.nadam, weight_decay=0.3),
    case(
        "nadam momentum decay", aj.nadam, reference.nadam_with_schedule,
        momentum_decay=1 / 250,
    ),
    case(
        "nadam momentum decay eps hat", aj.nadam, reference.nadam_with_schedule,
        momentum_decay=1.0, eps_hat=True, eps=1e-3, weight_decay=0.3,
    ),
    case("nadamw", aj.nadamw, reference.nadamw, optax.nadamw),
    case("nadamw weight decay", aj.nadamw, reference.nadamw, optax.nadamw, weight_decay=0.3),
    case(
        "nadamw scheduled", aj.nadamw, reference.nadamw, optax.nadamw,
        weight_decay=0.3, learning_rate=warmup_and_decay,
    ),
    #
    case("amsgrad", aj.amsgrad, reference.amsgrad, optax.amsgrad),
    case("amsgrad rates", aj.amsgrad, reference.amsgrad, optax.amsgrad, b1=0.5, b2=0.9, eps=1e-3),
    case(
        "amsgrad eps root", aj.amsgrad, reference.amsgrad, optax.amsgrad,
        eps=0.0, eps_root=1e-3, b2=0.9,
    ),
    case("amsgrad raw", aj.amsgrad, reference.amsgrad, maximum_of="raw", b2=0.9),
    case("amsgrad raw b2", aj.amsgrad, reference.amsgrad, maximum_of="raw"),
    case(
        "amsgrad of the paper", aj.amsgrad, reference.amsgrad, optax.amsgrad,
        bias_correction_mu=False, bias_correction_nu=False,
    ),
    case(
        "amsgrad only nu corrected", aj.amsgrad, reference.amsgrad, optax.amsgrad,
        bias_correction_mu=False,
    ),
    case(
        "amsgrad only mu corrected", aj.amsgrad, reference.amsgrad, optax.amsgrad,
        bias_correction_nu=False,
    ),
    case(
        "amsgrad raw only nu corrected", aj.amsgrad, reference.amsgrad,
        maximum_of="raw", bias_correction_mu=False,
    ),
    case(
        "amsgrad raw eps hat", aj.amsgrad, reference.amsgrad,
        maximum_of="raw", eps_hat=True, eps=1e-3,
    ),
    case("amsgrad weight decay", aj.amsgrad, reference.amsgrad, weight_decay=0.3),
    case(
        "amsgrad scheduled", aj.amsgrad, reference.amsgrad, optax.amsgrad,
        learning_rate=warmup_and_decay,
    ),
    case("amsgrad scheduled b1", aj.amsgrad, reference.amsgrad, b1=rising),
    #
    case("adamax", aj.adamax, reference.adamax, optax.adamax),
    case("adamax rates", aj.adamax, reference.adamax, optax.adamax, b1=0.5, b2=0.9, eps=1e-3),
    case("adamax weight decay", aj.adamax, reference.adamax, optax.adamaxw, weight_decay=0.3),
    case(
        "adamax scheduled", aj.adamax, reference.adamax, optax.adamax,
        learning_rate=warmup_and_decay,
    ),
    case("adamax scheduled b1", aj.adamax, reference.adamax, b1=rising),
    case("adamax eps outside", aj.adamax, reference.adamax, eps=1e-3, eps_in_max=False),
    #
    # optax's own ρ(t) has no 12 digits unless b2 is far from 1.
    case("radam", aj.radam, reference.radam),
    case("radam b2", aj.radam, reference.radam, optax.radam, b2=0.9, eps=1e-3),
    case("radam short", aj.radam, reference.radam, optax.radam, b2=0.5),
    case("radam threshold", aj.radam, reference.radam, optax.radam, b2=0.9, threshold=4.0),
    case("radam nesterov", aj.radam, reference.radam, optax.radam, b2=0.9, nesterov=True),
    case("radam eps hat", aj.radam, reference.radam, eps_hat=True, eps=1e-3),
    case(
        "radam scheduled", aj.radam, reference.radam, optax.radam,
        b2=0.9, learning_rate=warmup_and_decay,
    ),
    case("radam weight decay", aj.radam, reference.radam, weight_decay=0.3),
    #
    # Its learning rate is where the step sizes start, and takes no schedule.
    case("rprop", aj.rprop, reference.rprop),
    case("rprop limits", aj.rprop, reference.rprop, eta_plus=1.5, max_step_size=1.0),
    case("rprop weight decay", aj.rprop, reference.rprop, weight_decay=0.3),
]  # fmt: skip

TABLE = {case.name for case in CASES}

CASES += [
    case(
        f"{name} {settings}", algorithm.factory, getattr(reference, name),
        getattr(optax, name, None)
        if set(settings) <= {*arguments(optax, name)} and name not in OTHERWISE_IN_OPTAX else None,
        **settings,
    )
    for name, algorithm in CATALOGUE.items()
    if algorithm.whole
    and not algorithm.rule.matrix
    and name not in OF_ALL_ARRAYS | OF_WHOLE_ARRAYS | {case.name.partition(" ")[0] for case in CASES}
    for settings in [
        {}, {"weight_decay": 0.3, "learning_rate": warmup_and_decay}, *SETTINGS.get(name, []),
    ]
]  # fmt: skip
"""What has no cases above comes by itself: its defaults, and what the catalogue has beyond them.

Rules that see matrices are in test_matrix_reference.
"""

SLOW_AVERAGES = [
    case("sgd moving average", aj.sgd, reference.sgd, momentum=0.999, dampening=0.999),
    case("adam", aj.adam, reference.adam, b1=0.999, b2=0.999999),
    case("adam eps hat", aj.adam, reference.adam, b1=0.999, b2=0.999999, eps_hat=True),
    case("nadam", aj.nadam, reference.nadam, b1=0.9999, b2=0.999999),
    case("amsgrad", aj.amsgrad, reference.amsgrad, b2=0.999999),
    case("amsgrad raw", aj.amsgrad, reference.amsgrad, b2=0.999999, maximum_of="raw"),
    case("adamax", aj.adamax, reference.adamax, b1=0.999999),
    case("radam", aj.radam, reference.radam, b2=0.999999),
    case("rmsprop", aj.rmsprop, reference.rmsprop, decay=0.999999, bias_correction=True),
]

COMPLEX = {
    "sgd", "sgd nesterov", "sgd velocity of steps weight decay",
    "adagrad eps inside", "adagrad eps outside",
    "adadelta", "adadelta weight decay",
    "rmsprop eps outside", "rmsprop centered eps inside", "rmsprop momentum",
    "adam", "adam eps root", "adamw weight decay", "nadam",
    "amsgrad", "amsgrad raw",
}  # fmt: skip
COMPLEX |= {
    f"{name} {{}}"
    for name, algorithm in CATALOGUE.items()
    if algorithm.rule.takes_complex and f"{name} {{}}" in {case.name for case in CASES}
}

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def problem(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of all steps and the first parameters: numbers of dtype, in twice the bits.

    Each element has a scale of its own between 1e-4 and 1e2, which drifts by two decades within
    these bounds, and a mean between none and twice its noise. A tenth of all gradients are exactly
    zero; the last elements begin with zeros, end with zeros, or see nothing else.
    """
    rng = np.random.default_rng(2015)

    def normal(*shape):
        real = rng.standard_normal(shape)
        return real + 1j * rng.standard_normal(shape) if dtype == "complex64" else real

    step = np.arange(STEPS)[:, None]
    drift = np.sin(2 * np.pi * (step / rng.uniform(40, 400, ELEMENTS) + rng.random(ELEMENTS)))
    scale = 10 ** np.clip(rng.uniform(-4, 2, ELEMENTS) + drift, -4, 2)
    mean = rng.uniform(0, 2, ELEMENTS) * np.exp(1j * np.angle(normal(ELEMENTS)))
    mean = mean if dtype == "complex64" else mean.real
    gradients = scale * (mean + normal(STEPS, ELEMENTS))
    gradients[rng.random(gradients.shape) < 0.1] = 0
    gradients[:20, -6:-4] = 0
    # No longer: what nothing feeds is 0.9^k of its past, and 0.9 in float32 is wrong by 3e-8.
    gradients[170:, -4:-2] = 0
    gradients[:, -2:] = 0
    params = normal(ELEMENTS)
    # To the precision under test and back.
    wide = gradients.dtype
    return gradients.astype(dtype).astype(wide), params.astype(dtype).astype(wide)


def trajectory(params: np.ndarray, updates: np.ndarray) -> np.ndarray:
    """The parameters that each step sees: every update is added to what the earlier ones made."""
    return np.cumsum(np.concatenate([params[None], updates[:-1]]), axis=0)


def step_by_step(tx: optax.GradientTransformation, gradients, params) -> np.ndarray:
    """The updates of all steps: with other hyperparameters nothing is compiled again."""
    state, all_updates = tx.init(params[0]), []
    for gradient, param in zip(gradients, params, strict=True):
        updates, state = tx.update(gradient, state, param, **extra_args_of(tx, gradient))
        all_updates.append(updates)
    return np.stack(all_updates)


def in_one_program(tx: optax.GradientTransformation, gradients, params) -> np.ndarray:
    """The updates of all steps, the hyperparameters being constants of a program."""

    @jax.jit
    def run(gradients, params):
        def step(state, inputs):
            updates, state = tx.update(inputs[0], state, inputs[1], **extra_args_of(tx, inputs[0]))
            return state, updates

        return jax.lax.scan(step, tx.init(params[0]), (gradients, params))[1]

    return np.asarray(run(gradients, params))


def condition_of_variance(case: Case, gradients: np.ndarray) -> np.ndarray:
    """By how much centered RMSprop magnifies rounding errors, in every step.

    A relative error of ν and |μ|² becomes one of the variance that is (ν + |μ|²)/(ν - |μ|²) times
    as large, in any arithmetic. The ε added to the variance, or the square of the one added to its
    root, bounds that. It is below 30 where gradients vary, and huge for the first gradient that a
    bias-corrected variance sees: that variance is 0.
    """
    steps = len(gradients)
    decay, eps = case.per_step("decay", steps), case.per_step("eps", steps)
    mu, nu, weight = np.zeros_like(gradients[0]), case.per_step("initial_scale", steps)[0], 0.0
    conditions = []
    for g, b, e in zip(gradients, decay, eps, strict=True):
        mu, nu, weight = b * mu + (1 - b) * g, b * nu + (1 - b) * np.abs(g) ** 2, b * weight + 1 - b
        correction = weight if case.settings.get("bias_correction") else 1.0
        mean_squared = np.abs(mu / correction) ** 2
        variance = np.maximum(nu / correction - mean_squared, 0.0)
        floor = e if case.settings.get("eps_in_sqrt", True) else e**2
        conditions.append(1 + (nu / correction + mean_squared) / (variance + floor))
    return np.stack(conditions)


def size_of_updates(case: Case, gradients: np.ndarray, params: np.ndarray) -> np.ndarray:
    """The size of each update if none of its terms cancelled, times the condition of a variance.

    Where that is not the formula of |g|, the reference's file has it: as size_of_adan is of adan.
    """
    own = getattr(reference, f"size_of_{case.name.partition(' ')[0]}", None)
    if own is not None:
        return own(gradients, params, **case.values)
    nothing = np.zeros(gradients.shape[1:])
    if case.settings.get("centered"):
        directions = case.expected(
            gradients, np.zeros_like(params[0]), weight_decay=0.0, momentum=None
        )
        size = np.abs(directions) * condition_of_variance(case, gradients)
        if "momentum" in case.settings:
            # A constant learning rate may as well stand before the momentum.
            assert not isinstance(case.settings["learning_rate"], Schedule)
            momentum = {name: case.settings.get(name, False) for name in ("momentum", "nesterov")}
            size = np.abs(reference.sgd(size, nothing, 1.0, **momentum))
    else:
        # What is clipped is as wrong as it was before.
        clips = "clip_threshold" in inspect.signature(case.formula).parameters
        unclipped = {"clip_threshold": np.inf} if clips else {}
        size = np.abs(case.expected(np.abs(gradients), nothing, weight_decay=0.0, **unclipped))
    steps = len(gradients)
    decay = case.per_step("learning_rate", steps) * case.per_step("weight_decay", steps)
    return size + decay * np.abs(params)


def assert_close(
    actual: np.ndarray, expected: np.ndarray, size: np.ndarray, tolerance: float
) -> None:
    """Every element of every step: |actual - expected| <= tolerance · size."""
    assert np.isfinite(actual).all()
    difference = np.abs(actual - expected)
    # Nothing over nothing is no error.
    error = np.divide(difference, size, out=np.where(difference > 0, np.inf, 0.0), where=size > 0)
    step, element = np.unravel_index(np.argmax(error), error.shape)
    assert error.max() <= tolerance, (
        f"error {error.max():.3g} > {tolerance:.0e} in step {step + 1}, element {element}: "
        f"{actual[step, element]} instead of {expected[step, element]}"
    )


def check(
    case: Case,
    factory: Callable[..., optax.GradientTransformation],
    dtype: str,
    steps: int = STEPS,
    updates_of: Callable[..., np.ndarray] = step_by_step,
) -> None:
    gradients, params, expected, size = solved(case, dtype, steps)
    with jax.enable_x64(dtype == "float64"):
        tx = factory(**case.settings)
        actual = updates_of(tx, gradients.astype(dtype), params.astype(dtype))
    assert actual.dtype == dtype
    assert_close(actual, expected, size, TOLERANCE[dtype])


@functools.cache
def solved(case: Case, dtype: str, steps: int = STEPS) -> tuple[np.ndarray, ...]:
    """The gradients, the parameters and the reference's updates of each step, and the latter's sizes."""
    gradients, first_params = problem(dtype)
    gradients = gradients[:steps]
    expected = case.expected(gradients, first_params)
    params = trajectory(first_params, expected)
    params = params.astype(dtype).astype(params.dtype)
    return gradients, params, expected, size_of_updates(case, gradients, params)


def is_first(case: Case) -> bool:
    """Whether it is the first of its optimizer."""
    return case is next(each for each in CASES if each.factory is case.factory)


def in_default_run(cases: list[Case], is_default: Callable[[Case], bool]) -> Any:
    """The cases, and which of them are in the default run."""
    slow = [[] if is_default(case) else [pytest.mark.slow] for case in cases]
    marked = [
        pytest.param(case, marks=each, id=case.name) for case, each in zip(cases, slow, strict=True)
    ]
    return pytest.mark.parametrize("case", marked)


@every_case
def test_follows_the_paper(case):
    check(case, case.factory, "float64")


@pytest.mark.parametrize("case", [*filter(is_first, CASES)], ids=lambda case: case.name)
def test_follows_the_paper_in_float32(case):
    check(case, case.factory, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("case", [*filter(is_first, CASES)], ids=lambda case: case.name)
def test_follows_the_paper_in_float32_as_one_program(case):
    check(case, case.factory, "float32", updates_of=in_one_program)


@in_default_run([case for case in CASES if case.name in COMPLEX], lambda case: case.name in TABLE)
def test_follows_the_paper_with_complex_gradients(case):
    check(case, case.factory, "complex64")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", SLOW_AVERAGES, ids=lambda case: case.name)
def test_first_steps_of_slow_averages(case, dtype):
    """Taken in float32, 1 - b is wrong by 1e-5 for 0.999 and by 1e-2 for 0.999999.

    Only 20 steps: where gradients are much smaller than their average, every step takes the same
    few units in the last place from it, and the rounding of these adds up over the steps.
    """
    check(case, case.factory, dtype, steps=20)


OF_NORMS = (aj.fromage, aj.mars, aj.novograd)
"""Those to which the size of an element matters by its share in the norm of its array."""


def bounds_gradients(tx: optax.GradientTransformation) -> bool:
    """Whether 2^100 and then -2^80 are to an optimizer what 2^62 and then -2^62 are.

    Of gradients in the place of estimates there is nothing to say.
    """
    params = np.zeros((2, ELEMENTS), np.float32)
    if extra_args_of(tx, params[0]):
        return False

    def second_update(first, second):
        return step_by_step(tx, params + np.float32([[first], [second]]), params)[1, 0]

    return second_update(2.0**100, -(2.0**80)) == second_update(2.0**62, -(2.0**62))


def defaults_of(factory) -> dict[str, Any]:
    """The default of each argument."""
    return {name: p.default for name, p in inspect.signature(factory).parameters.items()}


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in CASES
        if case.factory not in OF_NORMS
        and not case.per_step("weight_decay", STEPS).any()
        and not any(isinstance(value, Schedule) for value in case.settings.values())
    ],
    ids=lambda case: case.name,
)
def test_follows_the_paper_for_gradients_of_any_size(case):
    """Of 2^k·g for all k: what an ε makes of it, and of no ε, the direction of g.

    In float32 a larger number than 2^62 counts as 2^62, for the sake of its square. Without ε, the smallest
    denominator is 2^-53, which is one rounding of 2^-41.
    """
    tx = case.factory(**case.settings)
    if not bounds_gradients(tx):
        pytest.skip("it is linear in the gradient, or sees its sign alone")
    exponents = [-20, 0, 20, 40, 50]
    if case.factory not in (aj.adagrad, aj.sm3):  # Sums of squares end at nine of the largest.
        exponents += [60, 80, 110]
    if case.settings.get("eps", defaults_of(case.factory).get("eps")) != 0:
        exponents = [-80, -60, -40, *exponents]
        if case.factory not in (aj.adan, aj.ademamix):  # Of less, (1-β)g is subnormal.
            exponents = [-100, *exponents]
    for exponent in exponents:
        gradients = np.ldexp(problem("float32")[0][:20], exponent)
        params = np.zeros_like(gradients)
        bounded = np.clip(gradients, -(2.0**62), 2.0**62)
        expected = case.expected(bounded, params[0])
        size = size_of_updates(case, bounded, params)
        actual = step_by_step(tx, gradients.astype("float32"), params.astype("float32"))
        assert_close(actual, expected, size, TOLERANCE["float32"])


@in_default_run([case for case in CASES if case.optax], is_first)
def test_reference_agrees_with_optax(case):
    """The reference against an implementation that is not ours, wherever optax has the variant."""
    settings = dict(case.settings)
    settings.pop("velocity", None)  # optax's own order is the one in the table.
    # optax multiplies floats by integers, which strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"):
        case = dataclasses.replace(case, settings=settings)
        check(case, case.optax, "float64", updates_of=in_one_program)


def test_no_two_cases_are_the_same():
    """Each setting in the table makes a difference: a factory that ignores one is caught."""
    *_, updates, sizes = zip(*(solved(case, "float64") for case in CASES), strict=True)
    for one, other in itertools.combinations(range(len(CASES)), 2):
        if CASES[one].factory is CASES[other].factory:
            difference = np.abs(updates[one] - updates[other])
            names = CASES[one].name, CASES[other].name
            assert (difference > 1e-3 * np.minimum(sizes[one], sizes[other])).any(), names


def test_every_complex_case_exists():
    assert {case.name for case in CASES} >= COMPLEX
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.settings.get("centered")], ids=lambda case: case.name
)
def test_variance_is_well_conditioned_in_most_steps(case):
    """The condition excuses few steps: the comparison is strict in the others."""
    gradients, _ = problem("float32")
    assert np.mean(condition_of_variance(case, gradients) < 30) > 0.9
