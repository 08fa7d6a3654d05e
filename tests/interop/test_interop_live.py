"""The ports against PyTorch and Keras themselves. Needs the extra `interop`."""

from __future__ import annotations

import importlib
import inspect
import os
import warnings

import numpy as np
import pytest

os.environ["KERAS_BACKEND"] = "jax"
torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")

import jax
import jax.numpy as jnp
import optax
import trajectories

import adaptive_jax as aj
from adaptive_jax import interop

OPTIMIZERS = [
    (library, name) for library, (_, names) in trajectories.LIBRARIES.items() for name in names
]
SETTINGS = {"float64": 120, "float32": 40}  # The second is for the rounding alone.
AT_ONCE = 40  # Of Keras's optimizers, in one compiled loop.


def theirs(library, name):
    module, name = torch.optim if library == "torch" else keras.optimizers, name.replace("_", "")
    return next(each for key, each in vars(module).items() if key.lower() == name)


@pytest.mark.parametrize(("library", "name"), OPTIMIZERS)
def test_arguments_have_their_names_order_and_defaults(library, name):
    expected = dict(inspect.signature(theirs(library, name)).parameters)
    for absent in ("params", "kwargs"):
        expected.pop(absent, None)
    actual = dict(inspect.signature(getattr(getattr(interop, library), name)).parameters)
    # Where nothing decays, there is no mask.
    assert ("mask" in actual) == ("weight_decay" in actual)
    if "mask" in actual:
        assert actual.pop("mask").default is None
    assert actual.pop("storage").default is None
    actual.pop("axes", None)
    assert list(actual) == list(expected)
    for each, parameter in expected.items():
        if (library, each) == ("keras", "name"):
            continue  # Keras's default is the name of the class.
        assert actual[each].default == parameter.default, each
        assert actual[each].kind == parameter.kind, each


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param("float64", marks=pytest.mark.slow),
        pytest.param("float32", marks=pytest.mark.seldom),
    ],
)
@pytest.mark.parametrize(("library", "name"), OPTIMIZERS)
def test_random_settings_go_the_same_way(library, name, dtype):
    draw = trajectories.LIBRARIES[library][0]
    every = 6 if name in trajectories.FEWER else 2
    settings = [draw(name, index) for index in range(0, SETTINGS[dtype], every)]
    if library == "torch":
        expected = [trajectories.theirs_in_torch(name, each, dtype) for each in settings]
    else:
        expected = []
        for start in range(0, len(settings), AT_ONCE):
            part = settings[start : start + AT_ONCE]
            expected += trajectories.theirs_in_keras(name, part, dtype)
    first = trajectories.problem(dtype)[1]
    errors = [
        trajectories.error(trajectories.ours(library, name, each, dtype), one, first)
        / trajectories.tolerance(library, each, dtype)
        for each, one in zip(settings, expected, strict=True)
    ]
    worst = int(np.argmax(errors))
    assert errors[worst] <= 1, (worst, settings[worst])


# ---------------------------------------------------------------------------- saved runs

RUNS = {
    "sgd": ("sgd", {"momentum": 0.9}),
    "sgd dampened": ("sgd", {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    "adagrad": ("adagrad", {"lr_decay": 0.1}),
    "adadelta": ("adadelta", {}),
    "rmsprop": ("rmsprop", {"momentum": 0.9, "centered": True}),
    "adam": ("adam", {}),
    "amsgrad": ("adam", {"amsgrad": True}),
    "adamw": ("adamw", {"weight_decay": 0.1}),
    "nadam": ("nadam", {}),
    "adamax": ("adamax", {"maximize": True}),
    "radam": ("radam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "rprop": ("rprop", {"maximize": True}),
    "adafactor": ("adafactor", {"weight_decay": 0.1, "eps": (1e-3, 1e-2)}),
    "asgd": ("asgd", {"weight_decay": 0.1, "lambd": 0.1, "t0": 80.0}),
}
KERAS_RUNS = {
    "sgd": ("sgd", {"momentum": 0.9, "nesterov": True}),
    "adagrad": ("adagrad", {}),
    "adadelta": ("adadelta", {"learning_rate": 1.0}),
    "rmsprop": ("rmsprop", {"momentum": 0.9, "centered": True}),
    "adam": ("adam", {"global_clipnorm": 1.0}),
    "amsgrad": ("adam", {"amsgrad": True}),
    "adamw": ("adamw", {"weight_decay": 0.1}),
    "nadam": ("nadam", {}),
    "adamax": ("adamax", {}),
    "lion": ("lion", {"weight_decay": 0.1}),
    "adafactor": ("adafactor", {"weight_decay": 0.1}),
    "lamb": ("lamb", {"weight_decay": 0.1}),
    "muon": ("muon", {"weight_decay": 0.1, "global_clipnorm": 1.0}),
    "schedule_free_adamw": ("schedule_free_adamw", {"weight_decay": 0.1, "warmup_steps": 80}),
    "ftrl": ("ftrl", {"weight_decay": 0.1, "l1_regularization_strength": 1e-3}),
    "a schedule": ("adam", {"learning_rate": "schedule"}),
}
BEFORE, BETWEEN, AFTER = range(0, 60), range(60, 130), range(130, 200)


def split(array):
    """Two parameters, a matrix that is transposed on the other side and a vector."""
    return [array[:6].reshape(2, 3), array[6:]]


def torch_steps(tensors, optimizer, gradients):
    for gradient in gradients:
        for tensor, part in zip(tensors, split(gradient), strict=True):
            tensor.grad = torch.tensor(part).to(tensor.dtype)
        optimizer.step()


def our_steps(tx, state, params, gradients):
    """Steps with a dict whose keys JAX sorts into another order, and with the matrix transposed."""
    for gradient in gradients:
        matrix, vector = split(gradient)
        grads = {"kernel": matrix.T, "bias": vector}
        updates, state = tx.update(grads, state, params)
        params = {name: params[name] + np.asarray(updates[name]) for name in params}
    return state, params


TORCH_MAPPING = {"weight": ("kernel", (1, 0)), "bias": "bias"}


def relative_error(actual, expected, first):
    """The error after some steps, of a trajectory that has its first and its last point alone."""
    actual, expected, first = (
        np.concatenate([np.ravel(part) for part in each]) for each in (actual, expected, first)
    )
    return trajectories.error(np.stack([first, actual]), np.stack([first, expected]), first)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("run", RUNS)
def test_a_run_of_pytorch_goes_on_here_and_back_there(run, dtype):
    name, settings = RUNS[run]
    wide = "float32" if dtype == "bfloat16" else dtype
    gradients, first = trajectories.problem(wide)
    make = lambda tensors: theirs("torch", name)(tensors, lr=0.05, **settings)  # noqa: E731
    with trajectories.default_dtype(torch, wide), jax.enable_x64(wide == "float64"):
        tensors = [
            torch.nn.Parameter(torch.tensor(part).to(getattr(torch, dtype)))
            for part in split(first)
        ]
        optimizer = make(tensors)
        torch_steps(tensors, optimizer, gradients[BEFORE])
        saved = optimizer.state_dict()
        if dtype == "bfloat16":  # What the saved run would have gone on to in float32.
            tensors = [torch.nn.Parameter(tensor.detach().float()) for tensor in tensors]
            optimizer = make(tensors)
            optimizer.load_state_dict(saved)

        matrix, vector = (tensor.detach().numpy().copy() for tensor in tensors)
        start = [matrix, vector]
        params = {"kernel": matrix.T, "bias": vector}
        tx = getattr(interop.torch, name)(lr=0.05, **settings)
        state = interop.torch.import_state(tx, params, saved, TORCH_MAPPING)
        state, params = our_steps(tx, state, params, gradients[BETWEEN])
        torch_steps(tensors, optimizer, gradients[BETWEEN])
        expected = [tensor.detach().numpy() for tensor in tensors]
        error = relative_error([params["kernel"].T, params["bias"]], expected, start)
        tolerance = trajectories.TOLERANCE[wide]
        if name == "adafactor" and dtype == "bfloat16":
            # The mean of the rows is that of the columns, which here they are, up to what was rounded.
            tolerance = 2.0**-8
        assert error <= tolerance

        # And back, into a new optimizer with other options: those of the run are in what is loaded.
        back = [
            torch.nn.Parameter(tensor.clone())
            for tensor in interop.torch.export_params(params, TORCH_MAPPING).values()
        ]
        again = theirs("torch", name)(back, lr=1.0)
        exported = interop.torch.export_state(tx, params, state, TORCH_MAPPING)
        if name == "asgd":  # The average, on which the parameters do not depend.
            for index, expected in optimizer.state_dict()["state"].items():
                average = exported["state"][index]["ax"].numpy()
                assert (
                    relative_error([average], [expected["ax"].numpy()], [start[index]]) <= tolerance
                )
        again.load_state_dict(exported)
        for ours, group in zip(again.param_groups, optimizer.param_groups, strict=True):
            assert ours["param_names"] == list(TORCH_MAPPING)
            options = [name for name in group if name != "params"]
            assert [ours[name] for name in options] == [group[name] for name in options]
            assert set(ours) == {*group, "param_names"}
        torch_steps(back, again, gradients[AFTER])
        torch_steps(tensors, optimizer, gradients[AFTER])
        expected = [tensor.detach().numpy() for tensor in tensors]
        error = relative_error([tensor.detach().numpy() for tensor in back], expected, start)
        assert error <= tolerance


def test_parameter_groups_go_on_here_and_back_there():
    gradients, first = trajectories.problem("float32")
    tensors = [torch.nn.Parameter(torch.tensor(part)) for part in split(first)]
    groups = [
        {"params": [("weight", tensors[0])], "weight_decay": 0.1, "betas": (0.8, 0.99)},
        {"params": [("bias", tensors[1])], "lr": 0.01},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.05, weight_decay=0.0)
    torch_steps(tensors, optimizer, gradients[BEFORE])
    txs = {
        "matrix": interop.torch.adamw(lr=0.05, weight_decay=0.1, betas=(0.8, 0.99)),
        "vector": interop.torch.adamw(lr=0.01, weight_decay=0.0),
    }
    labels = {"kernel": "matrix", "bias": "vector"}
    matrix, vector = (tensor.detach().numpy().copy() for tensor in tensors)
    params = {"kernel": matrix.T, "bias": vector}
    state = interop.torch.import_state(
        txs, params, optimizer.state_dict(), TORCH_MAPPING, param_labels=labels
    )
    tx = optax.partition(txs, labels)
    state, params = our_steps(tx, state, params, gradients[BETWEEN])
    torch_steps(tensors, optimizer, gradients[BETWEEN])
    np.testing.assert_allclose(params["kernel"].T, tensors[0].detach().numpy(), rtol=2e-5)
    exported = interop.torch.export_state(txs, params, state, TORCH_MAPPING, param_labels=labels)
    expected = optimizer.state_dict()
    assert exported["param_groups"] == expected["param_groups"]
    for index, entries in expected["state"].items():
        for name, value in entries.items():
            np.testing.assert_allclose(exported["state"][index][name], value, rtol=1e-4, atol=1e-7)


def test_a_mask_becomes_two_groups():
    params = {"kernel": np.ones((3, 2), np.float32), "bias": np.ones(2, np.float32)}
    tx = interop.torch.adamw(weight_decay=0.1, mask={"kernel": True, "bias": False})
    state = tx.init(params)
    _, state = tx.update(params, state, params)
    backwards = {name: TORCH_MAPPING[name] for name in reversed(TORCH_MAPPING)}
    for mapping, decays in ((TORCH_MAPPING, [0.1, 0.0]), (backwards, [0.0, 0.1])):
        exported = interop.torch.export_state(tx, params, state, mapping)
        assert [group["weight_decay"] for group in exported["param_groups"]] == decays
        assert [group["params"] for group in exported["param_groups"]] == [[0], [1]]
        assert [group["param_names"] for group in exported["param_groups"]] == [
            [n] for n in mapping
        ]
        again = interop.torch.import_state(tx, params, exported, TORCH_MAPPING)
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), state, again))


@pytest.mark.parametrize("name", trajectories.LIBRARIES["torch"][1])
def test_parameters_of_shape_zero_there_and_back(name):
    """A temperature, the scale of logits."""
    if name == "muon":
        pytest.skip("Muon takes matrices alone.")
    named = {"scale": torch.nn.Parameter(torch.tensor(0.5)), "w": torch.nn.Parameter(torch.ones(3))}
    settings = {"momentum": 0.9} if name in ("sgd", "rmsprop") else {}
    optimizer = theirs("torch", name)(list(named.items()), lr=0.1, **settings)
    for tensor in named.values():
        tensor.grad = torch.ones_like(tensor)
    optimizer.step()
    params = {"scale": np.zeros((), np.float32), "w": np.zeros(3, np.float32)}
    tx = getattr(interop.torch, name)(lr=0.1, **settings)
    state = interop.torch.import_state(tx, params, optimizer.state_dict())
    for mapping in ({"scale": "scale", "w": "w"}, {"scale": ("scale", ()), "w": ("w", (0,))}):
        exported = interop.torch.export_state(tx, params, state, mapping)
        again = theirs("torch", name)(list(named.items()), lr=0.1, **settings)
        again.load_state_dict(exported)
        for tensor, entries in optimizer.state.items():
            for entry, value in entries.items():
                if value is not None:
                    assert again.state[tensor][entry].shape == value.shape
                    torch.testing.assert_close(again.state[tensor][entry], value)
        back = interop.torch.export_params(
            interop.torch.import_params(params, {n: t.detach() for n, t in named.items()}), mapping
        )
        assert {each: value.shape for each, value in back.items()} == {
            each: tensor.shape for each, tensor in named.items()
        }


@pytest.mark.parametrize("name", trajectories.LIBRARIES["keras"][1])
def test_keras_parameters_of_shape_zero_there_and_back(name):
    keras.config.set_floatx("float32")
    settings = {"momentum": 0.9} if name in ("sgd", "rmsprop") else {}
    with jax.numpy_dtype_promotion("standard"):
        variables = [
            keras.Variable(np.float32(0.5), name="scale"),
            keras.Variable(np.ones(3, np.float32), name="w"),
        ]
        optimizer = theirs("keras", name)(learning_rate=0.1, **settings)
        optimizer.apply([jnp.ones(()), jnp.ones(3)], variables)
    params = {"scale": np.zeros((), np.float32), "w": np.zeros(3, np.float32)}
    tx = getattr(interop.keras, name)(learning_rate=0.1, **settings)
    state = interop.keras.import_state(tx, params, optimizer.variables)
    exported = interop.keras.export_state(tx, params, state, {"scale": "scale", "w": "w"})
    for variable, value in zip(optimizer.variables, exported, strict=True):
        assert type(value) is np.ndarray
        np.testing.assert_allclose(value, variable.value, rtol=1e-6)
        variable.assign(value)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_hyperparameters_may_be_tensors_and_variables(shape):
    rate, b1 = torch.full(shape, 0.5), torch.full(shape, 0.75, requires_grad=True)
    tx = interop.torch.adam(lr=rate, betas=(b1, 0.999))
    assert repr(tx) == repr(interop.torch.adam(lr=0.5, betas=(0.75, 0.999)))
    assert repr(interop.torch.adam(betas=torch.tensor([0.5, 0.75]))) == repr(
        interop.torch.adam(betas=(0.5, 0.75))
    )
    with pytest.raises((TypeError, ValueError), match=r"lr has shape \(2,\) in torch\.adam"):
        interop.torch.adam(lr=torch.ones(2))
    assert repr(interop.keras.adam(keras.Variable(0.5))) == repr(interop.keras.adam(0.5))
    # And in a saved run.
    tensor = torch.nn.Parameter(torch.zeros(2))
    tensor.grad = torch.ones(2)
    optimizer = torch.optim.Adam([tensor], lr=rate, betas=(b1, torch.tensor(0.999)), foreach=False)
    optimizer.step()
    state = interop.torch.import_state(tx, [np.zeros(2)], optimizer.state_dict())
    np.testing.assert_allclose(state[0].mu[0], 0.25)
    with pytest.raises(
        ValueError, match=r"betas=\(0\.75, .*, but the optimizer has \(0\.9, 0\.999\)"
    ):
        interop.torch.import_state(interop.torch.adam(), [np.zeros(2)], optimizer.state_dict())


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_one_cycle_run_goes_on(name):
    """With the momentum that the scheduler has moved, and any rate."""
    settings = {"momentum": 0.9} if name == "sgd" else {}
    tensor = torch.nn.Parameter(torch.zeros(2))
    optimizer = theirs("torch", name)([tensor], lr=0.1, **settings)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20)
    for _ in range(3):
        tensor.grad = torch.ones(2)
        optimizer.step()
        scheduler.step()
    saved = optimizer.state_dict()
    make = getattr(interop.torch, name)
    with pytest.raises(ValueError, match=r"OneCycleLR or CyclicLR moves it between 0\.85"):
        interop.torch.import_state(make(**settings), [np.zeros(2)], saved)
    key = "momentum" if name == "sgd" else "betas"
    group = saved["param_groups"][0]
    tx = make(lr=group["lr"], **{key: group[key]})
    state = interop.torch.import_state(tx, [np.zeros(2)], saved)
    before = tensor.detach().clone()
    optimizer.step()
    updates, _ = tx.update([np.ones(2, np.float32)], state)
    np.testing.assert_allclose(updates[0], (tensor - before).detach(), rtol=1e-4)


def test_nothing_was_done_yet():
    tensors = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(2))]
    params = {"kernel": np.zeros((3, 2)), "bias": np.zeros(2)}
    for name in set(trajectories.LIBRARIES["torch"][1]) - {"muon"}:  # It takes matrices alone.
        optimizer = theirs("torch", name)(tensors, lr=0.1)
        tx = getattr(interop.torch, name)(lr=0.1)
        state = interop.torch.import_state(tx, params, optimizer.state_dict(), TORCH_MAPPING)
        assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))
        exported = interop.torch.export_state(tx, params, state, TORCH_MAPPING)
        theirs("torch", name)(tensors, lr=0.1).load_state_dict(exported)
        assert exported["state"].keys() == optimizer.state_dict()["state"].keys()


@pytest.mark.slow
def test_muon_departs_by_the_bfloat16_of_pytorch_alone(monkeypatch):
    """With PyTorch's own function in float64, the wide tolerance of `trajectories` is not needed."""
    module = importlib.import_module("torch.optim._muon")
    source = inspect.getsource(module._zeropower_via_newtonschulz)
    assert ".bfloat16()" in source
    names = dict(vars(module))
    exec(source.replace(".bfloat16()", ".double()"), names)
    name = "_zeropower_via_newtonschulz"
    monkeypatch.setattr(module, name, names[name])
    first = trajectories.problem("float64")[1]
    for index in range(4):
        settings = trajectories.torch_settings("muon", index)
        theirs = trajectories.theirs_in_torch("muon", settings, "float64")
        ours = trajectories.ours("torch", "muon", settings, "float64")
        assert trajectories.error(ours, theirs, first) < 1e-10, settings


def test_a_run_of_muon_goes_on_here_and_back_there():
    gradients, first = trajectories.problem("float32")
    tensor = torch.nn.Parameter(torch.tensor(first[:6].reshape(2, 3)))
    settings = {"lr": 0.05, "weight_decay": 0.2, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3}
    optimizer = torch.optim.Muon([("w", tensor)], **settings)

    def their_steps(tensor, optimizer, gradients):
        for gradient in gradients:
            tensor.grad = torch.tensor(gradient[:6].reshape(2, 3))
            optimizer.step()

    their_steps(tensor, optimizer, gradients[BEFORE])
    tx, params = interop.torch.muon(**settings), {"w": tensor.detach().numpy().copy()}
    state = interop.torch.import_state(tx, params, optimizer.state_dict())
    start = params["w"]
    for gradient in gradients[BETWEEN]:
        updates, state = tx.update({"w": gradient[:6].reshape(2, 3)}, state, params)
        params = optax.apply_updates(params, updates)
    their_steps(tensor, optimizer, gradients[BETWEEN])
    moved = np.abs(tensor.detach().numpy() - start).max()
    np.testing.assert_allclose(params["w"], tensor.detach().numpy(), atol=0.05 * moved)
    exported = interop.torch.export_state(tx, params, state, {"w": "w"})
    saved = optimizer.state_dict()
    assert exported["param_groups"] == saved["param_groups"]
    ours, theirs_ = (each["state"][0]["momentum_buffer"] for each in (exported, saved))
    np.testing.assert_allclose(ours, theirs_, rtol=1e-4, atol=1e-6)
    other = interop.torch.muon(**{**settings, "adjust_lr_fn": None})
    with pytest.raises(
        ValueError, match="adjust_lr_fn='match_rms_adamw', but the optimizer has None"
    ):
        interop.torch.import_state(other, params, saved)


def test_an_import_does_not_share_memory():
    tensor = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.Adam([tensor])
    tensor.grad = torch.ones(4)
    optimizer.step()
    tx = interop.torch.adam()
    state, _ = interop.torch.import_state(tx, [np.zeros(4)], optimizer.state_dict())
    before = np.array(state.mu[0])
    optimizer.state[tensor]["exp_avg"].fill_(100.0)
    np.testing.assert_array_equal(state.mu[0], before)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)])

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.layers[1](torch.tanh(self.layers[0](x)))


@pytest.mark.parametrize("named", [True, False])
def test_a_real_network_finds_its_parameters(named):
    torch.manual_seed(0)
    model = Network()
    parameters = list(model.named_parameters()) if named else model.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    dense = lambda *shape: {"kernel": jnp.zeros(shape), "bias": jnp.zeros(shape[-1])}  # noqa: E731
    params = {
        "conv": dense(3, 3, 1, 4),
        "norm": {"scale": jnp.zeros(4), "bias": jnp.zeros(4)},
        "layers_0": dense(4, 4),
        "layers_1": dense(4, 2),
    }
    mapping = interop.torch.match(params, model.state_dict())
    tx = interop.torch.adamw(lr=0.01)
    inputs = torch.randn(16, 1, 6, 6)

    def gradients():
        model.zero_grad()
        model(inputs).square().mean().backward()
        return {name: tensor.grad.clone() for name, tensor in model.named_parameters()}

    for _ in range(5):
        gradients()
        optimizer.step()
    ours = interop.torch.import_params(params, model.state_dict(), mapping)
    given = None if named else mapping
    state = interop.torch.import_state(tx, ours, optimizer.state_dict(), given)
    for _ in range(5):
        grads = interop.torch.import_params(params, gradients(), mapping)
        optimizer.step()
        updates, state = tx.update(grads, state, ours)
        ours = optax.apply_updates(ours, updates)
    back = interop.torch.export_params(ours, mapping)
    for name, tensor in model.named_parameters():
        np.testing.assert_allclose(back[name], tensor.detach(), atol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("run", KERAS_RUNS)
def test_a_run_of_keras_goes_on_here_and_back_there(run, dtype):
    name, settings = KERAS_RUNS[run]
    gradients, first = trajectories.problem(dtype)
    keras.config.set_floatx(dtype)
    ours = {"learning_rate": 0.05, **settings}
    other = dict(ours)
    if ours["learning_rate"] == "schedule":
        ours["learning_rate"] = optax.linear_schedule(0.05, 0.01, 100)
        other["learning_rate"] = keras.optimizers.schedules.PolynomialDecay(0.05, 100, 0.01)

    def keras_steps(variables, optimizer, gradients):
        for gradient in gradients:
            optimizer.apply([jnp.asarray(part) for part in split(gradient)], variables)

    with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion("standard"):
        variables = [
            keras.Variable(part, dtype=dtype, name=each)
            for part, each in zip(split(first), ("kernel", "bias"), strict=True)
        ]
        optimizer = theirs("keras", name)(**other)
        keras_steps(variables, optimizer, gradients[BEFORE])

        matrix, vector = (np.array(variable.value) for variable in variables)
        start = [matrix, vector]
        params = {"kernel": matrix.T, "bias": vector}
        mapping = {"kernel": ("kernel", (1, 0)), "bias": "bias"}
        # Keras keeps a learning rate in a variable of its own precision.
        tx = getattr(interop.keras, name)(**ours)
        state = interop.keras.import_state(tx, params, optimizer.variables, mapping)
        state, params = our_steps(tx, state, params, gradients[BETWEEN])
        keras_steps(variables, optimizer, gradients[BETWEEN])
        expected = [np.array(variable.value) for variable in variables]
        # A schedule of Keras, and what it multiplies, is computed in float32; means and norms are, too.
        tolerance = 1e-6 if run in ("a schedule", "adafactor", "muon") else 0.0
        tolerance = max(tolerance, trajectories.TOLERANCE[dtype])
        error = relative_error([params["kernel"].T, params["bias"]], expected, start)
        assert error <= tolerance

        exported = interop.keras.export_state(tx, params, state, mapping)
        back = [
            keras.Variable(part, dtype=dtype, name=each)
            for part, each in zip(
                [params["kernel"].T, params["bias"]], ("kernel", "bias"), strict=True
            )
        ]
        again = theirs("keras", name)(**other)
        again.build(back)
        for variable, value in zip(again.variables, exported, strict=True):
            variable.assign(value)
        keras_steps(back, again, gradients[AFTER])
        keras_steps(variables, optimizer, gradients[AFTER])
        expected = [np.array(variable.value) for variable in variables]
        error = relative_error([np.array(variable.value) for variable in back], expected, start)
        assert error <= tolerance


def test_names_of_a_keras_model_place_its_parameters():
    keras.config.set_floatx("float32")
    with warnings.catch_warnings(), jax.numpy_dtype_promotion("standard"):
        model = keras.Sequential(
            [
                keras.Input((3,)),
                keras.layers.Dense(3, name="dense"),
                keras.layers.Dense(3, name="dense_1"),
            ]
        )
        optimizer = keras.optimizers.Adam(0.01)
        optimizer.build(model.trainable_variables)
        grads = [jnp.full(v.shape, float(i)) for i, v in enumerate(model.trainable_variables)]
        optimizer.apply(grads)
        params = {
            layer: {"kernel": jnp.zeros((3, 3)), "bias": jnp.zeros(3)}
            for layer in ("dense_1", "dense")
        }
        state, _ = interop.keras.import_state(interop.keras.adam(0.01), params, optimizer.variables)
    for value, (layer, leaf) in enumerate(
        [("dense", "kernel"), ("dense", "bias"), ("dense_1", "kernel"), ("dense_1", "bias")]
    ):
        np.testing.assert_allclose(state.mu[layer][leaf], 0.1 * value, rtol=1e-6)


@pytest.mark.parametrize("excludes_embeddings", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_muon_of_a_keras_model_takes_the_same_arrays(excludes_embeddings):
    keras.config.set_floatx("float32")
    options = {"exclude_embeddings": excludes_embeddings, "exclude_layers": ["head", "^never$"]}
    options |= {"learning_rate": 0.1, "adam_lr_ratio": 0.5, "clipnorm": 1.0}
    with jax.numpy_dtype_promotion("standard"):
        model = keras.Sequential(
            [
                keras.Input((5,)),
                keras.layers.Embedding(7, 4, name="embedding"),
                keras.layers.Conv1D(3, 2, name="conv"),
                keras.layers.Dense(6, name="dense"),
                keras.layers.Dense(2, name="head"),
            ]
        )
        theirs_ = keras.optimizers.Muon(**options)
        theirs_.build(model.trainable_variables)
        paths = [v.path.removeprefix(f"{model.name}/") for v in model.trainable_variables]
        params = {}  # In nested dicts, whose keys are sorted into another order.
        for path, variable in zip(paths, model.trainable_variables, strict=True):
            layer, leaf = _halves(path)
            params.setdefault(layer, {})[leaf] = np.array(variable.value)
        rng = np.random.default_rng(7)

        def both_step(params, state):
            grads = jax.tree.map(lambda p: rng.standard_normal(p.shape).astype(np.float32), params)
            listed = [jnp.asarray(grads[layer][leaf]) for layer, leaf in map(_halves, paths)]
            theirs_.apply(listed, model.trainable_variables)
            if state is None:
                return params, None
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        tx = interop.keras.muon(**options)
        params, _ = both_step(params, None)
        params = jax.tree.map(np.copy, params)
        for path, variable in zip(paths, model.trainable_variables, strict=True):
            layer, leaf = _halves(path)
            params[layer][leaf] = np.array(variable.value)
        state = interop.keras.import_state(tx, params, theirs_.variables)
        for _ in range(2):
            params, state = both_step(params, state)
        for path, variable in zip(paths, model.trainable_variables, strict=True):
            layer, leaf = _halves(path)
            np.testing.assert_allclose(params[layer][leaf], variable.value, atol=2e-5)
        mapping = {path: path for path in paths}
        exported = interop.keras.export_state(tx, params, state, mapping)
        for variable, value in zip(theirs_.variables, exported, strict=True):
            assert value.shape == variable.shape
            np.testing.assert_allclose(value, variable.value, rtol=1e-4, atol=1e-6)
        other = interop.keras.muon(**{**options, "exclude_layers": ["dense/kernel"]})
        with pytest.raises(ValueError, match="was saved by Muon, and dense/kernel is for Adam"):
            interop.keras.import_state(other, params, theirs_.variables)


def _halves(path):
    return path.split("/")


def test_the_example_of_a_chain_with_clipping():
    """clip_grad_norm_ and an optimizer are a chain here."""
    gradients, first = trajectories.problem("float32")
    tensors = [torch.nn.Parameter(torch.tensor(part)) for part in split(first)]
    optimizer = torch.optim.AdamW(tensors, lr=0.05)
    tx = aj.chain(aj.clip_by_global_norm(1.0), interop.torch.adamw(lr=0.05))
    params = {"kernel": split(first)[0].T, "bias": split(first)[1]}
    _, params = our_steps(tx, tx.init(params), params, gradients[BEFORE])
    for gradient in gradients[BEFORE]:
        for tensor, part in zip(tensors, split(gradient), strict=True):
            tensor.grad = torch.tensor(part)
        torch.nn.utils.clip_grad_norm_(tensors, 1.0)
        optimizer.step()
    np.testing.assert_allclose(params["kernel"].T, tensors[0].detach().numpy(), rtol=1e-4)
