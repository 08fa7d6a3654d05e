"""Rules that see matrices: each layout of an array against NumPy, and what is refused."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core.matrix_rules import (
    LARGEST,
    Adaptive,
    Centered,
    Factored,
    FactoredOfNumpy,
    Muon,
    MuonOfNumpy,
    Told,
)
from core.test_views import CASES
from jax.sharding import NamedSharding, PartitionSpec

import adaptive_jax as aj

LAYOUTS = {name: case for name, case in CASES.items() if name not in ("empty", "one number")}


def gradients(shape, steps=3):
    return np.random.default_rng(0).normal(size=(steps, *shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("rule", "reference"),
    [(Muon, MuonOfNumpy), (Factored, FactoredOfNumpy)],
    ids=["slots", "shapes"],
)
def test_every_layout_of_an_array_against_numpy(rule, reference):
    layouts = LAYOUTS if rule is Muon else dict(list(LAYOUTS.items())[::3])
    params = {name: jnp.zeros(shape) for name, (_, shape, _) in layouts.items()}
    axes = {f"^{re.escape(name)}$": axes for name, (axes, _, _) in layouts.items()}
    steps = {"steps": 1} if rule is Muon else {}
    tx = aj.transform(rule(axes=axes, **steps))
    references = {
        name: reference(matrices(np.zeros(shape)).shape, **steps)
        for name, (_, shape, matrices) in layouts.items()
    }
    state, update = tx.init(params), jax.jit(tx.update)
    series = {name: gradients(x.shape) for name, x in params.items()}
    for step in range(3):
        updates, state = update({name: each[step] for name, each in series.items()}, state, params)
        for name, (_, shape, matrices) in layouts.items():
            expected = references[name].update(matrices(np.float64(series[name][step])))
            found = matrices(np.asarray(updates[name]))
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
            for slot in tx.data.rules[0].slots:
                kept, of_numpy = getattr(state, slot)[name], getattr(references[name], slot)
                if kept is None:
                    assert of_numpy.shape[-1] > LARGEST
                    continue
                if slot == "mu":  # In the layout of the parameter.
                    assert kept.shape == shape
                    kept = matrices(np.asarray(kept))
                np.testing.assert_allclose(kept, of_numpy, rtol=1e-5, atol=1e-6)


def test_matrices_on_a_mesh(make_mesh, compiled):
    mesh = make_mesh(4)
    specs = {
        "rows": PartitionSpec("x"),
        "columns": PartitionSpec(None, "x"),
        "layers": PartitionSpec("x"),
    }
    params = {
        "rows": jnp.ones((8, 12)),
        "columns": jnp.ones((12, 8)),
        "layers": jnp.ones((4, 6, 8)),
    }
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    axes = {"columns": aj.MatrixAxes(-1, -2)}
    tx = aj.transform(Factored(axes=axes), Muon(axes=axes), aj.LearningRate(0.1))
    grads = {name: jnp.asarray(gradients(x.shape, 1)[0]) for name, x in params.items()}
    expected, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    grads, params = jax.device_put((grads, params), (shardings, shardings))
    state = tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(2):
        updates, new_state = update(grads, state, params)
        for name, x in updates.items():
            np.testing.assert_allclose(x, expected[name], rtol=1e-5, atol=1e-6)
            assert x.sharding.is_equivalent_to(shardings[name], x.ndim)
        for rule, old, new in zip(tx.data.rules, state, new_state, strict=True):
            for slot in rule.slots:
                pairs = (jax.tree.leaves(getattr(each, slot)) for each in (old, new))
                for one, other in zip(*pairs, strict=True):
                    assert other.sharding.is_equivalent_to(one.sharding, one.ndim)
        compiled.clear()
    assert not compiled


@pytest.mark.slow  # The same bits, as it compiles for users.
@pytest.mark.parametrize(
    "storage",
    [
        pytest.param("float32", marks=pytest.mark.slow),
        pytest.param("bfloat16", marks=pytest.mark.slow),
        "int8",
        {"nu": "factored"},
    ],
    ids=str,
)
def test_slots_are_kept_in_the_layout_of_the_parameter(storage):
    params = {"conv": jnp.zeros((3, 5, 16, 32)), "fused": jnp.zeros((2, 64, 192))}
    axes = {"conv": aj.MatrixAxes((0, 1, 2), 3), "fused": aj.MatrixAxes(-1, -2, heads=(3, 1))}
    if storage != "float32":
        storage = storage if isinstance(storage, dict) else dict.fromkeys(("mu", "nu"), storage)
    rules = Adaptive(axes=axes), Adaptive(matrix=False)
    (seen, plain) = (aj.transform(rule, storage=storage) for rule in rules)
    states = [seen.init(params)] * 2
    assert jax.tree.structure(states[0]) == jax.tree.structure(plain.init(params))
    for step in range(2):
        grads = {name: jnp.asarray(gradients(x.shape)[step]) for name, x in params.items()}
        found, states[0] = jax.jit(seen.update)(grads, states[0])
        expected, states[1] = jax.jit(plain.update)(grads, states[1])
        jax.tree.map(np.testing.assert_array_equal, (found, states[0]), (expected, states[1]))


def test_everything_that_a_rule_is_told_is_a_matrix():
    x = dict(zip(("p", "h", "first"), gradients((2, 3, 4)), strict=True))
    axes = aj.MatrixAxes(-1, (0, 1))
    p, h, first = (each.reshape(6, 4).T for each in x.values())
    tx = aj.chain(aj.clip(1.0), aj.transform(Told(axes)))
    found, _ = tx.update([x["first"]], tx.init([x["p"]]), [x["p"]], curvature=[x["h"]])
    most = np.max(np.sum(np.clip(first, -1, 1), -1)) + np.max(np.sum(first * p, -1))
    expected = np.sum(p, -1, keepdims=True) * np.sum(h, -2, keepdims=True) + first + most
    np.testing.assert_allclose(found[0].reshape(6, 4).T, expected, rtol=1e-5, atol=1e-5)


def test_a_matrix_is_not_moved_to_be_seen():
    def program(rule, shape):
        params, tx = {"w": jnp.zeros(shape)}, aj.transform(rule)
        return jax.jit(tx.update).lower(params, tx.init(params)).compile()

    seen, plain = (program(rule, (48, 80)) for rule in (Adaptive(), Adaptive(matrix=False)))
    assert seen.cost_analysis() == plain.cost_analysis()
    conv = program(Adaptive(axes=aj.MatrixAxes((0, 1, 2), 3)), (3, 3, 16, 32))
    for each in (seen, conv):
        assert not re.search(r"transpose\(|copy\(", each.as_text())
        assert each.memory_analysis().temp_size_in_bytes == 0


@pytest.mark.slow
def test_axes_by_path_of_more_arrays_than_one_program_has():
    params = {
        f"layer{i}": {"kernel": jnp.zeros((2, 3)), "out": jnp.zeros((3, 2))} for i in range(150)
    }
    tx = aj.transform(Muon(steps=1, axes={"/out": aj.MatrixAxes(-1, -2)}))
    grads = jax.tree.map(lambda x: jnp.asarray(gradients(x.shape, 1)[0]), params)
    state = tx.init(params)
    updates, _ = tx.update(grads, state, params)
    few = {"layer0": params["layer0"]}
    expected, _ = tx.update({"layer0": grads["layer0"]}, tx.init(few), few)
    for each in updates.values():
        jax.tree.map(np.testing.assert_array_equal, each, expected["layer0"])


def test_what_has_no_elements_or_no_gradient_is_left_alone():
    params = {"empty": jnp.zeros((0, 3)), "w": jnp.zeros((2, 3)), "none": None, "count": None}
    grads = {**params, "count": np.zeros((), jax.dtypes.float0)}
    tx = aj.transform(Muon(steps=1))
    updates, state = tx.update(grads, tx.init(params))
    assert updates["empty"].shape == state.mu["empty"].shape == (0, 3)
    assert updates["none"] is None
    assert updates["count"] is None


CONV = aj.MatrixAxes(rows=(0, 1, 2), columns=3)


@pytest.mark.parametrize(
    ("axes", "array", "message"),
    [
        (None, jnp.ones(3), r"params['a']['b'] is float32[3], and Muon takes matrices: arrays with two"),
        (None, jnp.ones(()), "params['a']['b'] is float32[], and Muon takes matrices"),
        (CONV, jnp.ones((2, 3)), f"params['a']['b'] is float32[2, 3], of which {CONV} of Muon names the"),
        ({"a/": aj.MatrixAxes(-1, 1)}, jnp.ones((2, 3)), "of Muon names the axis 1 twice. Arrays have"),
        (aj.MatrixAxes(heads=2), jnp.ones((2, 3)), "of Muon cuts the axis 1 into 2 parts, which are not"),
        ({"dense": CONV}, jnp.ones((2, 3)), "the key 'dense' in axes of Muon is found in no path of the"),
    ],
)  # fmt: skip
def test_what_is_no_matrix_is_refused_in_init_by_its_path(axes, array, message):
    tx = aj.transform(Muon(axes=axes))
    with pytest.raises(ValueError, match=re.escape(message)):
        tx.init({"a": {"b": array, "c": None}})
    if "params[" in message:
        state = aj.transform(Muon()).init({"a": {"b": jnp.ones((2, 3)), "c": None}})
        with pytest.raises(ValueError, match=re.escape(message.replace("params[", "gradients["))):
            tx.update({"a": {"b": array, "c": None}}, state)


def test_what_is_said_of_a_vector_is_what_to_do():
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3), "s": jnp.ones(())}
    tx = aj.transform(Muon(), aj.LearningRate(0.1))
    with pytest.raises(ValueError, match="two axes or more") as error:
        tx.init(params)
    advice = str(error.value).partition("optimizer: ")[2].partition(", where tx is")[0]
    partition = eval(advice, {"aj": aj, "jax": jax, "tx": tx})
    updates, _ = partition.update(params, partition.init(params), params)
    np.testing.assert_allclose(updates["b"], -1e-3, rtol=1e-4)
    alone, _ = tx.update({"w": params["w"]}, tx.init({"w": params["w"]}))
    np.testing.assert_array_equal(updates["w"], alone["w"])


def test_complex_matrices_are_refused():
    tx = aj.transform(Muon())
    with pytest.raises(
        TypeError, match=r"params\['w'\] is complex64\[2, 3\]: Muon takes no complex"
    ):
        tx.init({"w": jnp.ones((2, 3), jnp.complex64)})


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ((0, 1), r"axes=\(0, 1\) is out of place in Muon: it must be aj.MatrixAxes"),
        ({"conv": (0, 1)}, "is out of place in Muon"),
        ({"(": CONV}, r"axes of Muon has the key '\(', which is no regular expression for paths: "),
        ({b"conv": CONV}, "axes of Muon has the key b'conv', which is no regular expression"),
    ],
)
def test_what_are_no_axes_is_refused(axes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Muon(axes=axes)


def test_axes_by_path_are_static_and_print_as_they_are_made():
    rules = [Muon(axes={"conv": CONV, re.compile("OUT", re.IGNORECASE): CONV}) for _ in range(2)]
    assert jax.tree.structure(rules[0]) == jax.tree.structure(rules[1])
    assert f"axes={{'conv': {CONV}, re.compile('OUT', re.IGNORECASE): {CONV}}}" in repr(rules[0])
    assert eval(repr(rules[0]), {"Muon": Muon, "MatrixAxes": aj.MatrixAxes, "re": re}) == rules[0]


def test_a_sweep_over_a_rate_of_matrices():
    params = {"w": jnp.zeros((3, 2))}
    grads = {"w": jnp.asarray(gradients((3, 2), 1)[0])}

    def updated(b1):
        tx = aj.transform(Muon(b1, 1, aj.MatrixAxes(-1, -2)))
        return tx.update(grads, tx.init(params), params)[0]

    rates = jnp.array([0.5, 0.9])
    found = jax.vmap(updated)(rates)
    for place, rate in enumerate(rates):
        np.testing.assert_allclose(found["w"][place], updated(rate)["w"], rtol=1e-6)


def test_what_is_evaluated_is_a_matrix():
    params = {"w": jnp.asarray(gradients((2, 3, 4), 1)[0])}
    tx = aj.transform(Centered(aj.MatrixAxes(2, (0, 1))))
    _, state = tx.update(params, tx.init(params), params)
    found = aj.eval_params(tx, params, state)["w"]
    expected = params["w"] - np.mean(params["w"], (0, 1), keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
