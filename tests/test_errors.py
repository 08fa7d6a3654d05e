"""Bad input: every error names the argument or the leaf, what came, and what was expected."""

from __future__ import annotations

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
        (lambda: aj.adam(1e-3, nesterof=True), r"nesterof"),
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
        (jax.nn.relu, r"params\['w'\] is .* optax.masked"),
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
        with pytest.raises(ValueError, match=r"LearningRate.*needs the parameters: call update\("):
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
    with pytest.raises(ValueError, match=r"schedule for learning_rate .* returned float32\[3\]"):
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
