"""The variables of one of `keras.optimizers`: its state here, and back there."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..._core.lifted import Lifted
from ..._core.transformation import data_of
from ...rules import rms
from ...rules.adagrad import AdaGrad
from ...rules.adam import Adam, NAdam
from ...rules.adamax import AdaMax, AMSGrad
from ...rules.factored import FactoredRms
from ...rules.momentum import Trace
from ...rules.orthogonal import MuonOfSums
from ...rules.regularisation import FtrlFromZero
from ...rules.schedule_free import EvenScheduleFreeAdamW
from ...rules.sign import Lion
from ...transforms.matrices import OfMatrices
from .. import _arrays, _match, _state
from .optimizers import sgd

_MOMENTS = {"mu": _state.Entry("momentum"), "nu": _state.Entry("velocity")}


_VOCABULARY: _state.Vocabulary = {
    AdaGrad: {"sum_of_squares": _state.Entry("accumulator")},
    rms.AdaDelta: {
        "e_g": _state.Entry("accumulated_grad"),
        "e_x": _state.Entry("accumulated_delta_var"),
    },
    rms.Rms: {"nu": _state.Entry("velocity")},
    rms.StdDev: {"mu": _state.Entry("average_gradient"), "nu": _state.Entry("velocity")},
    Adam: _MOMENTS,
    AMSGrad: {**_MOMENTS, "nu_max": _state.Entry("velocity_hat")},
    NAdam: {**_MOMENTS, "mu_product": _state.Entry("u_product")},
    AdaMax: {"mu": _state.Entry("momentum"), "nu": _state.Entry("norm")},
    Lion: {"mu": _state.Entry("momentum")},
    MuonOfSums: {"mu": _state.Entry("momentum")},
    EvenScheduleFreeAdamW: {"z": _state.Entry("momentum"), "nu": _state.Entry("velocity")},
    FtrlFromZero: {"n": _state.Entry("accumulator"), "z": _state.Entry("linear")},
    FactoredRms: {
        "v_row": _state.Entry("rows"),
        "v_col": _state.Entry("columns"),
        "v": _state.Entry("velocity"),
    },
}


# The order of `optimizer.variables` after `iteration` and `learning_rate`: within a group, every
# parameter's variables in turn; one group after the other.
_GROUPS = {
    "sgd": [("momentum",)],
    "adagrad": [("accumulator",)],
    "adadelta": [("accumulated_grad", "accumulated_delta_var")],
    "rmsprop": [("velocity",), ("momentum",), ("average_gradient",)],
    "adam": [("momentum", "velocity"), ("velocity_hat",)],
    "adamw": [("momentum", "velocity"), ("velocity_hat",)],
    "nadam": [("momentum", "velocity")],
    "adamax": [("momentum", "norm")],
    "lion": [("momentum",)],
    "lamb": [("momentum", "velocity")],
    "ftrl": [("accumulator", "linear")],
    "schedule_free_adamw": [("momentum", "velocity")],
    # Of an array with one axis or none the first two are 0, and of others the last is made of them.
    "adafactor": [("rows", "columns", "velocity")],
    # Of what is for Muon there is no velocity.
    "muon": [("momentum", "velocity")],
}


# Variables that Keras gives the name of their parameter.
_NAMELESS = ("rows", "columns")


def _vocabulary(port: Lifted | OfMatrices) -> _state.Vocabulary:
    # Keras adds SGD's velocity to the parameters and subtracts RMSprop's. Here both are added.
    sign = 1 if isinstance(port, Lifted) and port.factory is sgd else -1
    return {**_VOCABULARY, Trace: {"trace": _state.Entry("momentum", sign)}}


def import_state(tx: Any, params: Any, variables: Any, mapping: Any = None) -> Any:
    """The state of a Keras optimizer, as the state of the same optimizer here.

    Keras saves no options with its variables: give tx those of the saved optimizer.

    Args:
      tx: the optimizer of this module that goes on, alone or in an `aj.chain`.
      params: the parameters here.
      variables: `optimizer.variables`, as Keras's variables or as arrays, or the dict that
        `optimizer.save_own_variables` fills.
      mapping: from Keras's names to paths here, or to (path, axes), in the order of
        `model.trainable_variables`. By default the names of the variables decide, or the order, if
        params is a tree whose leaves have one of their own: a list, a tuple, but not a dict.

    Returns:
      The state that `tx.init(params)` has. Every array is a copy.

    Raises:
      TypeError, ValueError: for the variables of another optimizer, missing or further ones, wrong
        shapes, NaN, and parameters that cannot be told apart, by the names of variable and parameter.

    Example:
      >>> import adaptive_jax as aj, numpy as np
      >>> tx = aj.interop.keras.sgd(learning_rate=0.1, momentum=0.9)
      >>> saved = [np.array(3), np.array(0.1), np.ones(2)]  # iteration, learning_rate, momentum
      >>> aj.interop.keras.import_state(tx, [np.zeros(2)], saved)[1]
      TraceState(trace=[Array([1., 1.], dtype=float32)])
    """
    port = _state.port_of(tx, "keras")
    variables = _listed(variables)
    count = len(jax.tree.leaves(params))
    owners = _owners(port, params)
    expected = _expected(owners, owners)
    if len(variables) not in (len(expected) + 1, len(expected) + 2):
        kinds = list(dict.fromkeys(name for name, _ in expected))
        raise ValueError(
            f"{tx!r} has iteration, learning_rate (but under a schedule) and {kinds} of {count} "
            f"parameters: {len(expected) + 2} variables, got {len(variables)}. They are of another "
            "optimizer or of another model."
        )
    step = _arrays.number(variables[0], "iteration")
    if step != int(step) or step < 0:
        raise ValueError(f"iteration, the first variable, is {step}: expected a number of steps.")
    own = variables[len(variables) - len(expected) :]
    if isinstance(port, OfMatrices):
        expected = _expected_of_groups(owners, params, own, mapping)
    rest = list(zip(expected, own, strict=True))
    names = _parameter_names(rest, count)
    mapped = _place(params, names, rest, mapping)
    if isinstance(port, OfMatrices):
        _check_groups(owners, expected, names, mapped)
    saved = {path: _state.Saved(name) for name, (path, _) in mapped.items()}
    for (kind, index), variable in rest:
        if index is None:
            number = np.asarray(_arrays.number(variable, kind))
            for one in saved.values():
                one.entries[kind] = number
        elif kind not in _NAMELESS:
            path, axes = mapped[names[index]]
            saved[path].entries[kind] = _arrays.to_here(variable, axes, f"{kind} of {names[index]}")
    for name, (rows, columns) in _factors(rest, names).items():
        path, axes = mapped[name]
        rows, columns = _arrays.factors_to_here(rows, columns, axes, name)
        saved[path].entries |= {"rows": rows, "columns": columns}
    return _state.fill(tx, params, _vocabulary(port), "keras", saved, int(step))


def export_state(tx: Any, params: Any, opt_state: Any, mapping: Any = None) -> list[np.ndarray]:
    """The reverse of `import_state`: a value for each of `optimizer.variables`, in their order.

        for variable, value in zip(optimizer.variables, exported, strict=True):
            variable.assign(value)

    Args:
      tx: the optimizer of this module.
      params: the parameters here.
      opt_state: the state to export.
      mapping: from Keras's names to paths here, or to (path, axes), in the order of
        `model.trainable_variables`. It can be left out if params is a tree whose leaves have an order
        of their own.

    Returns:
      Arrays, the learning rate among them unless it is a schedule.

    Raises:
      TypeError, ValueError: for a state of another optimizer, and for a dict of params without a
        mapping: JAX sorts its keys, Keras does not.
    """
    port = _state.port_of(tx, "keras")
    owners = _owners(port, params)
    mapped = _match.for_export(params, mapping, "that of model.trainable_variables")
    entries, scalars, count = _state.read(tx, opt_state, params, _vocabulary(port), "keras")
    first = port if isinstance(port, Lifted) else data_of(port.wrapped()[0])
    rate = _state.setting(first, "learning_rate", None)
    exported = [np.asarray(count, np.int32)]
    exported += [] if callable(rate) else [np.asarray(rate, np.float64)]
    places = list(mapped.values())
    for kind, index in _expected(owners, [path for path, _ in places]):
        if index is None:
            exported.append(np.asarray(scalars[kind]))
        else:
            path, axes = places[index]
            exported.append(_exported(kind, entries[path], axes, path))
    return exported


def _exported(kind: str, entries: Mapping[str, np.ndarray], axes: Any, path: str) -> np.ndarray:
    """A variable of a parameter, in Keras's layout."""
    if "rows" in entries:
        rows, columns = _arrays.factors_to_there(entries["rows"], entries["columns"], axes, path)
        return {"rows": rows, "columns": columns}.get(kind, _product(rows, columns))
    if kind in _NAMELESS:
        return np.zeros((), np.int32)
    return _arrays.to_there(entries[kind], axes)


def _factors(rest: Sequence[Any], names: list[str]) -> dict[str, list[Any]]:
    """The variables for rows and columns of each parameter that has both."""
    found: dict[str, list[Any]] = {}
    for (kind, index), variable in rest:
        if kind in _NAMELESS and np.ndim(variable):
            found.setdefault(names[index], []).append(variable)
    return found


def _product(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """R·C/mean(R), the second moment that Keras keeps beside them; 0 for 0."""
    mean = rows.mean(-1, keepdims=True)
    return (rows / np.where(mean > 0, mean, 1))[..., None] * columns[..., None, :]


def _listed(variables: Any) -> list[Any]:
    if isinstance(variables, Mapping):
        if set(variables) != {str(index) for index in range(len(variables))}:
            raise ValueError(
                "expected the dict that optimizer.save_own_variables fills, with the keys '0', '1' and "
                f"so on, got {list(variables)[:6]}."
            )
        return [variables[str(index)] for index in range(len(variables))]
    if not isinstance(variables, Sequence) or isinstance(variables, str) or not len(variables):
        raise TypeError(
            f"expected optimizer.variables, a list, got {type(variables).__name__}: {variables!r}."
        )
    return list(variables)


def _owners(port: Lifted | OfMatrices, params: Any) -> dict[str, Lifted]:
    """The optimizer of each parameter, by its path."""
    if isinstance(port, Lifted):
        return dict.fromkeys(_arrays.paths(params), port)
    groups = zip(port.wrapped(), port.params_in(params), strict=True)
    return {path: data_of(each) for each, own in groups for path in _arrays.paths(own)}


def _expected(owners: Mapping[str, Lifted], order: Collection[str]) -> list[tuple[str, int | None]]:
    """What the variables after the learning rate are: the entry, and the number of the parameter.

    order: the paths of the parameters as Keras has them in a row.
    """
    entries = {id(each): _state.entries_of(each, _vocabulary(each)) for each in owners.values()}
    expected: list[tuple[str, int | None]] = []
    names = {each.factory.__name__ for each in owners.values()}  # type: ignore[union-attr]
    for group in next((_GROUPS[name] for name in names), []):  # All are of one call.
        for index, path in enumerate(order):
            slots, _ = entries[id(owners[path])]
            kept = {entry.name for entry in slots.values()}
            expected += [(kind, index) for kind in group if kind in kept]
    scalars = {entry.name: None for _, each in entries.values() for entry in each.values()}
    return expected + [(name, None) for name in scalars]


def _expected_of_groups(
    owners: Mapping[str, Lifted], params: Any, variables: Sequence[Any], mapping: Any
) -> list[tuple[str, int | None]]:
    """The same where parameters differ in what is kept: by the names of the variables, or the order."""
    named = [getattr(variable, "name", None) for variable in variables]
    if all(isinstance(name, str) for name in named):
        kinds = ["velocity" if str(n).endswith("_velocity") else "momentum" for n in named]
        indices = np.cumsum([kind == "momentum" for kind in kinds]) - 1
        if indices[0] == 0 and indices[-1] == len(owners) - 1:
            return [(kind, int(index)) for kind, index in zip(kinds, indices, strict=True)]
        raise ValueError(
            f"the variables {_match.listed(map(str, named), sort=False)} are no momentum of each of "
            f"{len(owners)} parameters, and a velocity of some: they are of another optimizer."
        )
    if mapping is None and not _match.has_own_order(params):
        raise ValueError(
            "variables without names do not say which parameters have a velocity: give the mapping, "
            "whose order is that of model.trainable_variables."
        )
    mapped = _match.for_export(params, mapping, "that of model.trainable_variables")
    return _expected(owners, [path for path, _ in mapped.values()])


def _check_groups(
    owners: Mapping[str, Lifted],
    expected: Sequence[tuple[str, int | None]],
    names: Sequence[str],
    mapped: _match.Mapped,
) -> None:
    """Raises a ValueError unless all were saved by Adam that are for Adam here, and no others."""
    for index, name in enumerate(names):
        path, _ = mapped[name]
        kept = {kind for kind, _ in _expected(owners, [path])}
        saved = {kind for kind, each in expected if each == index}
        if kept != saved:
            there, here = ("Adam", "Muon") if "velocity" in saved else ("Muon", "Adam")
            raise ValueError(
                f"{name} was saved by {there}, and {path} is for {here} here: exclude_layers and "
                "exclude_embeddings go by the paths here, which need not be those in Keras."
            )


def _parameter_names(rest: Sequence[tuple[tuple[str, int | None], Any]], count: int) -> list[str]:
    """Keras's name of each parameter, from the names of its variables where they have any."""
    names = [f"parameter {index}" for index in range(count)]
    for (kind, index), variable in rest:
        name = getattr(variable, "name", None)
        if index is None or not isinstance(name, str):
            continue
        if kind in _NAMELESS:
            continue
        if not name.endswith(f"_{kind}"):
            raise ValueError(
                f"variable {name} is in the place of {kind}: the variables are of another optimizer."
            )
        names[index] = name.removesuffix(f"_{kind}")
    return names


def _place(params: Any, names: list[str], rest: Sequence[Any], mapping: Any) -> _match.Mapped:
    """The parameter here of each one of Keras's, by the name that `names` has for it."""
    if mapping is not None:
        mapped = _match.checked_mapping(mapping, params)
        if len(mapped) != len(names):
            raise ValueError(f"mapping has {len(mapped)} parameters, {len(names)} were saved.")
        return dict(zip(names, mapped.values(), strict=True))
    if _match.has_own_order(params) or not any(index is not None for (_, index), _ in rest):
        return _match.in_order(params, names)
    # A path such as dense/kernel is the name dense_kernel, with the model's name in front of it.
    joined = {path: re.sub(r"\W+", "_", path).lower() for path in _arrays.paths(params)}
    ends = {
        name: [p for p, each in joined.items() if f"_{name.lower()}".endswith(f"_{each}")]
        for name in names
    }
    chosen = [max(found, key=lambda path: len(joined[path])) for found in ends.values() if found]
    if len(set(chosen)) == len(names):
        return {name: (path, None) for name, path in zip(names, chosen, strict=True)}
    shapes: dict[str, Any] = {
        names[index]: tuple(variable.shape) for (_, index), variable in rest if index is not None
    }
    return _match.match(params, shapes, transposes=False)
