"""States as PyTorch saves them, made by hand.

`test_interop_live.py` does the same against the libraries themselves.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from interop.saved import MAPPING, PARAMS

import adaptive_jax as aj
from adaptive_jax.interop import torch


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
