"""The ports of PyTorch's and Keras's optimizers, without PyTorch and Keras.

What they compute is compared with recorded trajectories; what they import is made by hand here.
`test_interop_live.py` does both against the libraries themselves.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import trajectories

import adaptive_jax as aj
from adaptive_jax.interop import keras, torch

RECORDED = np.load(Path(__file__).parents[1] / "data" / "trajectories.npz")
SETTINGS = json.loads(str(RECORDED["settings"]))
OPTIMIZERS = [
    (library, name) for library, (_, names) in trajectories.LIBRARIES.items() for name in names
]


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("library", "name"), OPTIMIZERS)
def test_replays_what_was_recorded(library, name, dtype):
    expected = RECORDED[f"{library} {name} {dtype}"]
    first = trajectories.problem(dtype)[1]
    for settings, theirs in zip(SETTINGS[f"{library} {name}"], expected, strict=True):
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        ours = trajectories.ours(library, name, settings, dtype)[RECORDED["steps"]]
        tolerance = trajectories.tolerance(library, settings, dtype)
        assert trajectories.error(ours, theirs, first) <= tolerance, settings


def test_the_recorded_settings_are_those_that_are_drawn_now():
    for library, (draw, names) in trajectories.LIBRARIES.items():
        for name in names:
            drawn = json.loads(json.dumps([draw(name, index) for index in range(0, 100, 10)]))
            assert SETTINGS[f"{library} {name}"] == drawn


@pytest.mark.parametrize("library", ["torch", "keras"])
def test_importing_needs_neither_library(library):
    code = (
        f"import sys; sys.modules['{library}'] = None; import adaptive_jax as aj; "
        f"aj.interop.{library}.adam(1e-3)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("library", "name"), OPTIMIZERS)
def test_repr_is_the_call(library, name):
    tx = getattr(getattr(aj.interop, library), name)()
    assert repr(eval(repr(tx), {"torch": torch, "keras": keras})) == repr(tx)


def test_hyperparameters_are_data():
    rates = jnp.array([0.1, 0.2])
    params = {"w": jnp.ones(3)}

    def updates_of(tx):
        return tx.update(params, tx.init(params), params)[0]["w"]

    for factory in (torch.adamw, keras.adamw):
        many = jax.vmap(updates_of)(jax.vmap(factory)(rates))
        alone = [updates_of(factory(float(rate))) for rate in rates]
        np.testing.assert_allclose(many, alone, rtol=1e-6)


def test_another_value_compiles_nothing_again():
    update = jax.jit(lambda tx, grads, state, params: tx.update(grads, state, params))
    params = {"w": jnp.ones(3)}
    for clip in (0.5, 1.0, 2.0):
        tx = keras.adam(clipnorm=clip, epsilon=clip * 1e-7, weight_decay=clip)
        update(tx, params, tx.init(params), params)
    assert update._cache_size() == 1


def test_mask_keeps_an_l2_penalty_off():
    params = {"w": jnp.ones(2), "b": jnp.ones(2)}
    tx = torch.sgd(lr=1.0, weight_decay=0.5, mask={"w": True, "b": False})
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_array_equal(updates["w"], -0.5)
    np.testing.assert_array_equal(updates["b"], 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: torch.adam([jnp.ones(2)]), r"lr is a list with 1 leaves in torch\.adam"),
        (lambda: torch.adam([jnp.ones(2)], lr=0.1), r"torch\.adam: multiple values .* no parameters"),
        (lambda: torch.adam(lr=-1.0), r"lr=-1.0 is out of range in torch\.adam"),
        (lambda: torch.adam(lr=None), r"lr=None is out of place in torch\.adam"),
        (lambda: torch.adam(betas=0.9), r"betas=0.9 is out of place in torch\.adam.*2 numbers"),
        (lambda: torch.adam(betas=(0.9, 1.0)), r"betas\[1\]=1.0 is out of range"),
        (lambda: torch.rmsprop(alpha=1.5), r"alpha=1.5 is out of range in torch\.rmsprop"),
        (lambda: torch.adam(amsgrad="yes"), r"amsgrad='yes' is not known"),
        (lambda: torch.adam(learning_rate=1.0), "unexpected keyword argument 'learning_rate'"),
        (lambda: torch.sgd(nesterov=True), "nesterov=True needs a momentum and no dampening"),
        (lambda: torch.adam(betas=(jnp.array([0.9]), 0.999)), r"betas\[0\] has shape \(1,\) in torch"),
        (lambda: torch.adam(betas=np.array([0.9, 0.99, 0.999])), "betas=.* is out of place.*2 numbers"),
        (lambda: torch.sgd(lr=lambda: 0.1), r"lr=<lambda> in torch\.sgd cannot be called with the number"),
        (lambda: keras.adam(lambda: 0.1), r"learning_rate=<lambda> in keras\.adam .*lambda count: …"),
        (lambda: keras.adam(beta_1=lambda: 0.9), r"beta_1=<lambda> in keras\.adam cannot be called"),
        (lambda: keras.adam(beta_1=-0.1), r"beta_1=-0.1 is out of range in keras\.adam"),
        (lambda: keras.adam(epsilon=None), r"epsilon=None is out of place in keras\.adam"),
        (lambda: keras.adam(clipnorm=1.0, clipvalue=1.0), "only one of clipnorm, clipvalue"),
        (lambda: keras.adam(use_ema=True), "use_ema=True is no part of an optimizer here"),
        (lambda: keras.sgd(gradient_accumulation_steps=4), "wrap the optimizer in optax.MultiSteps"),
        (lambda: keras.sgd(loss_scale_factor=2.0), "loss_scale_factor=2.0 is no part"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_by_the_name_that_they_were_given_under(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_two_betas_may_be_an_array():
    expected = repr(torch.adam(betas=(0.5, 0.75)))
    assert repr(torch.adam(betas=np.array([0.5, 0.75]))) == expected
    assert repr(torch.adam(betas=[0.5, np.array(0.75)])) == expected
    assert repr(torch.adam(betas=jnp.array([0.5, 0.75]))) == expected


# ---------------------------------------------------------------------------- match

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


# ---------------------------------------------------------------------------- PyTorch's state

PARAMS = {"dense": {"kernel": np.zeros((3, 2), np.float32), "bias": np.zeros(2, np.float32)}}
MAPPING = {"dense.weight": ("dense/kernel", (1, 0)), "dense.bias": "dense/bias"}


def adam_group(**changes):
    group = {
        "lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False,
        "maximize": False, "foreach": None, "capturable": False, "differentiable": False,
        "fused": None, "decoupled_weight_decay": False, "params": [0, 1],
    }  # fmt: skip
    return {**group, **changes}


def adam_entries(shape, step=7.0, **changes):
    entries = {
        "step": np.array(step),
        "exp_avg": np.full(shape, 0.25),
        "exp_avg_sq": np.full(shape, 0.5),
    }
    return {**entries, **changes}


def saved_adam(group=None, **changes):
    state = {0: adam_entries((2, 3)), 1: adam_entries((2,))}
    state[1].update(changes)
    return {"state": state, "param_groups": [group or adam_group()]}


def test_import_places_transposes_and_counts():
    saved = saved_adam()
    saved["state"][0]["exp_avg"] = np.arange(6.0).reshape(2, 3)
    state = torch.import_state(torch.adam(lr=optax.constant_schedule(0.1)), PARAMS, saved, MAPPING)
    assert jax.tree.structure(state) == jax.tree.structure(
        torch.adam(lr=optax.constant_schedule(0.1)).init(PARAMS)
    )
    moments, rate = state
    assert moments.count == rate.count == 7
    assert moments.mu["dense"]["kernel"].dtype == jnp.float32
    np.testing.assert_array_equal(moments.mu["dense"]["kernel"], np.arange(6.0).reshape(2, 3).T)
    np.testing.assert_array_equal(moments.nu["dense"]["bias"], 0.5)


def test_import_into_a_chain():
    tx = aj.chain(aj.clip_by_global_norm(1.0), torch.adam(lr=0.1), optax.identity())
    state = torch.import_state(tx, PARAMS, saved_adam(), MAPPING)
    assert state[1][0].count == 7
    tx.update(PARAMS, state, PARAMS)
    with pytest.raises(TypeError, match=r"the chain holds .*, whose state no saved run has"):
        torch.import_state(
            aj.chain(torch.adam(lr=0.1), optax.trace(0.9)), PARAMS, saved_adam(), MAPPING
        )
    with pytest.raises(TypeError, match=r"expected one optimizer of adaptive_jax\.interop\.torch"):
        torch.import_state(aj.adam(0.1), PARAMS, saved_adam(), MAPPING)


def test_the_names_in_the_groups_place_the_parameters():
    group = adam_group(param_names=["dense.weight", "dense.bias"])
    state, _ = torch.import_state(torch.adam(lr=0.1), PARAMS, saved_adam(group))
    assert state.mu["dense"]["kernel"].shape == (3, 2)
    mapping = {"dense.weight": ("dense/kernel", (1, 0)), "dense.b": "dense/bias"}
    with pytest.raises(ValueError, match=r"the same parameters: dense.b, dense.bias"):
        torch.import_state(torch.adam(lr=0.1), PARAMS, saved_adam(group), mapping)


def test_a_list_of_parameters_is_in_pytorchs_order():
    params = [np.zeros((2, 3)), np.zeros(2)]
    state, _ = torch.import_state(torch.adam(lr=0.1), params, saved_adam())
    assert [leaf.shape for leaf in state.mu] == [(2, 3), (2,)]
    with pytest.raises(ValueError, match="params has 1 arrays, but 2 were saved"):
        torch.import_state(torch.adam(lr=0.1), params[:1], saved_adam())


def test_a_dict_of_equal_shapes_is_refused():
    """JAX sorts the keys of a dict: nothing would tell that two moments changed places."""
    saved = {"state": {0: adam_entries(2), 1: adam_entries(2)}, "param_groups": [adam_group()]}
    with pytest.raises(ValueError, match=r"names and shapes do not decide.*mapping="):
        torch.import_state(torch.adam(lr=0.1), {"b": np.zeros(2), "a": np.zeros(2)}, saved)


def test_groups_that_differ_in_weight_decay_are_one_optimizer_with_a_mask():
    groups = [adam_group(weight_decay=0.1, params=[0]), adam_group(params=[1])]
    saved = {**saved_adam(), "param_groups": groups}
    mask = {"dense": {"kernel": True, "bias": False}}
    tx = torch.adam(lr=0.1, weight_decay=0.1, mask=mask)
    with pytest.raises(ValueError, match="saved 2 groups without the names"):
        torch.import_state(tx, PARAMS, saved, MAPPING)
    names = ["dense.weight", "dense.bias"]
    assert torch.import_state(tx, PARAMS, saved, MAPPING, names=names)[1].count == 7
    swapped = {"state": {0: adam_entries(2), 1: adam_entries((2, 3))}, "param_groups": groups[::-1]}
    with pytest.raises(ValueError, match=r"weight was saved with weight_decay=0, .* another order"):
        torch.import_state(tx, PARAMS, swapped, MAPPING, names=names)
    tx = torch.adam(lr=0.1, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"bias was saved with weight_decay=0, but .* 0.1 for it"):
        torch.import_state(tx, PARAMS, saved, MAPPING, names=names)


def test_groups_become_the_parts_of_a_partition():
    names = ["dense.weight"], ["dense.bias"]
    groups = [
        adam_group(betas=(0.5, 0.9), params=[0], param_names=names[0]),
        adam_group(lr=0.2, params=[1], param_names=names[1]),
    ]
    saved = {**saved_adam(), "param_groups": groups}
    same = {**saved, "param_groups": [{**group, "betas": (0.9, 0.999)} for group in groups]}
    with pytest.raises(ValueError, match=r"lr=0.1 and dense.bias with lr=0.2: give a dict"):
        torch.import_state(torch.adam(), PARAMS, same, MAPPING)
    optimizers = {"weights": torch.adam(lr=0.1, betas=(0.5, 0.9)), "rest": torch.adam(lr=0.2)}
    labels = {"dense": {"kernel": "weights", "bias": "rest"}}
    state = torch.import_state(optimizers, PARAMS, saved, MAPPING, param_labels=labels)
    partition = optax.partition(optimizers, labels)
    assert jax.tree.structure(state) == jax.tree.structure(partition.init(PARAMS))
    grads = jax.tree.map(np.ones_like, PARAMS)
    updates, _ = partition.update(grads, state, PARAMS)
    alone = torch.import_state(
        torch.adam(lr=0.2), {"bias": PARAMS["dense"]["bias"]},
        {"state": {0: adam_entries(2)}, "param_groups": [adam_group(params=[0])]},
    )  # fmt: skip
    expected, _ = torch.adam(lr=0.2).update({"bias": np.ones(2, np.float32)}, alone)
    np.testing.assert_array_equal(updates["dense"]["bias"], expected["bias"])
    with pytest.raises(ValueError, match=r"dense.weight|parameter 0 was saved with betas"):
        torch.import_state(
            {**optimizers, "weights": torch.adam()}, PARAMS, saved, MAPPING, param_labels=labels
        )
    with pytest.raises(TypeError, match="need param_labels as well"):
        torch.import_state(optimizers, PARAMS, saved, MAPPING)
    with pytest.raises(
        ValueError, match=r"param_labels has \['rest'\], for which there is no optimizer"
    ):
        torch.import_state({"weights": torch.adam()}, PARAMS, saved, MAPPING, param_labels=labels)


@pytest.mark.parametrize(
    ("tx", "saved", "message"),
    [
        (torch.nadam(), saved_adam(), r"the group of dense.weight has \['amsgrad'\].*torch\.optim\.NAdam"),
        (torch.adamw(weight_decay=0), saved_adam(), "decoupled_weight_decay=False, but"),
        (torch.radam(), saved_adam(), r"has \['amsgrad'\]"),
        (torch.adam(amsgrad=True), saved_adam(), "was saved with amsgrad=False"),
        (torch.adam(amsgrad=True), saved_adam(adam_group(amsgrad=True)), "max_exp_avg_sq"),
        (torch.adam(), saved_adam(max_exp_avg_sq=np.ones(2)),
         r"dense.bias was saved with \['exp_avg', 'exp_avg_sq', 'max_exp_avg_sq', 'step'\]"),
        (torch.adam(betas=(0.8, 0.999)), saved_adam(), r"betas=\(0.9, 0.999\), but .*\(0.8, 0.999\)"),
        (torch.adam(), saved_adam(adam_group(warmup=3)), r"has \['warmup'\]"),
        (torch.adam(), saved_adam(step=np.array(8.0)), "numbers of steps, dense.weight 7 and dense.bias 8"),
        (torch.adam(), saved_adam(exp_avg=np.array([1.0, np.nan])), "exp_avg of dense.bias has 1 entries"),
        (torch.adam(), saved_adam(exp_avg=np.zeros(3)), r"exp_avg of dense.bias has the shape \(3,\)"),
        (torch.adam(), saved_adam(exp_avg_sq=np.array([1.0, -1.0])), "exp_avg_sq of .* has negative"),
        (torch.adam(), saved_adam(exp_avg="gone"), "exp_avg of dense.bias is .*expected an array"),
        (torch.adam(), {"exp_avg": 1}, r"expected optimizer.state_dict\(\)"),
        (torch.adam(), saved_adam(adam_group(params=[0])), r"state has entries for \[1\]"),
        (torch.adam(), {**saved_adam(), "state": {0: adam_entries((2, 3))}},
         "dense.bias was saved with nothing"),
        (jax.vmap(torch.adam)(np.ones(2)), saved_adam(), r"of the optimizer has the shape \(2,\)"),
    ],
)  # fmt: skip
def test_a_state_that_does_not_fit_is_refused(tx, saved, message):
    with pytest.raises((TypeError, ValueError), match=message):
        torch.import_state(tx, PARAMS, saved, MAPPING)


@pytest.mark.parametrize("name", ["betas", "momentum"])
def test_what_a_scheduler_has_moved_is_imported_with_its_value(name):
    """OneCycleLR moves the momentum and leaves in the group between what."""
    saved = {"betas": (0.875, 0.999), "momentum": 0.875}[name]
    moved = {name: saved, "max_momentum": 0.95, "base_momentum": 0.85, "max_lr": 1.0}
    if name == "betas":
        make, state = torch.adam, saved_adam(adam_group(**moved))
    else:
        group = {"lr": 0.1, "dampening": 0, "weight_decay": 0, "nesterov": False, "params": [0, 1]}
        make = lambda **settings: torch.sgd(**{"momentum": 0.9, **settings})  # noqa: E731
        buffers = {
            index: {"momentum_buffer": np.ones(shape)} for index, shape in ((0, (2, 3)), (1, (2,)))
        }
        state = {"state": buffers, "param_groups": [{**group, **moved}]}
    message = (
        rf"{name}=.*OneCycleLR or CyclicLR moves it between 0\.85 and 0\.95\. Import with the saved"
    )
    with pytest.raises(ValueError, match=message):
        torch.import_state(make(), PARAMS, state, MAPPING)
    imported = torch.import_state(make(**{name: saved}), PARAMS, state, MAPPING)
    make().update(PARAMS, imported, PARAMS)  # It goes on under any other.


def test_sgd_does_not_know_its_step():
    group = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0, "nesterov": False}
    saved = {
        "state": {0: {"momentum_buffer": np.ones(2)}},
        "param_groups": [{**group, "params": [0]}],
    }
    settings = {"momentum": 0.9, "dampening": 0.5}
    state = torch.import_state(torch.sgd(lr=0.1, **settings), [np.zeros(2)], saved)
    updates, _ = torch.sgd(lr=0.1, **settings).update([np.ones(2)], state)
    np.testing.assert_allclose(updates[0], -0.1 * (0.9 + 0.5), rtol=1e-6)  # Not its first step.
    scheduled = torch.sgd(lr=optax.constant_schedule(0.1), **settings)
    with pytest.raises(ValueError, match="give it as step="):
        torch.import_state(scheduled, [np.zeros(2)], saved)
    assert torch.import_state(scheduled, [np.zeros(2)], saved, step=5)[-1].count == 5
    with pytest.raises(ValueError, match="step=3 was given, but 7 steps were saved"):
        torch.import_state(torch.adam(), PARAMS, saved_adam(), MAPPING, step=3)


def test_what_was_saved_before_the_first_step_starts_afresh():
    saved = {"state": {}, "param_groups": [adam_group()]}
    state, _ = torch.import_state(torch.adam(), PARAMS, saved, MAPPING)
    assert state.count == 0


# ---------------------------------------------------------------------------- Keras's state


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
