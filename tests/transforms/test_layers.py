"""Learning rates that fall from layer to layer."""

from __future__ import annotations

import dataclasses
import re
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptive_jax as aj

LAYER = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
MODEL = {"embed": jnp.ones(3), "blocks": [LAYER] * 3, "head": LAYER}
LAYERS = ["embed", r"blocks/(\d+)", "head"]
Pair = namedtuple("Pair", "layers1 layers2")


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ([LAYER, LAYER, LAYER], [0.25, 0.5, 1.0]),
        ((LAYER, (), LAYER), (0.5, (), 1.0)),
        (
            {"params": {"Dense_0": LAYER, "Dense_10": LAYER, "Dense_2": LAYER}},
            {"params": {"Dense_0": 0.25, "Dense_10": 1.0, "Dense_2": 0.5}},
        ),
        ({2: LAYER, 1: LAYER, 0: None}, {0: None, 1: 0.5, 2: 1.0}),
        (Pair(LAYER, LAYER), Pair(0.5, 1.0)),
        ({"encoder": {"layer_0": LAYER}}, 1.0),
        ([LAYER], 1.0),
        (jnp.ones(2), 1.0),
        ({}, {}),
    ],
    ids=str,
)
def test_entries_that_are_numbered_are_layers(params, expected):
    assert aj.layerwise_decay(params, 1.0, 0.5) == expected


def test_expressions_go_from_the_bottom_to_the_top():
    expected = {"embed": 1 / 16, "blocks": [1 / 8, 1 / 4, 1 / 2], "head": 1.0}
    assert aj.layerwise_decay(MODEL, 1.0, 0.5, LAYERS) == expected
    compiled = [re.compile("EMBED", re.I), re.compile(r"blocks/(\d+)/"), ".*"]
    assert aj.layerwise_decay(MODEL, 1.0, 0.5, compiled) == expected
    shapes = jax.eval_shape(lambda: MODEL)
    assert aj.layerwise_decay(shapes, 1.0, 0.5, LAYERS) == expected


def test_a_layer_may_be_a_part_of_an_entry():
    rates = aj.layerwise_decay([LAYER, LAYER], 1.0, 0.5, ["0/", "1/kernel", "1/bias"])
    assert rates == [0.25, {"kernel": 0.5, "bias": 1.0}]


def test_a_function_gives_the_number_of_a_layer():
    rates = aj.layerwise_decay(MODEL, 1.0, 0.5, lambda path: 3 if "head" in path else 0)
    assert rates == {"embed": 0.125, "blocks": 0.125, "head": 1.0}


def test_a_module_is_a_prefix_of_itself():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(2, 2, 4, depth=2, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    tx = aj.sgd(aj.layerwise_decay(params, 1.0, 0.5))
    updates, _ = tx.update(params, tx.init(params), params)
    for layer, update, rate in zip(params.layers, updates.layers, (0.25, 0.5, 1.0), strict=True):
        np.testing.assert_array_equal(update.weight, -rate * layer.weight)


def test_a_schedule_is_multiplied():
    for schedule in (aj.schedules.linear_schedule(1.0, 0.0, 10), lambda count: 1 - count / 10):
        bottom, top = aj.layerwise_decay([LAYER, LAYER], schedule, 0.5)
        assert top is schedule
        np.testing.assert_allclose(bottom(5), 0.25)
    tx = aj.sgd(aj.layerwise_decay([LAYER, LAYER], aj.schedules.linear_schedule(1.0, 0.0, 10), 0.5))
    assert "0.5" in repr(tx)


def test_rate_and_factor_are_data():
    many = jax.vmap(lambda x, f: aj.layerwise_decay([LAYER, LAYER, LAYER], x, f))
    rates = many(jnp.array([1.0, 2.0]), jnp.array([0.5, 0.25]))
    np.testing.assert_allclose(jnp.stack(rates), [[0.25, 0.125], [0.5, 0.5], [1.0, 2.0]])
    slope = jax.grad(lambda f: aj.layerwise_decay([LAYER] * 3, 1.0, f)[0])(0.5)
    np.testing.assert_allclose(slope, 2 * 0.5)


@pytest.mark.parametrize(
    ("params", "options", "kind", "message"),
    [
        (
            MODEL,
            {},
            ValueError,
            r'blocks, embed, head\. .* layers=\[r"blocks/\(\\d\+\)", "embed", "head"',
        ),
        ({"Conv_0": LAYER, "Dense_0": LAYER}, {}, ValueError, r'r"Conv_\(\\d\+\)", r"Dense_\('),
        (MODEL, {"layers": "embed"}, TypeError, "must be a list of regular expressions"),
        (MODEL, {"layers": ["embed"]}, ValueError, "is found in the path 'blocks/0/bias'"),
        (MODEL, {"layers": ["embd", ".*"]}, ValueError, "no array has a path for 'embd'"),
        (MODEL, {"layers": ["("]}, ValueError, r"layers\[0\]='\(' is no regular expression"),
        (MODEL, {"layers": ["(e)|(b)"]}, ValueError, "has 2 groups"),
        (MODEL, {"layers": ["(e|b)", ".*"]}, ValueError, "finds 'b' in the path 'blocks/0/bias'"),
        (
            MODEL,
            {"layers": lambda path: "top"},
            ValueError,
            r"layers\('blocks/0/bias'\)='top' must",
        ),
        ([LAYER], {"rate": -1.0}, ValueError, "rate=-1.0 is out of range in layerwise_decay"),
        ([LAYER], {"rate": {"a": 1.0}}, TypeError, "rate is a dict"),
        ([LAYER], {"factor": None}, TypeError, "factor=None in layerwise_decay must be a number"),
        ([LAYER], {"factor": lambda count: 0.5}, TypeError, "must be a number"),
        ([LAYER], {"factor": 1.8}, ValueError, "factor=1.8"),
        ([LAYER], {"factor": -0.5}, ValueError, "factor=-0.5"),
    ],
)
def test_bad_input(params, options, kind, message):
    with pytest.raises(kind, match=message):
        aj.layerwise_decay(params, **{"rate": 1.0, "factor": 0.5, **options})


def test_other_dataclasses_have_layers_too():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Network:
        block1: dict
        block2: dict

    rates = aj.layerwise_decay(Network(LAYER, LAYER), 1.0, 0.5)
    assert (rates.block1, rates.block2) == (0.5, 1.0)
