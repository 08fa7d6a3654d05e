"""Everything exported that makes a transformation, with the settings under which it is tested.

Every property test walks this table, and `test_catalogue.py` fails if an export is missing from it.
"""

from __future__ import annotations

import inspect
from typing import Any

import optax

import adaptive_jax as aj

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "sgd": [
        {"learning_rate": 0.1},
        {"learning_rate": 0.1, "momentum": 0.9},
        {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        {"learning_rate": 0.1, "momentum": 0.9, "dampening": 0.9},
        {"learning_rate": 0.1, "momentum": 0.9, "dampening": 0.5, "dampen_first": False},
        {
            "learning_rate": optax.linear_schedule(0.1, 0.0, 10),
            "momentum": 0.9,
            "velocity": "steps",
        },
    ],
    "adagrad": [
        {"learning_rate": 0.1},
        {"learning_rate": 0.1, "initial_accumulator_value": 0.0, "eps_in_sqrt": False, "eps": 0.0},
    ],
    "adadelta": [{}, {"learning_rate": 0.5, "weight_decay": 0.01}],
    "rmsprop": [
        {"learning_rate": 0.1},
        {"learning_rate": 0.1, "eps": 0.0, "eps_in_sqrt": False, "bias_correction": True},
        {"learning_rate": 0.1, "centered": True, "momentum": 0.9, "weight_decay": 0.01},
        {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "velocity": "gradients"},
    ],
    "adam": [
        {"learning_rate": 0.1},
        {"learning_rate": optax.linear_schedule(0.1, 0.0, 10), "eps": 0.0, "b1": 0.0},
        {"learning_rate": 0.1, "eps_hat": True, "weight_decay": 0.01},
        {"learning_rate": 0.1, "bias_correction": False, "eps_root": 1e-8},
        {"learning_rate": 0.1, "b1": optax.linear_schedule(0.9, 0.5, 10)},
    ],
    "adamw": [{"learning_rate": 0.1}],
    "nadam": [{"learning_rate": 0.1}, {"learning_rate": 0.1, "momentum_decay": 0.004}],
    "nadamw": [{"learning_rate": 0.1}],
    "amsgrad": [
        {"learning_rate": 0.1},
        {"learning_rate": 0.1, "maximum_of": "raw", "eps_hat": True, "eps": 0.0},
    ],
    "adamax": [
        {"learning_rate": 0.1},
        {"learning_rate": 0.1, "eps": 0.0},
        {"learning_rate": 0.1, "eps": 0.0, "eps_in_max": False},
    ],
    "radam": [
        {"learning_rate": 0.1},
        {"learning_rate": 0.1, "eps": 0.0, "eps_hat": True, "b2": 0.9, "weight_decay": 0.01},
    ],
    "trace": [{"decay": 0.9}],
    "scale_by_rss": [{}],
    "scale_by_adadelta": [{}],
    "scale_by_rms": [{}],
    "scale_by_stddev": [{}],
    "scale_by_adam": [{}],
    "scale_by_amsgrad": [{}],
    "scale_by_adamax": [{}],
    "scale_by_radam": [{}],
    "clip": [{"max_delta": 1.0}],
    "clip_by_norm": [{"max_norm": 1.0}],
    "clip_by_global_norm": [{"max_norm": 1.0}],
    "add_decayed_weights": [{"weight_decay": 0.01}],
    "scale_by_learning_rate": [{"learning_rate": 0.1}],
}

WHOLE_OPTIMIZERS = ["sgd", "adagrad", "adadelta", "rmsprop", "adam", "adamw", "nadam", "nadamw"]
WHOLE_OPTIMIZERS += ["amsgrad", "adamax", "radam"]


def label(name: str, settings: dict[str, Any]) -> str:
    """A readable test id."""
    shown = [f"{key}={getattr(value, '__name__', value)}" for key, value in settings.items()]
    return f"{name}({','.join(shown)})"


CASES = {
    label(name, settings): (getattr(aj, name), settings)
    for name, all_settings in SETTINGS.items()
    for settings in all_settings
}
"""From a readable id to the function and its arguments."""

FIRST = [
    label(name, settings[0])
    for name, settings in SETTINGS.items()
    if not name.startswith("scale_by_") or name == "scale_by_stddev"
]
"""Every rule, once: the other preconditioners for chains are rules of a whole optimizer."""

PORTED = {
    label(f"{library}.{name}", settings): (getattr(getattr(aj.interop, library), name), settings)
    for library, names in {
        "torch": {
            "sgd": {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01, "maximize": True},
            "adagrad": {"lr_decay": 0.1},
            "adadelta": {},
            "rmsprop": {"momentum": 0.9, "centered": True},
            "adam": {"amsgrad": True, "weight_decay": 0.01},
            "adamw": {},
            "nadam": {},
            "adamax": {},
            "radam": {},
        },
        "keras": {
            "sgd": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "clipnorm": 1.0},
            "adagrad": {"global_clipnorm": 1.0},
            "adadelta": {},
            "rmsprop": {"momentum": 0.9, "centered": True},
            "adam": {"amsgrad": True},
            "adamw": {},
            "nadam": {},
            "adamax": {},
        },
    }.items()
    for name, settings in names.items()
}
"""The ports of other libraries' optimizers, made of the same rules."""


WRAPPERS: dict[str, tuple[optax.GradientTransformation, dict[str, str]]] = {
    "skip_nonfinite": (
        aj.skip_nonfinite(aj.adam(0.1), max_consecutive=3),
        {"a gradient that is not finite stays visible": "in the state: the step is not taken"},
    ),
    "multi_steps": (
        aj.multi_steps(aj.adam(0.1), 2),
        {"a gradient that is not finite stays visible": "in the sum, until the second step"},
    ),
    "compensate": (
        aj.compensate(aj.adam(0.1)),
        {
            "its maths is in float32 at least, and an update has its gradient's dtype": (
                "the updates of low-precision parameters are exact, in float32"
            )
        },
    ),
    "diagnose": (aj.diagnose(aj.adam(0.1)), {}),
    "monitor": (aj.monitor({"norm": aj.global_norm}), {}),
}
"""What stands around or beside an optimizer; and the promises that are not meant for it, with why."""


def exported_factories() -> set[str]:
    """The names of everything exported that returns a transformation made of rules."""
    return {
        name
        for name, value in vars(aj).items()
        if inspect.isfunction(value)
        and inspect.signature(value).return_annotation == "Transformation"
        and name not in ("chain", "transform")
    }


def exported_ports() -> set[str]:
    """The names of all ports of other libraries' optimizers, as in "torch.adam"."""
    modules = (aj.interop.torch, aj.interop.keras)
    return {
        value.label
        for module in modules
        for value in vars(module).values()
        if hasattr(value, "label")
    }
