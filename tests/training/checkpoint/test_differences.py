"""Another optimizer, or another state, is refused by name."""

from __future__ import annotations

import itertools
import json

import jax
import jax.numpy as jnp
import optax
import pytest
from resumed_runs import PARAMS, SMALL, create, goes_on, resumed

import adaptive_jax as aj
from adaptive_jax._core.transformation import member
from adaptive_jax.training import origin
from adaptive_jax.training.checkpoint import origins

ANOTHER = {
    "adamax": (optax.adam(0.1), optax.adamax(0.1), "scale_by_adam, scale, this one .* scale_by_adamax"),
    "nadam": (optax.adam(0.1), optax.nadam(0.1), "nesterov of scale_by_adam is False in the checkpoint"),
    "injected": (optax.inject_hyperparams(optax.adagrad)(0.1), optax.inject_hyperparams(optax.adamax)(0.1),
                 "inner_factory .* is adagrad in the checkpoint and adamax in the state"),
    "in optax's chain": (optax.chain(aj.adam(0.1)), optax.chain(aj.adamax(0.1)), r"is 'Adam\(.*'AdaMax\("),
    "groups": (aj.multi_steps(aj.sgd(0.1), 2), aj.multi_steps(aj.sgd(0.1), 8),
               "every_k_schedule of multi_steps is 2 in the checkpoint and 8 in the state"),
    "optax's groups": (optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
                       optax.MultiSteps(optax.sgd(0.1), 8).gradient_transformation(),
                       "every_k_schedule of MultiSteps is 2 in the checkpoint and 8 in the state"),
    "mask": (aj.adamw(0.1, mask={"w": True, "b": False}), aj.adamw(0.1, mask={"w": False, "b": True}),
             r"mask .*selects \['w'\] in the checkpoint and \['b'\] in the state"),
    "optax's mask": (optax.adamw(0.1, mask={"w": True, "b": False}),
                     optax.adamw(0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim < 2, p)),
                     r"mask\['b'\] of masked is False in the checkpoint and True in the state"),
    "climbing": (aj.interop.torch.adam(0.1), aj.interop.torch.adam(0.1, maximize=True),
                 r"made of Adam\(.*this one is of Maximize\(\), Adam\("),
    "labels": (aj.partition({"a": aj.sgd(0.1), "b": aj.sgd(0.1)}, {"w": "a", "b": "b"}),
               aj.partition({"a": aj.sgd(0.1), "b": aj.sgd(0.1)}, [("b", "a"), ("w", "b")]),
               r"param_labels\['b'\] of partition is 'b' in the checkpoint and 'a' in the state"),
    "masked": (aj.masked(aj.sgd(0.1), {"w": True, "b": False}), aj.masked(aj.sgd(0.1), True),
               r"mask\['b'\] of masked is False in the checkpoint and True in the state"),
    "wrapper": (aj.sgd(0.1), aj.skip_nonfinite(aj.sgd(0.1)), "made of transform, this one is of skip_nonf"),
}  # fmt: skip


@pytest.mark.parametrize("name", ANOTHER)
def test_another_optimizer_of_equal_arrays_is_refused_by_name(name, tmp_path):
    old, new, message = ANOTHER[name]
    with pytest.raises(ValueError, match=message) as refused:
        resumed(tmp_path, old, new, steps=0, hyperparameters="given")
    # The message's advice.
    state = aj.restore_checkpoint(tmp_path, aj.TrainState.create(SMALL, old))
    assert "state.replace(tx=tx, opt_state=tx.init(state.params))" in str(refused.value)
    goes_on(state.replace(tx=new, opt_state=new.init(state.params)))
    assert "state, carried = aj.carry_state(state, tx)" in str(refused.value)
    goes_on(aj.carry_state(state, new)[0])


FACTORIES = [
    "adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw", "adamw", "adan",
    "amsgrad", "fromage", "lamb", "lars", "lion", "nadam", "nadamw", "novograd", "polyak_sgd", "radam",
    "rmsprop", "sgd", "sign_sgd", "sm3", "yogi",
]  # fmt: skip


@jax.numpy_dtype_promotion("standard")
def test_each_optimizer_of_optax_is_itself_and_no_other():
    def origin_of(name):
        tx = getattr(optax, name)(0.1)
        state = aj.TrainState(0, SMALL, jax.eval_shape(tx.init, SMALL), member(tx, "a test"))
        return json.loads(json.dumps(origin.of(state)))

    every = {name: origin_of(name) for name in FACTORIES}
    for name, first in every.items():
        assert origins.differences(first, origin_of(name)) == ([], [])
    for (one, first), (other, second) in itertools.combinations(every.items(), 2):
        assert origins.differences(first, second)[0], (one, other)


def test_a_mask_is_what_it_selects(tmp_path):
    tree = {"w": True, "b": False}
    function = lambda params: jax.tree.map(lambda x: x.ndim == 2, params)  # noqa: E731
    for name, adamw in (("ours", aj.adamw), ("theirs", optax.adamw)):
        resumed(tmp_path / name, adamw(0.1, mask=tree), adamw(0.1, mask=function), steps=0)


def test_another_optimizer_is_told_by_its_state_where_names_are_of_another_version(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(optax, "__version__", "0.0")
    resumed(tmp_path, optax.adam(0.1), optax.adam(0.1), steps=0)
    monkeypatch.undo()
    aj.restore_checkpoint(
        tmp_path, aj.TrainState.create(SMALL, optax.nadam(0.1))
    )  # Not to be told.
    message = r"\.opt_state\[0\] is ScaleByAdamState in the checkpoint and ScaleByBeliefState"
    with pytest.raises(ValueError, match=message):
        aj.restore_checkpoint(tmp_path, aj.TrainState.create(SMALL, optax.adabelief(0.1)))


@pytest.mark.parametrize(
    ("tx", "params", "message"),
    [
        (aj.adamax(0.1), PARAMS, r"made of Adam\(.*this one is of AdaMax"),
        (
            aj.nadam(0.1),
            PARAMS,
            r"made of Adam\(nesterov=False.*this one is of Adam\(nesterov=True",
        ),
        (aj.sgd(0.1), PARAMS, r"made of Adam\("),
        (
            aj.adam(0.1),
            {**PARAMS, "w": jnp.ones((4, 8))},
            r"\.params\['w'\] is float32\[8, 4\] in the checkpoint and float32\[4, 8\] in the state",
        ),
        (
            aj.adam(0.1, mu_dtype=jnp.bfloat16),
            PARAMS,
            r"mu\['w'\] is float32\[8, 4\] in the checkpoint and bfloat16\[8, 4\] in the state",
        ),
        (
            aj.adam(0.1, storage=aj.Blocks(min_size=0)),
            PARAMS,
            r"the storage of mu is Float\(.* in the checkpoint and Blocks\(.* in the state; .*"
            r"mu\['a/b'\]\[0\]\.codes is missing in the checkpoint and int8\[2\] in the state",
        ),
        (
            aj.adam(0.1),
            {**PARAMS, "new": jnp.ones(1)},
            r"\['new'\] is missing in the checkpoint and float32\[1\] in the state",
        ),
    ],
    ids=["rule", "option", "state", "shape", "dtype", "storage", "entry"],
)
def test_what_does_not_fit_is_named(tx, params, message, tmp_path):
    aj.save_checkpoint(tmp_path, create(aj.adam(0.1)))
    with pytest.raises(ValueError, match=message):
        aj.restore_checkpoint(tmp_path, create(tx, params))
