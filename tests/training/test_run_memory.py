"""What a run takes of memory, against bytes that are counted by hand, and the compiler's own."""

import math
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import adaptive_jax as aj

SIZE = 512
PARAMS = {"w": jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32), "b": jnp.zeros(SIZE)}
NUMBERS = SIZE * SIZE + SIZE
BATCH = jax.ShapeDtypeStruct((1024, SIZE), jnp.float32)
STEP = aj.train_step(lambda params, x: jnp.mean(jnp.tanh(x @ params["w"] + params["b"][None]) ** 2))


def seven_billion():
    """The shapes of LLaMA 7B, in bfloat16."""
    layer = dict.fromkeys(("q", "k", "v", "o"), (4096, 4096))
    layer |= {"gate": (4096, 11008), "up": (4096, 11008), "down": (11008, 4096)}
    layer |= {"norm_1": (4096,), "norm_2": (4096,)}
    shapes = {f"layer_{i}": layer for i in range(32)}
    shapes |= {"embed": (32000, 4096), "head": (32000, 4096), "norm": (4096,)}
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x, jnp.bfloat16), shapes, is_leaf=is_shape)


SEVERAL = {
    "float32": aj.adam(1e-3),
    "int8": aj.adam(1e-3, storage="int8"),
    "frozen": aj.partition({"a": aj.adam(1e-3), "b": None}, [("layer_31", "a"), (".*", "b")]),
}


def test_seven_billion_parameters_with_several_storages():
    params, n = seven_billion(), 6_738_415_616
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(params)) == n
    found = aj.run_memory(SEVERAL, params)
    count, last = 4, 202_383_360
    # A code of a byte each, and a float32 for 256 of them.
    states = {"float32": 8 * n, "int8": 2 * (n + n // 64), "frozen": 8 * last}
    trained = {"float32": n, "int8": n, "frozen": last}
    for name, memory in found.items():
        assert memory.rows["parameters"].total == 2 * n
        assert memory.rows["gradients"].total == 2 * trained[name]
        assert memory.state == states[name] + count
        assert memory.total == 2 * n + 2 * trained[name] + states[name] + count
        assert (memory.devices, memory.on_each_device) == (1, memory.total)
        assert memory.state == aj.state_bytes(SEVERAL[name], params).total
    lines = str(found).splitlines()
    assert re.split("  +", lines[0].strip()) == [
        "parameters",
        "gradients",
        "state",
        "total",
        "per parameter",
    ]
    assert re.split("  +", lines[1]) == [
        "float32",
        "13.48 GB",
        "13.48 GB",
        "53.91 GB",
        "80.86 GB",
        "12",
    ]
    assert "<td>80.86 GB</td>" in found._repr_html_()
    assert "13.48 GB" in found["int8"]._repr_html_()
    assert lines[-1] == "without activations: give step= and batch="


def test_slots_and_dtypes():
    params = PARAMS | {"low": jax.ShapeDtypeStruct((8192,), jnp.float8_e5m2)}
    tx = aj.sgd(0.1, momentum=0.9, storage="bfloat16")
    memory = aj.run_memory(tx, params, average=aj.average(0.9))
    rows = {name: size.total for name, size in memory.rows.items()}
    assert rows == {
        "parameters": 4 * NUMBERS + 8192,
        "gradients": 4 * (NUMBERS + 8192),  # Float32 for 8 bits.
        "state, trace": 2 * (SIZE * SIZE + 8192) + 4 * SIZE,  # What is small stays as it is.
        "state, average": 4 * (NUMBERS + 8192),
        "state, other": 8,
    }
    assert memory.kept_as == {"state, trace": "bfloat16", "state, average": "float32"}
    assert "state, trace  bfloat16" in str(memory)


def test_a_frozen_array_has_no_gradient():
    tx = aj.partition({"a": aj.adam(0.1), "b": None}, {"w": "b", "b": "a"})
    for average in (None, aj.average(0.9)):
        assert aj.run_memory(tx, PARAMS, average=average).rows["gradients"].total == 4 * SIZE


@pytest.mark.parametrize("loss_scale", [None, aj.LossScale()])
def test_the_compiled_step_says_the_rest(loss_scale):
    tx, params = aj.adam(0.1), jax.tree.map(lambda x: jnp.zeros(x.shape), PARAMS)
    memory = aj.run_memory(tx, PARAMS, step=STEP, batch=BATCH, loss_scale=loss_scale)
    state = aj.TrainState.create(params, tx, loss_scale=loss_scale)
    found = STEP.lower(state, jnp.zeros(BATCH.shape)).compile().memory_analysis()
    assert memory.rows["batch"].total == 4 * math.prod(BATCH.shape)
    assert memory.rows["activations"].total >= 4 * math.prod(BATCH.shape)
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    assert 0 <= held + found.temp_size_in_bytes - memory.total < 200  # The optimizer's numbers.
    more = aj.run_memory(
        tx, PARAMS, step=STEP, batch=jnp.zeros((2048, SIZE)), loss_scale=loss_scale
    )
    assert more.rows["activations"].total >= 4 * 2048 * SIZE


def test_a_loss_with_a_key_and_a_model_state():
    def loss(params, batch, rng, model_state):
        noise = jax.random.normal(rng, batch.shape)
        return jnp.mean((noise * batch) @ params["w"]), model_state + jnp.mean(batch)

    memory = aj.run_memory(
        aj.sgd(0.1), PARAMS, step=aj.train_step(loss), batch=BATCH, rng=jax.random.key(0),
        model_state=jax.ShapeDtypeStruct((), jnp.float32),
    )  # fmt: skip
    assert memory.rows["model state"].total == 4


def test_a_step_of_ones_own():
    tx = optax.sgd(0.1)

    def step(params, batch):
        gradients = jax.grad(lambda params: jnp.mean(jnp.tanh(batch @ params["w"]) ** 2))(params)
        updates, _ = tx.update(gradients, tx.init(params), params)
        return optax.apply_updates(params, updates)

    compiled = jax.jit(step, donate_argnums=0).lower(PARAMS, BATCH).compile()
    memory = aj.run_memory(tx, PARAMS, step=compiled)
    moment = memory.rows["gradients"].total + memory.rows["activations"].total
    found = compiled.memory_analysis()
    returned = found.output_size_in_bytes - found.alias_size_in_bytes
    assert moment == found.temp_size_in_bytes + returned > 0


def test_each_device_has_its_part(make_mesh):
    mesh = make_mesh(8)

    def placed(tree, *spec):
        place = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)

    params, batch = placed(PARAMS), placed(BATCH, "x")
    memory = aj.run_memory(aj.adam(0.1), params, step=STEP, batch=batch, shard="x")
    on_each = {name: each.on_each_device for name, each in memory.rows.items()}
    activations = on_each.pop("activations")
    assert on_each == {
        "parameters": 4 * NUMBERS,
        "gradients": 4 * NUMBERS,
        "state, mu": 4 * NUMBERS // 8,
        "state, nu": 4 * NUMBERS // 8,
        "state, other": 4,
        "batch": 4 * math.prod(BATCH.shape) // 8,
    }
    assert 4 * math.prod(BATCH.shape) // 8 <= activations < 4 * math.prod(BATCH.shape)
    assert memory.state == 8 * NUMBERS + 4
    assert "on each device" in str(memory)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: aj.run_memory({}, PARAMS), ValueError, "has no optimizer in it"),
        (lambda: aj.run_memory({"a": 3}, PARAMS), TypeError, "got 3 of type int"),
        (lambda: aj.run_memory(aj.adam, PARAMS), TypeError, r"Call it: adam\("),
        (lambda: aj.run_memory(aj.adam(1.0), {"w": 7}), TypeError, r"params\['w'\] is int32"),
        (lambda: aj.run_memory(aj.adam(1.0), PARAMS, step=STEP), TypeError, "give batch=… too"),
        (lambda: aj.run_memory(aj.adam(1.0), PARAMS, batch=BATCH), TypeError, "give step="),
        (
            lambda: aj.run_memory(aj.adam(1.0), PARAMS, step=lambda x: x, batch=BATCH),
            TypeError,
            r"must be what aj.train_step\(loss\) returned",
        ),
        (
            lambda: aj.run_memory(aj.adam(1.0), PARAMS, average=aj.adam(0.9)),
            TypeError,
            "keeps no average of the parameters",
        ),
        (lambda: aj.run_memory(aj.adam(1.0), PARAMS, shard="x"), ValueError, "on no mesh"),
    ],
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()
