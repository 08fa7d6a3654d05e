"""Variables as Keras saves them, made by hand.

`test_interop_live.py` does the same against the libraries themselves.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest
from interop.saved import PARAMS

from adaptive_jax.interop import keras


def saved_keras_adam(rate=True):
    first = [np.array(7)] + ([np.array(0.1)] if rate else [])
    kernel, bias = np.full((3, 2), 0.25), np.full(2, 0.25)
    return [*first, kernel, kernel * 2, bias, bias * 2]


KERAS_MAPPING = {"dense/kernel": "dense/kernel", "dense/bias": "dense/bias"}


@pytest.mark.parametrize("rate", [True, False])
def test_keras_variables_come_with_or_without_a_learning_rate(rate):
    state = keras.import_state(keras.adam(), PARAMS, saved_keras_adam(rate), KERAS_MAPPING)
    assert state[0].count == 7
    np.testing.assert_array_equal(state[0].nu["dense"]["kernel"], 0.5)
    stored = {str(index): value for index, value in enumerate(saved_keras_adam(rate))}
    again = keras.import_state(keras.adam(), PARAMS, stored, KERAS_MAPPING)
    assert jax.tree.all(jax.tree.map(np.array_equal, state, again))
    back = keras.export_state(keras.adam(), PARAMS, state, KERAS_MAPPING)
    assert [value.shape for value in back] == [(), (), (3, 2), (3, 2), (2,), (2,)]


def test_keras_variables_of_shape_zero_come_back_as_arrays():
    params = {"scale": np.zeros((), np.float32), "w": np.zeros(2, np.float32)}
    mapping = {"scale": ("scale", ()), "w": "w"}
    saved = [np.array(7), np.array(0.1)]
    saved += [np.array(0.25), np.array(0.5), np.full(2, 0.25), np.full(2, 0.5)]
    state = keras.import_state(keras.adam(), params, saved, mapping)
    assert (state[0].mu["scale"], state[0].nu["scale"]) == (0.25, 0.5)
    back = keras.export_state(keras.adam(), params, state, mapping)
    assert all(type(value) is np.ndarray for value in back)
    assert [value.shape for value in back] == [value.shape for value in saved]


class Variable(np.ndarray):
    """An array with a name, as Keras's variables are."""

    name: str

    @classmethod
    def of(cls, name, value):
        variable = np.asarray(value, float).view(cls)
        variable.name = name
        return variable


def test_keras_names_place_the_parameters():
    names = ["iteration", "learning_rate"]
    names += [
        f"sequential_dense_{p}_{s}" for p in ("kernel", "bias") for s in ("momentum", "velocity")
    ]
    values = zip(names, saved_keras_adam(), strict=True)
    variables = [Variable.of(name, value) for name, value in values]
    state = keras.import_state(keras.adam(), PARAMS, variables)
    assert state[0].mu["dense"]["kernel"].shape == (3, 2)
    with pytest.raises(ValueError, match="dense_kernel_velocity is in the place of norm"):
        keras.import_state(keras.adamax(), PARAMS, variables)


@pytest.mark.parametrize(
    ("tx", "variables", "message"),
    [
        (keras.adam(amsgrad=True), saved_keras_adam(), r"8 variables, got 6"),
        (keras.sgd(), saved_keras_adam(), "2 variables, got 6"),
        (keras.adam(), saved_keras_adam()[:-2], "6 variables, got 4"),
        (keras.adam(), [np.array(1.5), *saved_keras_adam()[1:]], "iteration, the first variable, is 1.5"),
        (keras.adam(), [*saved_keras_adam()[:-1], np.full(2, np.nan)], "velocity of parameter 1 has 2"),
        (keras.adam(), [*saved_keras_adam()[:-1], np.ones(3)], r"velocity of .* the shape \(3,\)"),
        (keras.adam(), "variables", "expected optimizer.variables"),
        (keras.adam(), {"a": 1}, "save_own_variables"),
    ],
)  # fmt: skip
def test_keras_variables_that_do_not_fit_are_refused(tx, variables, message):
    with pytest.raises((TypeError, ValueError), match=message):
        keras.import_state(tx, PARAMS, variables, KERAS_MAPPING)


def test_an_export_from_a_dict_needs_a_mapping():
    tx = keras.adam()
    with pytest.raises(ValueError, match="whose keys JAX sorts"):
        keras.export_state(tx, PARAMS, tx.init(PARAMS))


MUON = keras.muon(learning_rate=0.1, exclude_layers=["head"])
MUON_PARAMS = {
    "dense": {"kernel": np.zeros((3, 2), np.float32), "bias": np.zeros(2, np.float32)},
    "head": {"kernel": np.zeros((2, 2), np.float32)},
}
MUON_ORDER = {path: path for path in ("head/kernel", "dense/kernel", "dense/bias")}


def saved_keras_muon():
    """Of an order that is not that of a dict: only what is for Adam has a velocity."""
    head, kernel, bias = np.full((2, 2), 0.25), np.full((3, 2), -1.5), np.full(2, 0.75)
    return [np.array(7), np.array(0.1), head, head * 2, kernel, bias, bias * 2]


def test_keras_muon_has_a_velocity_of_what_is_for_adam():
    state = keras.import_state(MUON, MUON_PARAMS, saved_keras_muon(), MUON_ORDER)
    muon, adam = (state[0].inner_states[each].inner_state for each in ("muon", "rest"))
    np.testing.assert_array_equal(muon[0].mu["dense"]["kernel"], -1.5)
    np.testing.assert_array_equal(adam[0].mu["head"]["kernel"], 0.25)
    np.testing.assert_array_equal(adam[0].nu["dense"]["bias"], 1.5)
    assert [int(each.count) for each in (muon[1], *adam)] == [7, 7, 7]
    assert jax.tree.structure(state) == jax.tree.structure(MUON.init(MUON_PARAMS))
    back = keras.export_state(MUON, MUON_PARAMS, state, MUON_ORDER)
    for ours, theirs in zip(back, saved_keras_muon(), strict=True):
        np.testing.assert_allclose(ours, theirs)
    clipped = keras.muon(global_clipnorm=1.0, exclude_layers=["head"])
    again = keras.import_state(clipped, MUON_PARAMS, saved_keras_muon(), MUON_ORDER)
    assert jax.tree.all(jax.tree.map(np.array_equal, again[1], state[0]))


@pytest.mark.parametrize(
    ("tx", "mapping", "message"),
    [
        (MUON, None, "variables without names .* give the mapping"),
        (keras.muon(), MUON_ORDER, "6 variables, got 7"),
        (MUON, dict(reversed(MUON_ORDER.items())), "of .* has the shape"),
    ],
)
def test_keras_muon_is_not_guessed(tx, mapping, message):
    with pytest.raises(ValueError, match=message):
        keras.import_state(tx, MUON_PARAMS, saved_keras_muon(), mapping)
