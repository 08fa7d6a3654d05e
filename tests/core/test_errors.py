"""Bad input: every error names the argument or the leaf, what came, and what was expected."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptive_jax as aj

PARAMS = {"layer": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: aj.adam(-1e-3), r"learning_rate=-0.001 is out of range .* finite number >= 0"),
        (lambda: aj.sgd(-0.1), r"aj.scale_by_learning_rate\(0.1, flip_sign=False\)"),
        (lambda: aj.clip_by_global_norm(float("nan")), r"max_norm=nan is out of range"),
        (lambda: aj.adam(float("nan")), r"learning_rate=nan is out of range"),
        (lambda: aj.adam(float("inf")), r"learning_rate=inf is out of range"),
        (lambda: aj.adam(1e-3, b1=1.0), r"b1=1.0 is out of range in Adam: .* a number in \[0, 1\)"),
        (lambda: aj.adam(1e-3, b2=-0.1), r"b2=-0.1 is out of range"),
        (lambda: aj.adam(1e-3, eps=-1e-8), r"eps=-1e-08 is out of range"),
        (lambda: aj.sgd(0.1, momentum=1.5), r"decay=1.5 is out of range in Trace"),
        (lambda: aj.rmsprop(0.1, decay=1), r"decay=1 is out of range"),
        (lambda: aj.adagrad(0.1, initial_accumulator_value=-1), r"initial_accumulator_value=-1"),
        (lambda: aj.adamw(0.1, weight_decay=-1), r"weight_decay=-1 is out of range"),
        (lambda: aj.clip_by_global_norm(-1.0), r"max_norm=-1.0 is out of range"),
        (lambda: aj.adam(jnp.ones(3)), r"learning_rate has shape \(3,\) .* jax.vmap"),
        (lambda: aj.sgd(0.1, dampening=0.5), r"dampening=0.5 needs a momentum"),
        (lambda: aj.sgd(0.1, velocity="updates"), r"velocity='updates' is not known: .*'steps'"),
        (lambda: aj.amsgrad(0.1, maximum_of="nu"), r"maximum_of='nu' is not known"),
        (lambda: aj.amsgrad(0.1, eps_hat=True), r'eps_hat=True needs maximum_of="raw"'),
        (lambda: aj.adam(0.1, storage="int3"), r"storage='int3' is not known: .*'float32'"),
        (lambda: aj.adam(0.1, storage={"my": "float32"}), r"slots \['my'\].*\['mu', 'nu'\]"),
        (lambda: aj.adam(0.1, mu_dtype="int8"), r"mu cannot be kept in int8"),
        (lambda: aj.adam(0.1, mu_dtype="float16", storage="float32"), r"two ways to say the same"),
        (lambda: aj.transform(), r"at least one rule"),
        (
            lambda: aj.adadelta(mask={"w": True}, weight_decay_mask={"w": True}),
            "mask and weight_decay_mask are two names",
        ),
    ],
)
def test_values_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: aj.adam("0.1"), r"learning_rate='0.1' is a str"),
        (lambda: aj.adam(True), r"learning_rate=True is a bool"),
        (lambda: aj.adam(0.1j), r"learning_rate=0.1j is a complex"),
        (lambda: aj.adam(jnp.array(1j)), r"learning_rate has dtype complex64"),
        (lambda: aj.adam(0.1, storage=3), r"storage=3 is a int"),
        (lambda: aj.transform(aj.adam(0.1)), r"transform takes rules, got adam\("),
        (lambda: aj.chain(aj.LearningRate(0.1)), r"chain takes optax gradient transformations"),
        (lambda: aj.adamw(0.1, mask={"w": 1.0}), r"mask\['w'\] is .* tree of True and False"),
        (lambda: aj.adam(1e-3, nesterof=True), r"no argument 'nesterof': here it is nesterov"),
        (lambda: aj.adam(lr=1e-3), r"adam takes .* 'lr': here it is learning_rate.*interop.torch"),
        (lambda: aj.adam(1e-3, betas=(0.9, 0.99)), r"'betas': here it is b1 and b2"),
        (lambda: aj.adam(1e-3, momentum=0.9), r"'momentum': here it is b1"),
        (lambda: aj.rmsprop(1e-3, alpha=0.9), r"rmsprop takes .*'alpha': here it is decay"),
        (lambda: aj.adamw(1e-3, epsilon=1e-7), r"'epsilon': here it is eps.*interop.keras"),
        (lambda: aj.adam(1e-3, amsgrad=True), r"'amsgrad': it is .* aj.amsgrad"),
        (lambda: aj.scale_by_adam(learning_rate=1.0), r"it takes b1, b2, eps, eps_root"),
        (lambda: aj.chain([aj.clip(1.0), aj.sgd(0.1)]), r"type list. .*aj.chain\(\*members\)"),
        (
            lambda: aj.adagrad(0.1, initial_accumulator_value=optax.constant_schedule(0.1)),
            r"initial_accumulator_value=\S+ is a schedule in AdaGrad: .* before the first step",
        ),
        (
            lambda: aj.rmsprop(0.1, initial_scale=lambda n: 0.1),
            r"initial_scale=<lambda> is a sched",
        ),
    ],
)
def test_values_of_the_wrong_type(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: aj.adam(None), "learning_rate=None is out of place in LearningRate"),
        (lambda: aj.adam(0.1, b1=None), r"b1=None is out of place in Adam: it must be a number in"),
        (lambda: aj.adam(0.1, eps=None), "eps=None is out of place in Adam"),
        (lambda: aj.clip_by_global_norm(None), "max_norm=None is out of place in ClipByGlobalNorm"),
    ],
)
def test_none_for_what_is_needed(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_many_optimizers_used_as_one():
    many = jax.vmap(aj.adam)(jnp.array([0.1, 0.2, 0.3]))
    with pytest.raises(ValueError, match=r"has the shape \(3,\) in .* under jax.vmap"):
        many.update(jnp.ones(3), aj.adam(0.1).init(jnp.ones(3)))


def test_a_rule_that_returns_a_direction_alone():
    @dataclass(frozen=True)
    class Half(aj.Rule):
        def update(self, grad, slots, param, ctx):
            return grad / 2

    with pytest.raises(ValueError, match=r"Half.update must return \(direction, slots\)"):
        aj.transform(Half()).update(jnp.ones(2), optax.EmptyState())


def test_a_rule_that_is_no_frozen_dataclass():
    @dataclass
    class Mutable(aj.Rule):
        decay: aj.Hyper = 0.9

    with pytest.raises(TypeError, match="Mutable is not a frozen dataclass"):
        aj.transform(Mutable())


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (jnp.arange(3), r"params\['w'\] is int32\[3\]: .* floating-point arrays"),
        (3, r"params\['w'\] is int32\[\]"),
        (np.arange(3), r"params\['w'\] is int64\[3\]"),
        (jnp.ones(2, bool), r"params\['w'\] is bool\[2\]"),
        ("relu", r"params\['w'\] is 'relu' of type str"),
        (jax.random.key(0), r"params\['w'\] is key<fry>\[\]"),
        (jax.nn.relu, r"params\['w'\] is .* eqx.combine"),
    ],
)
@pytest.mark.parametrize("factory", [aj.adam, aj.sgd])
def test_params_that_are_no_floats(factory, leaf, message):
    with pytest.raises(TypeError, match=message):
        factory(0.1).init({"w": leaf})
    tx = factory(0.1)
    with pytest.raises(TypeError, match=message.replace("params", "gradients")):
        tx.update({"w": leaf}, tx.init({"w": jnp.ones(3)}))


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit])
class TestMismatches:
    tx = aj.adamw(0.1)

    def update(self, jit, gradients, state=None, params=PARAMS):
        state = self.tx.init(PARAMS) if state is None else state
        return jit(self.tx.update)(gradients, state, params)

    def test_structure(self, jit):
        with pytest.raises(
            ValueError, match=r"differ in structure: .*only params have \['layer'\]\['b'\]"
        ):
            self.update(jit, {"layer": {"w": PARAMS["layer"]["w"]}})
        with pytest.raises(ValueError, match=r"only the gradients have \['layer'\]\['c'\]"):
            self.update(jit, {"layer": {**PARAMS["layer"], "c": jnp.ones(2)}})
        with pytest.raises(ValueError, match=r"differ in structure"):
            self.update(jit, [PARAMS["layer"]["b"], PARAMS["layer"]["w"]])

    def test_shape(self, jit):
        wrong = {"layer": {"w": jnp.ones((3, 2)), "b": jnp.ones(3)}}
        with pytest.raises(
            ValueError,
            match=r"gradients\['layer'\]\['w'\] is float32\[3, 2\], but params has float32\[2, 3\]",
        ):
            self.update(jit, wrong)
        with pytest.raises(ValueError, match=r"but the state's mu has float32\[2, 3\] there"):
            self.update(jit, wrong, params=wrong)

    def test_dtype(self, jit):
        wrong = jax.tree.map(lambda x: x.astype(jnp.complex64), PARAMS)
        with pytest.raises(ValueError, match=r"\['b'\] is complex64\[3\], .* complex gradient"):
            self.update(jit, wrong)
        with pytest.raises(TypeError, match=r"gradients\['layer'\]\['b'\] is int32\[3\]"):
            self.update(jit, jax.tree.map(lambda x: x.astype(int), PARAMS))

    def test_no_params(self, jit):
        with pytest.raises(ValueError, match=r"WeightDecay.*needs the parameters: call update\("):
            self.update(jit, PARAMS, params=None)

    def test_state_of_another_optimizer(self, jit):
        for other in (aj.sgd(0.1, momentum=0.9), aj.amsgrad(0.1), optax.adabelief(0.1)):
            with pytest.raises(
                ValueError,
                match=r"state was made by another optimizer.*expected \(ScaleByAdamState\(",
            ):
                self.update(jit, PARAMS, other.init(PARAMS))
        with pytest.raises(ValueError, match=r"got a dict with the keys \['a'\]"):
            self.update(jit, PARAMS, {"a": 1.0})

    def test_state_of_other_params(self, jit):
        state = self.tx.init({"layer": {"w": None, "b": jnp.ones(3)}})
        with pytest.raises(
            ValueError, match=r"\['w'\] is float32\[2, 3\], but the state's mu is None"
        ):
            self.update(jit, PARAMS, state)

    def test_mask(self, jit):
        for mask in ({"layer": {"w": True}}, lambda _: {"layer": {"w": True}}):
            tx = aj.adamw(0.1, mask=mask)
            with pytest.raises(ValueError, match=r"the gradients and the mask differ in structure"):
                jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)


def test_state_of_a_chain():
    tx = aj.chain(aj.clip_by_global_norm(1.0), aj.adam(0.1))
    with pytest.raises(
        ValueError, match=r"chain of 2 is a tuple of 2 states, got ScaleByAdamState"
    ):
        tx.update(PARAMS, aj.scale_by_adam().init(PARAMS))


def test_complex_parameters_in_a_real_slot():
    params = jnp.ones(2, jnp.complex64)
    tx = aj.adam(0.1, mu_dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match=r"complex64\[2\], but the state's mu has bfloat16\[2\]"):
        tx.update(params, tx.init(params))


def test_a_schedule_that_returns_an_array():
    tx = aj.sgd(lambda count: jnp.ones(3))
    with pytest.raises(
        ValueError, match=r"schedule learning_rate=<lambda> .* returned float32\[3\]"
    ):
        tx.update(PARAMS, tx.init(PARAMS))


def test_rules_that_return_something_else():
    @dataclass(frozen=True)
    class Forgetful(aj.Rule):
        slots = {"mu": aj.Slot()}

        def update(self, grad, slots, param, ctx):
            return grad, {}

    @dataclass(frozen=True)
    class Shrinking(aj.Rule):
        def update(self, grad, slots, param, ctx):
            return grad.sum(), {}

    @dataclass(frozen=True)
    class Misnamed(aj.Rule):
        slots = {"mu": aj.Slot()}

        def update(self, grad, slots, param, ctx):
            return grad, {"mu": ctx.store("nu", grad)}

    for rule, message in [
        (Forgetful(), r"Forgetful.update must return .* slots \['mu'\], got \[\]"),
        (Shrinking(), r"Shrinking.update returned for direction float32\[\]"),
        (Misnamed(), r"no slot 'nu': its slots are \['mu'\]"),
    ]:
        tx = aj.transform(rule)
        with pytest.raises(ValueError, match=message):
            tx.update(PARAMS, tx.init(PARAMS))


def test_rules_whose_update_cannot_run():
    @dataclass(frozen=True)
    class Undeclared(aj.Rule):
        def update(self, grad, slots, param, ctx):
            return grad + slots["mu"], {}

    @dataclass(frozen=True)
    class Branching(aj.Rule):
        counts_steps = True

        def update(self, grad, slots, param, ctx):
            return (2 * grad if ctx.step == 1 else grad), {}

    @dataclass(frozen=True)
    class OnTheHost(aj.Rule):
        def update(self, grad, slots, param, ctx):
            return np.sign(grad), {}

    @dataclass(frozen=True)
    class Short(aj.Rule):
        def update(self, grad, slots, param):
            return grad, {}

    for rule, kind, message in [
        (
            Undeclared(),
            ValueError,
            r"Undeclared.update asks for 'mu', and the slots are \[\]: decl",
        ),
        (Branching(), TypeError, "Branching.update branches on a number .*: write jnp.where"),
        (OnTheHost(), TypeError, "OnTheHost.update gives NumPy an array .*: write jnp for np"),
    ]:
        tx = aj.transform(rule)
        with pytest.raises(kind, match=message):
            tx.update(PARAMS, tx.init(PARAMS))
    with pytest.raises(
        TypeError, match=r"Short.update takes \(self, grad, slots, param\): it must"
    ):
        aj.transform(Short())


def test_an_error_leaves_the_state_alone():
    tx = aj.adam(0.1)
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match="shape"):
        tx.update(jax.tree.map(lambda x: x[:1], PARAMS), state)
    updates, _ = tx.update(PARAMS, state)
    assert np.all(np.isfinite(updates["layer"]["w"]))


# ---------------------------------------------------------------------------- functions of users


def cosine_in_numpy(count):
    return 1e-2 * (1 + np.cos(np.pi * (count % 100) / 100))


SCHEDULES = {
    "branch": (lambda n: 0.1 if n < 100 else 0.01, "branches on .*: write jnp.where"),
    "NumPy": (cosine_in_numpy, "gives NumPy .*: write jnp for np"),
    "np.interp": (lambda n: np.interp(n, [0, 10], [0.1, 0.0]), "gives NumPy .*: write jnp for np"),
    "math": (lambda n: 0.1 * math.exp(-n / 100), "makes a Python number .*: write jnp for math"),
    "table": (lambda n: [0.1, 0.05, 0.01][n], r"looks something up .*: write jnp.array\(table\)"),
}
every_schedule = pytest.mark.parametrize(("schedule", "message"), SCHEDULES.values(), ids=SCHEDULES)


@jax.numpy_dtype_promotion("standard")
@every_schedule
def test_schedules_that_need_the_value_of_the_count(schedule, message):
    for tx, where in (
        (aj.adam(schedule), "learning_rate"),
        (aj.adam(0.1, b1=schedule), "b1"),
        (aj.chain(aj.clip(1.0), aj.sgd(schedule, momentum=0.9)), "learning_rate"),
    ):
        for update in (tx.update, jax.jit(tx.update)):
            named = rf"the schedule {where}=({schedule.__name__}) in (LearningRate|Adam) {message}"
            with pytest.raises(TypeError, match=named):
                update(PARAMS, tx.init(PARAMS))


@jax.numpy_dtype_promotion("standard")
@every_schedule
def test_counts_of_mini_steps_that_need_the_value_of_the_count(schedule, message):
    tx = aj.multi_steps(aj.sgd(0.1), schedule)
    with pytest.raises(TypeError, match=f"every_k_schedule={schedule.__name__} .*{message}"):
        jax.jit(tx.update)(PARAMS, tx.init(PARAMS))


@jax.numpy_dtype_promotion("standard")
def test_what_is_advised_for_schedules_works():
    table = jnp.array([0.1, 0.05, 0.01])
    remedies = {
        "branch": lambda n: jnp.where(n < 100, 0.1, 0.01),
        "NumPy": lambda n: 1e-2 * (1 + jnp.cos(jnp.pi * (n % 100) / 100)),
        "np.interp": lambda n: jnp.interp(
            n.astype(jnp.float32), jnp.array([0.0, 10.0]), jnp.array([0.1, 0.0])
        ),
        "math": lambda n: 0.1 * jnp.exp(-n / 100),
        "table": lambda n: table[n],
    }
    for name, remedy in remedies.items():
        tx = aj.sgd(remedy)
        updates, _ = tx.update(jnp.ones(()), tx.init(jnp.ones(())))
        np.testing.assert_allclose(updates, -SCHEDULES[name][0](0), rtol=1e-6)


def test_masks_that_need_the_values_of_parameters():
    params = {"w": jnp.ones(3)}
    for mask, message in (
        (
            lambda p: jax.tree.map(lambda x: x.sum() > 0, p),
            r"mask\['w'\] is bool\[\] and depends on",
        ),
        (lambda p: {"w": bool(p["w"].sum() > 0)}, "mask=<lambda> branches on a value of the param"),
    ):
        tx = aj.adamw(0.1, mask=mask)
        with pytest.raises(TypeError, match=message):
            tx.update(params, tx.init(params), params)


# ---------------------------------------------------------------------------- arguments in disorder


WRAPPED = {
    "adam": aj.adam(0.1),
    "adamw": aj.adamw(0.1),
    "sgd with momentum": aj.sgd(0.1, momentum=0.9),
    "chain": aj.chain(aj.clip_by_global_norm(1.0), aj.adam(0.1)),
    "skip_nonfinite": aj.skip_nonfinite(aj.adam(0.1)),
    "multi_steps": aj.multi_steps(aj.adam(0.1), 2),
    "compensate": aj.compensate(aj.adam(0.1)),
    "diagnose": aj.diagnose(aj.adam(0.1)),
    "partition": aj.partition({"a": aj.adam(0.1), "b": None}, {"layer": {"w": "a", "b": "b"}}),
    "masked": aj.masked(aj.adam(0.1), {"layer": {"w": True, "b": False}}),
}


@pytest.mark.parametrize("tx", WRAPPED.values(), ids=WRAPPED)
def test_the_order_of_the_arguments(tx):
    state = tx.init(PARAMS)
    for wrong in ((PARAMS, PARAMS, state), (state, PARAMS, PARAMS)):
        with pytest.raises(
            (TypeError, ValueError), match=r"order is update\(gradients, state, params"
        ):
            tx.update(*wrong)


def test_parameters_in_the_place_of_the_gradients():
    """Where only some are trained: the state has None for the others."""
    tx, gradients = aj.adam(0.1), {"layer": {**PARAMS["layer"], "w": None}}
    for params, kind, message in (
        (PARAMS, ValueError, "state's mu is None there.* order is update"),
        ({"layer": {"b": jnp.ones(3), "w": "fixed"}}, TypeError, r"'fixed' .* order is update"),
    ):
        with pytest.raises(kind, match=message):
            tx.update(params, tx.init(gradients), gradients)


def test_multi_steps_with_gradients_of_another_shape():
    tx = aj.multi_steps(aj.adam(0.1), 2)
    state = tx.init(PARAMS)
    for bad, message in (
        (
            {"layer": {"w": jnp.ones((1, 3)), "b": jnp.ones(3)}},
            r"\['w'\] is float32\[1, 3\].*\[2, 3\]",
        ),
        ({"layer": {"w": jnp.ones((2, 3))}}, r"only the state's acc_grads have \['layer'\]\['b'\]"),
        ({}, "differ in structure"),
    ):
        with pytest.raises(ValueError, match=message):
            tx.update(bad, state, PARAMS)
    # One gradient for each of eight examples: what makes one of them comes before.
    aggregate = optax.contrib.differentially_private_aggregate(1.0, 0.1, jax.random.key(0))
    gradients = jax.tree.map(lambda x: jnp.ones((8, *x.shape)), PARAMS)
    tx = aj.multi_steps(aj.chain(aggregate, aj.adam(0.1)), 2)
    with pytest.raises(ValueError, match=r"aj.chain\(aggregate, aj.multi_steps\(tx, k\)\)"):
        tx.update(gradients, tx.init(PARAMS), PARAMS)
    tx = aj.chain(aggregate, aj.multi_steps(aj.adam(0.1), 2))
    updates, _ = tx.update(gradients, tx.init(PARAMS), PARAMS)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, PARAMS)


def test_sparse_arrays():
    from jax.experimental.sparse import BCOO

    table = jnp.ones((10, 4))
    gradient = BCOO.fromdense(jnp.zeros((10, 4)).at[2].set(1.0))
    for tx in (aj.sgd(0.1), aj.adam(0.1), aj.chain(aj.clip(1.0), aj.adam(0.1))):
        with pytest.raises(
            TypeError, match=r"gradients is a sparse array, BCOO\[10, 4\]: .*todense"
        ):
            tx.update(gradient, tx.init(table), table)
        tx.update(gradient.todense(), tx.init(table), table)
    matrix = BCOO.fromdense(jnp.eye(4))
    with pytest.raises(
        TypeError, match=r"params\['a'\] is a sparse array, BCOO\[4, 4\]: .*matrix.data"
    ):
        aj.TrainState.create({"a": matrix}, aj.adam(0.1))
    # As advised: the numbers are trained, the places are not.
    loss = lambda p, x: jnp.sum((BCOO((p["a"], matrix.indices), shape=matrix.shape) @ x) ** 2)  # noqa: E731
    state = aj.TrainState.create({"a": matrix.data}, aj.sgd(0.1))
    state, _ = aj.train_step(loss)(state, jnp.ones(4))
    np.testing.assert_allclose(state.params["a"], 0.8, rtol=1e-6)


# ---------------------------------------------------------------------------- what works as advised


def test_climbing():
    ascend = aj.scale_by_learning_rate(0.1, flip_sign=False)
    for climb, descend in (
        (ascend, aj.sgd(0.1)),
        (aj.chain(aj.scale_by_adam(), ascend), aj.adam(0.1)),
    ):
        up, _ = climb.update(PARAMS, climb.init(PARAMS), PARAMS)
        down, _ = descend.update(PARAMS, descend.init(PARAMS), PARAMS)
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, -y), up, down)


@pytest.mark.parametrize("factory", [aj.clip, aj.clip_by_norm, aj.clip_by_global_norm])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30, 0.0])
def test_no_limit(factory, scale):
    gradients = {"a": jnp.array([1.0, -2.0, 1e-8]) * scale, "b": jnp.array(3.0)}
    tx = factory(float("inf"))
    for update in (tx.update, jax.jit(tx.update)):
        updates, _ = update(gradients, tx.init(gradients))
        jax.tree.map(np.testing.assert_array_equal, updates, gradients)


def test_another_learning_rate_for_some_arrays():
    labels = {"layer": {"w": "a", "b": "b"}}
    tx = optax.partition({"a": aj.sgd(0.1), "b": aj.sgd(0.01)}, labels)
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["layer"]["w"], -0.1)
    np.testing.assert_allclose(updates["layer"]["b"], -0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: aj.adam(10.0), r"learning_rate=10.0 in adam.*jnp.float32\(10.0\)"),
        (lambda: aj.rmsprop(learning_rate=10), r"learning_rate=10 in rmsprop"),
        (lambda: aj.adamw(1e-3, weight_decay=10), r"weight_decay=10 in adamw"),
        (lambda: aj.add_decayed_weights(10.0), r"weight_decay=10.0 in add_decayed_weights"),
    ],
)
def test_numbers_that_are_hardly_meant(make, message):
    with pytest.warns(UserWarning, match=message) as caught:
        make()
    # The line of the caller: Python shows it once for each.
    assert [each.filename for each in caught] == [__file__]


def test_numbers_that_may_be_meant():
    for make in (aj.sgd, aj.adagrad, aj.adadelta, aj.scale_by_learning_rate):
        make(10.0)
    aj.adam(1.0, weight_decay=1.0)
    aj.adam(jnp.float32(10.0), weight_decay=jnp.float32(10.0))
    jax.jit(jax.vmap(aj.adam))(jnp.array([10.0, 20.0]))
    aj.interop.torch.adam(lr=10.0, weight_decay=10.0)
    aj.interop.keras.adam(10.0, weight_decay=10.0)


def test_the_mask_of_adadelta_under_its_name_in_optax():
    mask = {"layer": {"w": True, "b": False}}
    ours = aj.adadelta(weight_decay=0.1, weight_decay_mask=mask)
    same = aj.adadelta(weight_decay=0.1, mask=mask)
    assert repr(ours) == repr(same)
    assert jax.tree.structure(ours) == jax.tree.structure(same)


def fitted(steps):
    step = aj.train_step(lambda params, batch: jnp.sum(params * batch))
    state, _ = aj.fit(aj.TrainState.create(jnp.ones(2), aj.sgd(0.1)), step, [1.0] * 9, steps=steps)
    return int(state.step)


def grown(growth_interval):
    scale = aj.LossScale(growth_interval=growth_interval)
    return aj.TrainState.create(jnp.ones(2), aj.sgd(0.1), loss_scale=scale).loss_scale


def problem(steps):
    return aj.problems.Problem("plane", jnp.sum, jnp.sum, jnp.sum, steps=steps).steps


def swept(batch_size):
    train = lambda learning_rate: learning_rate  # noqa: E731
    return aj.sweep(train, learning_rate=[0.1, 0.2], batch_size=batch_size).objective.tolist()


def test_numbers_of_bytes():
    def swept(memory):
        return aj.sweep(lambda rate: rate, rate=[0.1, 0.2], memory=memory).objective.tolist()

    assert swept(np.int64(2**30)) == swept(2**30)
    for wrong in (True, "1 GB", -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"memory=.* must be a number of bytes above 0"):
            swept(wrong)


def saved(tmp_path, **numbers):
    pytest.importorskip("orbax.checkpoint")
    aj.save_checkpoint(tmp_path, {"w": jnp.ones(2)}, **numbers)
    return sorted(path.name for path in tmp_path.iterdir())


WHOLE_NUMBERS = {
    "steps": fitted,
    "accumulate": lambda n: aj.train_step(jnp.sum, accumulate=n)._jitted.__wrapped__.args[0],
    "growth_interval": grown,
    "max_consecutive": lambda n: aj.skip_nonfinite(aj.sgd(0.1), n),
    "every_k_schedule": lambda n: aj.multi_steps(aj.sgd(0.1), n),
    "every": lambda n: aj.diagnose(aj.sgd(0.1), every=n).init.args[0].every,
    "block": lambda n: aj.Blocks(block=n),
    "min_size": lambda n: aj.Factored(min_size=n),
    "batch_size": swept,
    "seeds": lambda n: aj.sweep(lambda seed: jnp.float32(seed), seeds=n).seeds.tolist(),
    "count": lambda n: aj.draw(n, x=aj.Choice(1, 2)),
    "problem": problem,
    "hidden": lambda n: aj.problems.digits(n).init(jax.random.key(0))[0]["w"].shape,
}


@pytest.mark.parametrize("name", WHOLE_NUMBERS)
def test_whole_numbers_of_numpy_and_jax(name):
    """As those of Python: what becomes of them hashes, compares and prints alike. True is none."""
    make = WHOLE_NUMBERS[name]
    expected = make(2)
    for number in (np.int64(2), np.uint8(2), np.array(2), jnp.array(2)):
        assert repr(make(number)) == repr(expected)
        if name in ("block", "min_size", "growth_interval"):
            assert make(number) == expected
    for wrong in (True, 2.0, -1, "2", np.bool_(True), np.array([[2]])):
        with pytest.raises(ValueError, match=r"=.*must be .*whole number"):
            make(wrong)


def test_whole_numbers_of_a_checkpoint(tmp_path):
    for step in (1, np.int64(2), jnp.array(3)):
        names = saved(tmp_path, step=step, keep=np.int32(2))
    assert names == ["2", "3"]
    for wrong in ({"step": True}, {"step": 1.0}, {"step": 4, "keep": 0}):
        with pytest.raises(ValueError, match="must be a whole number"):
            saved(tmp_path, **wrong)
    assert aj.restore_checkpoint(tmp_path, {"w": jnp.zeros(2)}, step=np.int64(2))["w"][0] == 1


class Photo:
    """An object of the user's."""


IN_A_BATCH = {
    "text": (lambda: {"x": "hello"}, r"batch\['x'\] is 'hello' of type str: it is text"),
    "bytes": (lambda: (1.0, b"hello"), r"batch\[1\] is b'hello' of type bytes: it is text"),
    "texts": (lambda: [np.array(["a", "b"])], r"batch\[0\] is str\d+\[2\]: it is text"),
    "ragged": (
        lambda: np.array([np.ones(2), np.ones(3)], dtype=object),
        r"batch is object\[2\]: it is an array of objects.*Pad",
    ),
    "time": (
        lambda: np.array(["2020-01-01"], "datetime64[D]"),
        "batch is datetime64.*it is a time",
    ),
    "object": (lambda: {"photo": Photo()}, r"batch\['photo'\] is .*Photo object.*it is no array"),
    "long": (lambda: "a" * 1000, r"batch is 'a{79} of type str"),
    "shape": (
        lambda: {"x": jax.ShapeDtypeStruct((2,), jnp.float32)},
        r"batch\['x'\] is float32\[2\]: it is the shape of an array",
    ),
}


@pytest.mark.parametrize("kind", IN_A_BATCH)
def test_what_a_step_cannot_take_in_a_batch(kind):
    make, message = IN_A_BATCH[kind]
    step = aj.train_step(lambda params, batch: jnp.sum(params) + sum(jax.tree.leaves(batch)))
    state = aj.TrainState.create(jnp.ones(2), aj.sgd(0.1))
    with pytest.raises(TypeError, match=message) as caught:
        step(state, make())
    assert "_train_step" not in str(caught.value)
    assert len(str(caught.value)) < 260
    with pytest.raises(TypeError, match=message.replace("batch", "state.model_state")):
        step(state.replace(model_state=make()), 1.0)
    assert step(state, 1.0)[0].step == 1


def test_tensors_of_torch():
    torch = pytest.importorskip("torch")
    tensor = torch.ones(2, requires_grad=True)
    step = aj.train_step(lambda params, batch: jnp.sum(params * batch["x"]))
    state = aj.TrainState.create(jnp.ones(2), aj.sgd(0.1))
    message = r"is torch.float32\[2\] of type torch.Tensor: an array of NumPy or JAX is needed"
    with pytest.raises(TypeError, match=r"batch\['x'\] " + message):
        step(state, {"x": tensor})
    with pytest.raises(TypeError, match=r"params\['w'\] " + message):
        aj.TrainState.create({"w": tensor}, aj.sgd(0.1))
    with pytest.raises(TypeError, match=r"gradients\['w'\] " + message):
        aj.sgd(0.1).update({"w": tensor}, optax.EmptyState())
    # As the error says.
    step(state, {"x": jnp.asarray(tensor.detach().cpu().numpy())})


def test_a_type_error_of_the_loss_stays_what_it_is():
    step = aj.train_step(lambda params, batch: jnp.sum(params) + len(3))
    with pytest.raises(TypeError, match=r"object of type 'int' has no len"):
        step(aj.TrainState.create(jnp.ones(2), aj.sgd(0.1)), 1.0)


@pytest.mark.parametrize("value", ["no", 0.9, None, jnp.array(True)])
def test_an_option_is_true_or_false(value):
    with pytest.raises(TypeError, match=r"nesterov=.* in Adam: it must be True or False"):
        aj.adam(0.1, nesterov=value)
    assert repr(aj.adam(0.1, nesterov=np.True_)).endswith("eps_root=0.0, nesterov=True)")


def test_a_class_is_no_rule():
    with pytest.raises(TypeError, match=r"got the class Adam: Adam\(…\)"):
        aj.transform(aj.rules.Adam)
