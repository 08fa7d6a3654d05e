"""What the storages of Adam's state take, and what they cost in time and precision.

    python tests/benchmarks/memory.py             # some minutes, with other libraries ten
    python tests/benchmarks/memory.py --tables state training --tree array --parameters 50_000_000

Prints Markdown. Others are measured too where they are installed and run on the device of JAX: `pip
install flashoptim-jax bitsandbytes torch torchao`. Those left out are named first.

state     Bytes per parameter: Adam's state; all that training keeps (float32 parameters, state and
          gradients); and what XLA counts (`memory_analysis`) for a step `(params, state, gradients) ->
          (params, state)` that takes over the first two: arguments, outputs, those outputs that are
          written over arguments, temporaries. The time of a step over that of others: median and
          quartiles of the ratios of the rounds. A round times each once, the next begins with another.
          PyTorch's optimizers have rounds of their own, not to disturb the others with their threads,
          and only their state is counted. All the others are written for GPUs, so that their times on a
          CPU say little: flashoptim-jax runs there with `fused=False`.
training  The same for other parameters too. Gradients are of their dtype.
quality   Updates beside float32's, from the same gradients. Arrays of every size are compressed, but
          those below 4096 elements in torchao (2 % of the digits' network). Error of an update:
          |u - u₃₂| / |u₃₂| in 300 steps on the handwritten digits, the median and the worst. Decay:
          second moments over float32's, median and percentiles 1 and 99, 5,000 steps after normal
          gradients became 1,000 times smaller, all or every second one. Largest update: of all numbers
          and steps, over float32's largest, there and in 200 steps of log-normal gradients.
"""

import argparse
import collections
import functools
import importlib
import math
import os
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from against_optax import compare, gpt_shapes, interleave, repeated, torch_device
from training import digits as digits_network

import adaptive_jax as aj

SHAPE = (2, 64, 256)
Kind = collections.namedtuple("Kind", "init step second_moment")


def storages(**sizes):
    bfloat16, factored = aj.BFloat16(**sizes), aj.Factored(**sizes)
    int8, int16 = aj.Blocks(bits=8, **sizes), aj.Blocks(bits=16, **sizes)
    found = {"float32": "float32", "bfloat16": bfloat16, "int8": int8, "int16": int16}
    found["int8 + int16"] = {"mu": int8, "nu": int16}
    return found | {"bfloat16 + factored": {"mu": bfloat16, "nu": factored}}


def transformation(make, rounding="nearest"):
    def init(rate, params):
        return make(rate).init(params), jnp.zeros((), jnp.int32)

    def step(rate, params, state, gradients):
        opt_state, count = state
        updates, opt_state = make(rate).update(gradients, opt_state, params)
        number = count if rounding == "stochastic" else None
        params = aj.apply_updates(params, updates, rounding=rounding, step=number)
        return params, (opt_state, count + 1)

    def second_moment(params, state):
        return aj.convert_storage(make(1.0), aj.adam(1.0), params, state[0])[0].nu[0]

    return Kind(init, step, second_moment)


def ours(storage, rounding="nearest", wrap=lambda tx: tx):
    return transformation(lambda rate: wrap(aj.adam(rate, storage=storage)), rounding)


def flash(bits=None):
    """flashoptim-jax, which keeps 8 bits in groups of 32."""
    from flashoptim_jax import flash_adam
    from flashoptim_jax.quantization import dequantize_variance

    fused = jax.default_backend() == "gpu"
    tx = functools.partial(flash_adam, master_weight_bits=bits, fused=fused)
    return Kind(
        lambda rate, params: tx(rate).init(params),
        lambda rate, *arguments: tx(rate).step(*arguments),
        lambda _, state: dequantize_variance(state.nu[0]),
    )


class JaxRun:
    """A compiled step that takes over parameters and state."""

    def __init__(self, kind, params, gradients, rate=1e-3):
        self.kind, self.gradients = kind, gradients
        self.params = jax.tree.map(jnp.copy, params)
        self.state = kind.init(rate, self.params)
        step = jax.jit(functools.partial(kind.step, rate), donate_argnums=(0, 1))
        self.step = step.lower(self.params, self.state, gradients).compile()

    def __call__(self):
        self.params, self.state = self.step(self.params, self.state, self.gradients)
        jax.block_until_ready((self.params, self.state))

    def renew(self):
        """Move to other buffers: donated ones stay where they are, well or badly placed."""
        time.sleep(0.01)  # Threads that wait for more work give up.
        self.params, self.state = jax.tree.map(jnp.copy, (self.params, self.state))
        self()

    def memory(self):
        arguments = (self.params, self.state, self.gradients)
        found = self.step.memory_analysis()
        names = ("argument", "output", "alias", "temp")
        sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(x)) for x in (self.state, arguments)]
        return sizes + [getattr(found, f"{name}_size_in_bytes") for name in names]

    def update(self, gradients):
        """Where a learning rate of 1 goes from 0."""
        zeros = jax.tree.map(jnp.zeros_like, self.params)
        self.params, self.state = self.step(zeros, self.state, gradients)
        return [np.asarray(leaf) for leaf in jax.tree.leaves(self.params)]

    def second_moment(self):
        return np.asarray(self.kind.second_moment(self.params, self.state))


class TorchRun:
    """The same with an optimizer of PyTorch."""

    def __init__(self, make, params, gradients, rate=1e-3):
        import torch

        self.tensor = functools.partial(torch.tensor, device=torch_device())
        arrays = (np.asarray(x) for x in jax.tree.leaves(params))
        self.params = [torch.nn.Parameter(self.tensor(x)) for x in arrays]
        self.optimizer = make(self.params, lr=rate, weight_decay=0.0)
        self.wait = torch.cuda.synchronize if torch_device() == "cuda" else lambda: None
        self.take(gradients)

    def take(self, gradients):
        for param, gradient in zip(self.params, jax.tree.leaves(gradients), strict=True):
            param.grad = self.tensor(np.asarray(gradient))

    def __call__(self):
        self.optimizer.step()
        self.wait()

    renew = __call__

    def memory(self):
        sizes = {}  # By address: a table of codes that all share counts once.
        stack = [x for state in self.optimizer.state.values() for x in state.values()]
        while stack:
            x = stack.pop()
            if hasattr(x, "__tensor_flatten__"):
                stack += [getattr(x, name) for name in x.__tensor_flatten__()[0]]
            elif hasattr(x, "data_ptr"):
                sizes[x.data_ptr()] = x.numel() * x.element_size()
        return [sum(sizes.values()), *[None] * 5]

    def update(self, gradients):
        for param in self.params:
            param.data.zero_()
        self.take(gradients)
        self()
        return [param.detach().cpu().numpy().copy() for param in self.params]

    def second_moment(self):
        (state,) = self.optimizer.state.values()
        if "state2" in state:
            scales = state["absmax2"].repeat_interleave(256).reshape(state["state2"].shape)
            return (state["qmap2"][state["state2"].long()] * scales).cpu().numpy()
        return state["exp_avg_sq"].dequantize().cpu().numpy()


FLASH = "flashoptim-jax"
TORCH = {
    "bitsandbytes 8-bit": ("bitsandbytes.optim", "AdamW8bit", {"min_8bit_size": 1}),
    "torchao 8-bit": ("torchao.optim", "AdamW8bit", {}),
    "torchao 4-bit": ("torchao.optim", "AdamW4bit", {}),
}


def peers():
    """The others that are installed and take a step here."""
    found, probe = {}, [jnp.ones((16, 256))]
    for name in (FLASH, *TORCH):
        try:
            if name == FLASH:
                found[name] = functools.partial(JaxRun, flash())
            else:
                module, make, options = TORCH[name]
                make = getattr(importlib.import_module(module), make)
                found[name] = functools.partial(TorchRun, functools.partial(make, **options))
            found[name](probe, probe)()
        except Exception as error:  # Whatever it is, the others are to be measured.
            found.pop(name, None)
            print(f"Left out: {name} ({type(error).__name__}: {error!s:.100}).")
    return found


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def make_params(tree, parameters):
    """One array, or a GPT whose layers have a power of two for their width."""
    shapes = (parameters,)
    if tree == "gpt":
        width = 2 ** round(math.log2(parameters / 70) / 2)
        layers = max(1, round((parameters - 8_512 * width) / (12 * width**2)))
        shapes = gpt_shapes(width=width, vocabulary=8_000, positions=512, layers=layers)
    generator = np.random.default_rng(0)

    def normal(shape):
        return jnp.array(0.02 * generator.standard_normal(shape, np.float32))

    return jax.tree.map(normal, shapes, is_leaf=lambda x: isinstance(x, tuple))


def measured(runs, shown, bases, rounds):
    """Rows of bytes per parameter, milliseconds, and ratios to the bases."""
    clock = time.perf_counter
    samplers = {name: repeated("step", run, clock, run.renew) for name, run in runs.items()}
    samples = interleave(samplers, 0, rounds)
    for name in shown:
        parameters = count(runs[bases[0]].params)
        row = ["–" if x is None else f"{x / parameters:.3f}" for x in runs[name].memory()]
        row.append(f"{1e3 * statistics.median(x['step'] for x in samples[name]):.1f}")
        for base in bases:
            figure = compare(samples[name], samples[base])["step"]
            low, high = figure.quartiles
            row.append(f"{figure.ratio:.2f} ({low:.2f}–{high:.2f})")
        yield [name, *row]


BYTES = ("state", "training", "arguments", "outputs", "written over", "temporaries", "ms")


def state_table(params, rounds, others):
    gradients = jax.tree.map(lambda x: 0.1 * x, params)
    makers = {name: functools.partial(JaxRun, ours(x)) for name, x in storages().items()}
    makers["optax.adam"] = functools.partial(JaxRun, transformation(optax.adam))
    makers |= {name: make for name, make in others.items() if name not in TORCH}
    torch = {name: others[name] for name in TORCH if name in others}
    bases = ["float32", "optax.adam"]
    runs = {name: make(params, gradients) for name, make in makers.items()}
    yield ["Adam's state", *BYTES, *[f"step / {base}" for base in bases]]
    yield from measured(runs, runs, bases, rounds)
    if torch:
        runs = {name: runs[name] for name in bases}
        runs |= {name: make(params, gradients) for name, make in torch.items()}
        yield from measured(runs, torch, bases, rounds // 2)


def training_table(params, rounds, others):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    both, stochastic = storages()["int8 + int16"], "bfloat16, stochastic rounding"
    compensated = functools.partial(ours, wrap=lambda tx: aj.compensate(tx, "int8"))
    ways = {
        "float32": (ours("float32"), params),
        "float32, int8 state": (ours("int8"), params),
        stochastic: (ours("float32", "stochastic"), half),
        f"{stochastic}, int8 + int16 state": (ours(both, "stochastic"), half),
        f"{stochastic}, int8 state": (ours("int8", "stochastic"), half),
        "bfloat16 + 8 bits": (compensated("float32"), half),
        "bfloat16 + 8 bits, int8 state": (compensated("int8"), half),
    }
    if FLASH in others:
        ways[f"bfloat16 + 8 bits, {FLASH}"] = (flash(24), half)
    runs = {name: JaxRun(kind, x, jax.tree.map(jnp.copy, x)) for name, (kind, x) in ways.items()}
    yield ["parameters and Adam's state", *BYTES, "step / float32"]
    yield from measured(runs, runs, ["float32"], rounds)


def digits_gradients(steps=300):
    """From a run of float32 Adam."""
    sys.path.append(str(Path(__file__).parents[2] / "examples"))
    from digits import batches, load

    params, loss, _ = digits_network(jax.random.key(0))
    run = JaxRun(ours("float32"), params, params, 3e-3)
    gradient = jax.jit(jax.grad(loss))
    for _, batch in zip(range(steps), batches(*load()[0], epochs=steps), strict=False):
        run.gradients = gradient(run.params, batch)
        yield run.gradients
        run()


def decaying_gradients(before=1_000, after=5_000):
    """Two matrices: one shrinks as a whole, and one in every second column."""
    generator, smaller = np.random.default_rng(0), np.ones(SHAPE, np.float32)
    smaller[0], smaller[1, :, ::2] = 1e-3, 1e-3
    for step in range(before + after):
        normal = generator.standard_normal(SHAPE, np.float32)
        yield [normal * smaller if step >= before else normal]


def lognormal_gradients(steps=200):
    """Two matrices: of σ = 1 and of σ = 2."""
    generator, sigma = np.random.default_rng(0), np.float32([[[1]], [[2]]])
    for _ in range(steps):
        size = np.exp(sigma * generator.standard_normal(SHAPE, np.float32))
        yield [np.copysign(size, generator.random(SHAPE, np.float32) - 0.5)]


def replay(makers, gradients, measure):
    """All on the same gradients: what measure gives of each update and float32's; and the runs."""
    found = {name: [] for name in makers}
    for step, each in enumerate(gradients):
        if step == 0:
            zeros = jax.tree.map(jnp.zeros_like, each)
            runs = {name: make(zeros, each, 1.0) for name, make in makers.items()}
        updates = {name: run.update(each) for name, run in runs.items()}
        for name, update in updates.items():
            found[name].append(measure(update, updates["float32"]))
    return {name: np.array(x) for name, x in found.items()}, runs


def relative_error(update, exact):
    update, exact = (np.concatenate([x.ravel() for x in each]) for each in (update, exact))
    return np.linalg.norm(update - exact) / np.linalg.norm(exact)


def quality_table(params, rounds, others):
    kinds = storages(min_size=0)
    makers = {name: functools.partial(JaxRun, ours(x)) for name, x in kinds.items()} | others
    if TORCH.keys() & others.keys():
        import torch

        torch.set_num_threads(1)  # Two sets of threads that wait for one another take minutes.

    errors, _ = replay(makers, digits_gradients(), relative_error)
    peaks, runs = replay(makers, decaying_gradients(), lambda u, _: np.abs(u[0]).max((1, 2)))
    more_peaks, _ = replay(makers, lognormal_gradients(), lambda u, _: np.abs(u[0]).max((1, 2)))
    moments = {name: run.second_moment() for name, run in runs.items()}
    extremes = [f"largest update, {x}" for x in ("decay", "decay of half", "σ = 1", "σ = 2")]
    yield ["Adam's state", "error of an update", "worst", "decay", "decay of half", *extremes]
    for name in makers:
        row = [f"{np.median(errors[name]):.4f}", f"{errors[name].max():.4f}"]
        ratios = moments[name] / moments["float32"]
        for ratio in (ratios[0], ratios[1, :, ::2]):
            low, middle, high = np.percentile(ratio, [1, 50, 99])
            row.append(f"{middle:.3g} ({low:.3g}–{high:.3g})")
        for each in (peaks, more_peaks):
            row += [f"{x:.3g}" for x in each[name].max(0) / each["float32"].max(0)]
        yield [name, *row]


TABLES = {"state": state_table, "training": training_table, "quality": quality_table}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    add("--tree", choices=("gpt", "array"), default="gpt", help="what the parameters are")
    add("--parameters", type=int, default=20_000_000, help="how many there are, about")
    add("--rounds", type=int, default=20, help="rounds of timings, 4 or more")
    add("--alone", action="store_true", help="leave other libraries out")
    arguments = parser.parse_args()
    others = {} if arguments.alone else peers()
    params = make_params(arguments.tree, arguments.parameters)
    device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} processors, jax {jax.__version__}"
    arrays = f"{count(params):,} parameters in {len(jax.tree.leaves(params))} arrays"
    print(f"{device}, optax {optax.__version__}; {arrays}, {arguments.rounds} rounds.\n")
    for name in arguments.tables:
        titles, *rows = TABLES[name](params, arguments.rounds, others)
        rules = ["---"] + ["---:"] * (len(titles) - 1)
        print("\n".join("| " + " | ".join(row) + " |" for row in (titles, rules, *rows)), "\n")


if __name__ == "__main__":
    main()
