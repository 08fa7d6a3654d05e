"""Which parameter is which, and weights of PyTorch taken over."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from adaptive_jax.interop import torch

CNN = {
    "conv1.weight": (8, 1, 3, 3), "conv1.bias": (8,),
    "conv2.weight": (8, 8, 3, 3), "conv2.bias": (8,),
    "layers.0.weight": (16, 32), "layers.0.bias": (16,),
    "layers.10.weight": (16, 16), "layers.10.bias": (16,),
    "norm.weight": (16,), "norm.bias": (16,), "norm.running_mean": (16,),
}  # fmt: skip


def flax_like(kernel="kernel", scale="scale"):
    """The same network with Flax's names and layouts, under the key that Flax puts around it."""
    conv = lambda inputs: {kernel: np.zeros((3, 3, inputs, 8)), "bias": np.zeros(8)}  # noqa: E731
    dense = lambda inputs: {kernel: np.zeros((inputs, 16)), "bias": np.zeros(16)}  # noqa: E731
    return {
        "params": {
            "conv1": conv(1), "conv2": conv(8), "layers_0": dense(32), "layers_10": dense(16),
            "norm": {scale: np.zeros(16), "bias": np.zeros(16)},
        }
    }  # fmt: skip


def test_match_finds_modules_by_name_and_layouts_by_kind():
    found = torch.match(flax_like(), CNN)
    assert list(found) == [name for name in CNN if "running" not in name]
    assert found["conv2.weight"] == ("params/conv2/kernel", (2, 3, 1, 0))
    assert found["layers.10.weight"] == ("params/layers_10/kernel", (1, 0))  # Square: by its name.
    assert found["norm.weight"] == ("params/norm/scale", None)
    assert found["conv2.bias"] == ("params/conv2/bias", None)


@pytest.mark.parametrize(
    ("there", "here"),
    [(["0", "2", "4"], ["0", "1", "2"]), (["fc1", "fc2", "fc3"], ["fc0", "fc1", "fc2"])],
)
def test_match_does_not_trust_numbers_that_are_shifted(there, here):
    square = {"kernel": np.zeros((4, 4)), "bias": np.zeros(4)}
    named = {f"{name}.{part}": shape for name in there for part, shape in
             (("weight", (4, 4)), ("bias", (4,)))}  # fmt: skip
    with pytest.raises(ValueError, match="names and shapes do not decide"):
        torch.match(dict.fromkeys(here, square), named)
    # Shapes do decide here, against the names.
    sizes = [8, 16, 15, 4]
    layers = zip(sizes, sizes[1:], here, there, strict=False)
    params, named = {}, {}
    for inputs, outputs, ours, theirs in layers:
        params[ours] = {"kernel": np.zeros((inputs, outputs)), "bias": np.zeros(outputs)}
        named |= {f"{theirs}.weight": (outputs, inputs), f"{theirs}.bias": (outputs,)}
    found = torch.match(params, named)
    assert [path.split("/")[0] for path, _ in found.values()][::2] == here


def test_match_goes_on_from_known_pairs():
    params = {
        name: {"kernel": np.zeros((4, 4)), "bias": np.zeros(4)} for name in ("Dense_0", "Dense_1")
    }
    named = {"a.weight": (4, 4), "a.bias": (4,), "b.weight": (4, 4), "b.bias": (4,)}
    with pytest.raises(ValueError, match="Give some pairs by hand"):
        torch.match(params, named)
    found = torch.match(
        params, named, {"b.weight": ("Dense_0/kernel", (1, 0)), "b.bias": "Dense_0/bias"}
    )
    assert found["a.weight"] == ("Dense_1/kernel", (1, 0))
    with pytest.raises(ValueError, match="the mapping names c, which is not there"):
        torch.match(params, named, {"c": "Dense_0/bias"})


def test_match_finds_a_bias_by_the_weight_of_its_module():
    params = {
        "Conv_0": {"kernel": np.zeros((3, 3, 1, 4)), "bias": np.zeros(4)},
        "Dense_0": {"kernel": np.zeros((8, 4)), "bias": np.zeros(4)},
    }
    named = {"c.weight": (4, 1, 3, 3), "c.bias": (4,), "d.weight": (4, 8), "d.bias": (4,)}
    assert torch.match(params, named)["d.bias"] == ("Dense_0/bias", None)


@pytest.mark.parametrize("named", [[("a", np.zeros(3))], {"model": {"a": np.zeros(3)}}])
def test_match_says_what_it_takes(named):
    with pytest.raises(TypeError, match=r"model.state_dict\(\)|dict of a model's arrays"):
        torch.match({"a": np.zeros(3)}, named)


def test_match_leaves_a_weight_as_it_is():
    params = {"fc": {"weight": np.zeros((4, 4)), "bias": np.zeros(4)}}
    found = torch.match(params, {"fc.weight": (4, 4), "fc.bias": (4,)})
    assert found["fc.weight"] == ("fc/weight", None)


def test_match_by_shapes_where_no_name_helps():
    shapes = {"i": (3, 3, 1, 4), "j": (5, 7), "k": (4,), "l": (7,)}
    params = {path: np.zeros(shape) for path, shape in shapes.items()}
    named = {"0.weight": (4, 1, 3, 3), "0.bias": (4,), "2.weight": (7, 5), "2.bias": (7,)}
    found = torch.match(params, named)
    assert [path for path, _ in found.values()] == ["i", "k", "j", "l"]
    assert found["2.weight"] == ("j", (1, 0))


@pytest.mark.parametrize(
    ("params", "named", "message"),
    [
        (
            {"a": np.zeros(3), "b": np.zeros(3)},
            {"x": (3,), "y": (3,)},
            "names and shapes do not decide",
        ),
        ({"a": np.zeros((3, 3))}, {"fc.weight": (3, 3)}, r"could be a \(axes None or \(1, 0\)\)"),
        ({"a": np.zeros(3)}, {"x": (4,)}, r"no parameter fits x of shape \(4,\)"),
        (
            {"fc": {"kernel": np.zeros((2, 3))}},
            {"fc.weight": (2, 3)},
            "no parameter fits fc.weight",
        ),
        (
            {"a": np.zeros(3), "b": np.zeros(2)},
            {"x": (3,)},
            "nothing was saved for the parameters b",
        ),
        ({"a": np.zeros(3)}, {"x": (3,), "y": (3,)}, "both fit the parameter a alone"),
    ],
)
def test_match_refuses_what_names_and_shapes_do_not_decide(params, named, message):
    with pytest.raises(ValueError, match=message):
        torch.match(params, named)


def test_import_params_transposes_and_copies():
    weight = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    params = {"out": {"kernel": jnp.zeros((3, 2), jnp.bfloat16), "bias": jnp.zeros(2)}}
    named = {"out.weight": weight, "out.bias": np.ones(2)}
    imported = torch.import_params(params, named)
    assert imported["out"]["kernel"].dtype == jnp.bfloat16
    weight[:] = -1
    np.testing.assert_array_equal(imported["out"]["kernel"], np.arange(6.0).reshape(2, 3).T)
    with pytest.raises(
        ValueError, match="which is no parameter: the paths are out/bias, out/kernel"
    ):
        torch.import_params(params, named, {"out.weight": "out/weight", "out.bias": "out/bias"})
    with pytest.raises(ValueError, match=r"has the axes \(0, 0\)"):
        torch.import_params(
            params, named, {"out.weight": ("out/kernel", (0, 0)), "out.bias": "out/bias"}
        )
    with pytest.raises(ValueError, match="names every parameter once: out/bias is missing"):
        torch.import_params(params, named, {"out.weight": ("out/kernel", (1, 0))})


def test_import_params_of_shape_zero():
    """A temperature, the scale of logits."""
    params = {"logit_scale": jnp.zeros((), jnp.bfloat16), "w": jnp.zeros(2)}
    named = {"logit_scale": np.array(2.5), "w": np.ones(2)}
    for mapping in (None, {"logit_scale": ("logit_scale", ()), "w": "w"}):
        imported = torch.import_params(params, named, mapping)
        assert imported["logit_scale"] == jnp.bfloat16(2.5)
        assert imported["logit_scale"].shape == ()
