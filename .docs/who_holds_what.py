"""Draws the picture of who_holds_what.png: `python .docs/who_holds_what.py`, in the top folder.

From the shardings of states that are made on four devices: what is filled is there.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from jax.sharding import NamedSharding, PartitionSpec
from matplotlib.patches import Rectangle

import adaptive_jax as aj

PICTURE = Path(__file__).with_name("_static") / "who_holds_what.png"
SIZE = 64
# The mesh, how parameters and batch are split over it, and over what the optimizer's state is.
WAYS = {
    "data parallel": ({"data": 4}, (), ("data",), None),
    "ZeRO": ({"data": 4}, (), ("data",), "data"),
    "FSDP": ({"data": 4}, ("data",), ("data",), None),
    "HSDP": ({"replica": 2, "data": 2}, ("data",), (("replica", "data"),), None),
    "HSDP and ZeRO": ({"replica": 2, "data": 2}, ("data",), (("replica", "data"),), "replica"),
    "tensor parallel": ({"data": 2, "model": 2}, (None, "model"), ("data",), None),
}
PARTS = {
    "batch": "#8a8a8a",
    "parameters": "#3574b5",
    "Adam's mu": "#d98032",
    "Adam's nu": "#4d9a57",
}


def arrays_of(mesh_shape, params_spec, batch_spec, shard):
    """A batch, a matrix of parameters and its two moments, on the devices."""
    mesh = jax.make_mesh(tuple(mesh_shape.values()), tuple(mesh_shape))
    zeros = jnp.zeros((SIZE, SIZE))
    params = jax.device_put(zeros, NamedSharding(mesh, PartitionSpec(*params_spec)))
    batch = jax.device_put(zeros, NamedSharding(mesh, PartitionSpec(*batch_spec)))
    state = aj.TrainState.create(params, aj.adam(1e-3), shard=shard)
    return batch, state.params, state.opt_state[0].mu, state.opt_state[0].nu


def main():
    """Draws it."""
    figure, all_axes = plt.subplots(len(WAYS), 1, figsize=(8, 6.6), layout="constrained")
    for axes, (name, way) in zip(all_axes, WAYS.items(), strict=True):
        for place, (color, x) in enumerate(zip(PARTS.values(), arrays_of(*way), strict=True)):
            for shard in x.addressable_shards:
                corner = shard.device.id * 5 + place * 1.1
                rows, columns = (each.indices(SIZE) for each in shard.index)
                axes.add_patch(
                    Rectangle((corner, 0), 1, 1, fill=False, edgecolor="#bbbbbb", lw=0.6)
                )
                height, width = ((each[1] - each[0]) / SIZE for each in (rows, columns))
                below = corner + columns[0] / SIZE, 1 - rows[1] / SIZE
                axes.add_patch(Rectangle(below, width, height, color=color, lw=0))
        mesh = ", ".join(f"{axis}: {size}" for axis, size in way[0].items())
        axes.set_title(f"{name}   (mesh {mesh})", loc="left", fontsize=10)
        axes.set(xlim=(-0.1, 20), ylim=(-0.05, 1.05), aspect="equal", yticks=[])
        axes.set_xticks([device * 5 + 2.15 for device in range(4)])
        axes.set_xticklabels([f"device {device}" for device in range(4)], fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    handles = [Rectangle((0, 0), 1, 1, color=color) for color in PARTS.values()]
    figure.legend(handles, PARTS, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(PICTURE, dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    main()
