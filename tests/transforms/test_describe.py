"""What `describe` says of an optimizer, against what the optimizer is and does."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import optax
import pytest
from core.matrix_rules import Factored
from jax.sharding import NamedSharding, PartitionSpec

import adaptive_jax as aj


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


PARAMS = {
    "embed": shape(1000, 64),
    "layers": [{"bias": shape(8), "kernel": shape(8, 16, dtype=jnp.bfloat16)} for _ in range(3)],
    "old": shape(3),
}
LABELS = [("embed", "small"), ("layers", "network"), ("old", "frozen")]


def matrices(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


def optimizer():
    network = aj.chain(
        aj.clip_by_global_norm(1.0),
        optax.scale_by_sign(),
        aj.masked(aj.trace(0.9), matrices),
        aj.add_decayed_weights(0.1, mask=matrices),
    )
    return aj.partition(
        {"network": network, "small": aj.adam(0.1, storage="int8"), "frozen": None}, LABELS
    )


CLIP = "ClipByGlobalNorm(max_norm=1.0)"
ADAM = "Adam(b1=0.9, b2=0.999, eps=1e-08, eps_root=0.0)"
TRACE = "Trace(decay=0.9)"
DECAY = "WeightDecay(weight_decay=0.1, mask=matrices)"
TABLE = [
    ["array", "rule", "why", "slot", "kept as", "bytes"],
    ["['embed']", "float32[1000, 64]", ADAM, "label 'small'", "mu", "int8 + float32[250, 1]", "65,000"],
    ["", "nu", "uint8 + float32[250, 1]", "65,000"],
    ["", "LearningRate(learning_rate=0.1)", "label 'small'"],
    ["['layers'][0]['bias'] and 2 more", "float32[8]", CLIP, "label 'network'"],
    ["", "scale_by_sign", "label 'network'"],
    ["", DECAY, "label 'network'; left out by its mask"],
    ["['layers'][0]['kernel'] and 2 more", "bfloat16[8, 16]", CLIP, "label 'network'"],
    ["", "scale_by_sign", "label 'network'"],
    ["", TRACE, "label 'network'; selected by the mask of masked", "trace", "float32", "3 x 512"],
    ["", DECAY, "label 'network'; selected by its mask"],
    ["['old']", "float32[3]", "nothing", "label 'frozen'"],
    ["other", "4"],
    ["total", "131,540"],
]  # fmt: skip


def test_the_table():
    lines = str(aj.describe(optimizer(), PARAMS)).splitlines()
    assert [re.split("  +", line) for line in lines] == TABLE
    assert lines[1].index(ADAM) == lines[4].index("Clip") == lines[6].index(DECAY)


def test_rows_are_data():
    description = aj.describe(optimizer(), PARAMS)
    row, _ = description["['embed']"]
    assert isinstance(row.rule, aj.rules.Adam)
    assert (row.path, row.why, row.selected, row.matrix_shape) == (
        "['embed']",
        ("label 'small'",),
        True,
        None,
    )
    assert [slot.name for slot in row.slots] == ["mu", "nu"]
    assert row.slots[0].kept.codes.dtype == jnp.int8
    (row,) = description["['old']"]
    assert row.rule is None
    selected = [row.selected for row in description["['layers'][1]['bias']"]]
    assert selected == [True, True, False]
    with pytest.raises(
        KeyError, match=r"'layers' is no path of an array: these are \['embed'\], \["
    ):
        description["layers"]


def test_matrices_and_slots_of_other_shapes():
    params = {"conv": shape(3, 3, 4, 16), "dense": shape(8, 2), "bias": shape(2)}
    axes = {"conv": aj.MatrixAxes((0, 1, 2), 3)}
    tx = aj.partition(
        {"m": aj.transform(Factored(axes=axes)), "v": aj.sgd(0.1)}, [("s$", "v"), ("", "m")]
    )
    description = aj.describe(tx, params)
    (conv,), (dense,) = description["['conv']"], description["['dense']"]
    assert (conv.axes, conv.matrix_shape) == (axes["conv"], (36, 16))
    assert (dense.axes, dense.matrix_shape) == (aj.MatrixAxes(), (8, 2))
    lines = [re.split("  +", line) for line in str(description).splitlines()]
    why = "label 'm'; [36, 16] by MatrixAxes(rows=(0, 1, 2), columns=3)"
    (line,) = (line for line in lines if line[0] == "['conv']")
    assert line[2].startswith("Factored(b2=0.9, axes={'conv': ")
    assert line[3:] == [why, "rows", "float32[36]", "144"]
    assert ["", "columns", "float32[16]", "64"] in lines
    assert ["", "left", "nothing", "0"] in lines
    assert ["", "left", "float32[8, 8]", "256"] in lines


@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: aj.multi_steps(aj.compensate(tx), 2)])
def test_bytes_are_those_of_the_state(wrap):
    tx = wrap(optimizer())
    description, expected = aj.describe(tx, PARAMS), aj.state_bytes(tx, PARAMS)
    assert description.total == expected.total
    assert description.other == expected.by_slot["other"]
    for path, size in expected.by_array.items():
        assert sum(row.nbytes for row in description[path]) == size


def test_slots_are_sharded_as_init_makes_them(make_mesh):
    mesh = make_mesh(4)
    rows, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("x", None), ()))
    params = jax.device_put(
        {"w": jnp.ones((1024, 256)), "b": jnp.ones(256)}, {"w": rows, "b": whole}
    )
    tx = aj.adam(0.1, storage={"mu": "int8", "nu": "factored"})
    description = aj.describe(tx, params)
    check_sharding(description, params, tx.init(params)[0], mesh)
    assert "float32[1024, 256] by P('x', None)" in str(description)

    axes = {"b": aj.MatrixAxes(1, (0, 2)), "c": aj.MatrixAxes(heads=4)}
    tx = aj.transform(Factored(axes=axes))
    params = {"a": jnp.ones((8, 12)), "b": jnp.ones((4, 6, 2)), "c": jnp.ones((4, 6, 8))}
    params = jax.device_put(params, rows)
    description = aj.describe(tx, params)
    check_sharding(description, params, tx.init(params), mesh)
    assert "float32[8] by P('x',)" in str(description)


def check_sharding(description, params, state, mesh):
    for name in params:
        for slot in description[f"['{name}']"][0].slots:
            made = getattr(state, slot.name)[name]
            for found, x in zip(jax.tree.leaves(slot.kept), jax.tree.leaves(made), strict=True):
                assert found.sharding.is_equivalent_to(x.sharding, x.ndim)
                assert found.sharding.mesh == mesh


def test_what_is_no_optimizer_and_no_parameters_is_refused():
    with pytest.raises(
        TypeError, match="describe takes optax gradient transformations, got 'adam'"
    ):
        aj.describe("adam", PARAMS)
    with pytest.raises(TypeError, match=r"params\['w'\] is int32\[2\]"):
        aj.describe(aj.adam(0.1), {"w": shape(2, dtype=jnp.int32)})


def test_each_array_has_its_own_number():
    params = {"a": shape(4), "b": shape(4), "c": shape(4)}
    description = aj.describe(aj.scale_by_learning_rate({"a": 0.1, "b": 0.2, "c": 0.1}), params)
    rates = {path: description[path][0].rule.learning_rate for path in ("['a']", "['b']", "['c']")}
    assert rates == {"['a']": 0.1, "['b']": 0.2, "['c']": 0.1}
    assert "['a'] and 1 more" in str(description)
    assert "LearningRate(learning_rate=0.2)" in str(description)
