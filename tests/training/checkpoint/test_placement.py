"""Restored arrays on other devices, and of shapes alone."""

from __future__ import annotations

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from resumed_runs import PARAMS, bits, create, loss

import adaptive_jax as aj
from adaptive_jax.training.checkpoint.placement import check_room


def meshes():
    types = {"auto": jax.sharding.AxisType.Auto, "explicit": jax.sharding.AxisType.Explicit}
    return [pytest.param(kind, id=name) for name, kind in types.items()]


@pytest.mark.parametrize("axis_type", meshes())
def test_a_random_key_on_another_number_of_devices(axis_type, tmp_path):
    def mesh(devices):
        return jax.make_mesh(
            (devices,), ("x",), axis_types=(axis_type,), devices=jax.devices()[:devices]
        )

    def create_on(mesh):
        place = lambda spec: NamedSharding(mesh, spec)  # noqa: E731
        params = {"w": jax.device_put(jnp.ones((8, 2)), place(PartitionSpec("x")))}
        state = aj.TrainState.create(params, aj.adam(0.1), rng=jax.random.key(0))
        keys = jax.device_put(jax.random.split(jax.random.key(1), 8), place(PartitionSpec("x")))
        return state.replace(model_state={"keys": keys})

    state = create_on(mesh(8))
    aj.save_checkpoint(tmp_path, state)
    # As if it was of another machine.
    file = next((tmp_path / "0" / "state").rglob("_sharding"))
    file.write_text(file.read_text().replace('\\"id\\": 7', '\\"id\\": 99'))
    assert "99" in file.read_text()
    fewer = create_on(mesh(2))
    again = aj.restore_checkpoint(tmp_path, fewer)
    assert bits(again) == bits(state)
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(fewer), strict=True):
        assert getattr(one, "sharding", None) == getattr(other, "sharding", None)
    # From shapes, which know their mesh if it is explicit: whole on it, or else on one device.
    is_explicit = axis_type == jax.sharding.AxisType.Explicit
    shapes = jax.eval_shape(lambda: create_on(mesh(2)))
    for like, devices in (
        (shapes, 2 if is_explicit else 1),
        (shapes.replace(params=fewer.params), 2),
    ):
        again = aj.restore_checkpoint(tmp_path, like)
        assert bits(again) == bits(state)
        assert again.rng.sharding.num_devices == devices
    with jax.set_mesh(mesh(4)) if is_explicit else nullcontext():
        shapes = jax.eval_shape(lambda: create_on(mesh(4)))
    again = aj.restore_checkpoint(tmp_path, shapes)
    assert bits(again) == bits(state)


def test_shapes_come_back_as_they_were_saved(tmp_path):
    """Python numbers too: 0.999 is no float32, and 1 - 0.999 is not rounded."""
    rows = NamedSharding(jax.make_mesh((8,), ("x",)), PartitionSpec("x"))
    params = {"w": jax.device_put(jnp.ones((8, 2)), rows)}
    state = {"state": aj.TrainState.create(params, aj.adam(0.1)), "epoch": 7, "done": True}
    aj.save_checkpoint(tmp_path, state, step=0)
    again = aj.restore_checkpoint(tmp_path, jax.eval_shape(lambda: state))
    assert again["epoch"] == 7
    assert again["done"] is True
    assert jax.tree.leaves(again["state"].tx) == jax.tree.leaves(state["state"].tx)
    assert all(type(leaf) is float for leaf in jax.tree.leaves(again["state"].tx))
    assert again["state"].params["w"].sharding == rows
    ones = {"w": jnp.full((8, 2), 0.3)}
    for _ in range(5):
        updates = [
            each["state"].tx.update(ones, each["state"].opt_state, params)
            for each in (state, again)
        ]
        assert bits(updates[0]) == bits(updates[1])
    again = aj.restore_checkpoint(tmp_path, {**state, "epoch": 0.5, "done": 0})
    assert (again["epoch"], again["done"]) == (7, True)


@pytest.mark.parametrize("storage", [None, aj.Blocks(min_size=0)])
def test_onto_another_sharding_and_from_shapes_alone(tmp_path, storage, make_mesh):
    tx = aj.adam(0.1, storage=storage)
    state, _ = aj.train_step(loss)(create(tx), 0.1)
    aj.save_checkpoint(tmp_path, state)
    mesh = make_mesh(4)
    rows = NamedSharding(mesh, PartitionSpec("x"))
    split = {**PARAMS, "w": jax.device_put(PARAMS["w"], rows)}
    again = aj.restore_checkpoint(tmp_path, create(tx, split))
    for array in (again.params["w"], jax.tree.leaves(again.opt_state[0].mu["w"])[0]):
        assert array.sharding.is_equivalent_to(rows, 2)
    assert bits(again) == bits(state)
    shapes = jax.eval_shape(lambda: create(tx))
    again = aj.restore_checkpoint(tmp_path, shapes)
    assert bits(again.params) == bits(state.params)
    assert bits(again.opt_state) == bits(state.opt_state)


def test_more_than_the_devices_have_room_for_is_refused():
    """CPUs do not say how much they have, so the room is given."""
    mesh = jax.make_mesh((8,), ("x",))
    whole, rows = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), ("x",)))
    room = dict.fromkeys(jax.devices(), 3000)

    def shapes(sharding):
        x = jax.ShapeDtypeStruct((64, 8), jnp.float32, sharding=sharding)
        return {".params['w']": x, ".step": jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)}

    check_room(shapes(whole), room)  # 2,052 bytes
    check_room(shapes(rows), dict.fromkeys(jax.devices(), 260))
    with pytest.raises(
        ValueError, match=r"needs 260 bytes on .*has 259 left; the most, 256, are .params\['w'\]"
    ):
        check_room(shapes(rows), {jax.devices()[5]: 259})
    check_room(shapes(whole), {})
