"""The losses that a published comparison of optimizers reached on one problem, reached again.

    python tests/benchmarks/crowded_valley.py
    python tests/benchmarks/crowded_valley.py --reshuffle

Schmidt, Schneider & Hennig 2021, "Descending through a Crowded Valley", https://arxiv.org/abs/2007.01547,
trained DeepOBS's `quadratic_deep` among other problems, with default settings and a constant learning rate
for 100 epochs of 7 batches of 128 points. Their numbers turn out to be the mean loss over the first 896 of
DeepOBS's 1000 test points, after the last epoch. Takes a few seconds, and prints

    |          | published |   ours | spread |  ratio |         |
    |----------|----------:|-------:|-------:|-------:|---------|
    | SGD      |     87.29 |  87.40 |   0.09 | 1.0012 | PASS    |
    | momentum |     87.37 |  87.65 |   0.30 | 1.0032 | PASS    |
    | Adam     |    106.64 | 106.69 |   0.08 | 1.0004 | PASS    |
    | AdaGrad  |    112.12 | 112.19 |   0.11 | 1.0006 | PASS    |

where PASS is within 1 %, and then single runs from their raw results, whose losses are met to a millionth:
https://github.com/SirRob1997/Crowded-Valley---Results. What it took:

* The seeds, 42 to 51, stand for orders of the data: the start and the points are the same for all. DeepOBS
  shuffles with TensorFlow 1, which starts again with the seed in every epoch. So a run sees the same 896
  of its 1000 training points, in the same 7 batches, in every epoch, and never the other 104.
  `tensorflow_order` computes that order.
* It matters for momentum, whose velocity sums up a hundred batches, or 14 epochs: over whole epochs the
  noise of the batches cancels. In a new order for every epoch, with --reshuffle, momentum ends at 97, and
  its seeds are 6 apart.
* TensorFlow's Adam has its ε outside of the bias correction, `eps_hat=True`, and its AdaGrad has no ε.
  Neither changes a digit that is printed.
* The published losses are, to the digits given, those of single runs: of seed 42 for SGD, of seed 43 for
  Adam and AdaGrad; for momentum they are 0.005 above seed 42. Ours are means over the ten seeds with the
  one Hessian that DeepOBS draws first. A mean over the raw results of all seeds is another number:
  DeepOBS draws eigenvalues and rotation from a generator that belongs to the module, so a run that is not
  the first in its process has another Hessian. Adam's run with seed 46 starts at a test loss of 387.71,
  that of the fourth Hessian, and not at 353.45.
"""

import argparse
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaptive_jax as aj
from adaptive_jax import problems

EPOCHS, BATCHES, BATCH = 100, 7, 128
SEEDS = range(42, 52)
TOLERANCE = 0.01


class Published(NamedTuple):
    """What is published of one optimizer.

    loss: the number of the paper.
    seed: that of a single run with the first Hessian.
    losses: its test losses after the epochs of `SHOWN`.
    """

    optimizer: optax.GradientTransformation
    loss: float
    seed: int
    losses: tuple[float, float, float]


SHOWN = (1, 10, 100)
PUBLISHED = {
    "SGD": Published(aj.sgd(0.01), 87.29, 42, (106.2466, 95.8939, 87.2928)),
    "momentum": Published(aj.sgd(0.01, momentum=0.99), 87.37, 42, (181.7744, 155.5748, 87.3647)),
    "Adam": Published(aj.adam(1e-3, eps_hat=True), 106.64, 43, (345.1772, 279.3969, 106.6395)),
    "AdaGrad": Published(
        aj.adagrad(0.01, initial_accumulator_value=0.1, eps=0.0),
        112.12,
        43,
        (308.7387, 215.3526, 112.1239),
    ),
}


class Philox:
    """The generator of TensorFlow: 32 bits at a time, from a counter that ten rounds of a cipher mix.

    Philox4x32-10, Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405.
    """

    def __init__(self, seed, second_seed):
        self.key = (seed % 2**32, seed >> 32)
        self.counter = second_seed << 64
        self.numbers = []

    def draw(self):
        if not self.numbers:
            a, b, c, d = ((self.counter >> shift) & 0xFFFFFFFF for shift in (0, 32, 64, 96))
            key, second_key = self.key
            for _ in range(10):
                first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
                a, b = (second >> 32) ^ b ^ key, second & 0xFFFFFFFF
                c, d = (first >> 32) ^ d ^ second_key, first & 0xFFFFFFFF
                key, second_key = (key + 0x9E3779B9) % 2**32, (second_key + 0xBB67AE85) % 2**32
            self.numbers = [d, c, b, a]
            self.counter += 1
        return self.numbers.pop()


def tensorflow_order(seed, size):
    """The order in which TensorFlow 1 shuffles so many points, with this seed of the graph.

    The shuffle's second seed is the number of operations that the graph had before it. DeepOBS had made
    three: found by trying, it gives the first losses of the published runs.
    """
    parent = Philox(seed, 3)
    generator = Philox(parent.draw(), parent.draw())
    order = list(range(size))
    for place in range(size):
        other = place + generator.draw() % (size - place)
        order[place], order[other] = order[other], order[place]
    return order


def batch_means(problem, reshuffle):
    """The mean of every batch, an array of seeds x epochs x batches x dimensions."""
    used = BATCHES * BATCH

    def of_seed(seed):
        if reshuffle:
            random = np.random.default_rng(seed)
            orders = [random.permutation(len(problem.data)) for _ in range(EPOCHS)]
        else:
            orders = [tensorflow_order(seed, len(problem.data))] * EPOCHS
        points = problem.data[np.array(orders)[:, :used]]
        return points.reshape(EPOCHS, BATCHES, BATCH, -1).mean(2)

    return np.stack([of_seed(seed) for seed in SEEDS])


@jax.jit
def train(optimizer, means):
    """The test loss before training and after each epoch: an array of seeds x (epochs + 1)."""
    problem = problems.quadratic_deep()
    hessian = jnp.asarray(problem.hessian, jnp.float32)

    def loss(params, mean):
        # That of the whole batch but for a constant: the gradient is the same.
        return (params - mean) @ hessian @ (params - mean) / 2

    def step(run, mean):
        params, state = run
        updates, state = optimizer.update(jax.grad(loss)(params, mean), state, params)
        return (optax.apply_updates(params, updates), state), None

    def epoch(run, means):
        run, _ = jax.lax.scan(step, run, means)
        return run, problem.evaluate(run[0])

    def of_seed(means):
        params = problem.init(jax.random.key(0))
        _, losses = jax.lax.scan(epoch, (params, optimizer.init(params)), means)
        return jnp.append(problem.evaluate(params), losses)

    return jax.vmap(of_seed)(means)


def reproduce(reshuffle=False):
    """For each optimizer the test losses of all seeds, seeds x (epochs + 1)."""
    means = batch_means(problems.quadratic_deep(), reshuffle)
    return {
        name: np.asarray(train(each.optimizer, means), np.float64)
        for name, each in PUBLISHED.items()
    }


def compare(reshuffle):
    losses = reproduce(reshuffle)
    print(f"Test loss after {EPOCHS} epochs, mean and standard deviation over {len(SEEDS)} seeds\n")
    print("|          | published |   ours | spread |  ratio |         |")
    print("|----------|----------:|-------:|-------:|-------:|---------|")
    for name, published in PUBLISHED.items():
        final = losses[name][:, -1]
        ratio = final.mean() / published.loss
        verdict = "PASS" if abs(ratio - 1) <= TOLERANCE else "differs"
        print(
            f"| {name:8} | {published.loss:9.2f} | {final.mean():6.2f} | {final.std(ddof=1):6.2f} |"
            f" {ratio:6.4f} | {verdict:7} |"
        )
    if reshuffle:
        return
    print("\nSingle runs: published test loss after some epochs, and how far ours is from it\n")
    headings = "|".join(f"epoch {each}".rjust(18) + " " for each in SHOWN)
    print(f"|          | seed |{headings}|")
    print(f"|----------|-----:|{'|'.join(['-' * 18 + ':'] * len(SHOWN))}|")
    for name, published in PUBLISHED.items():
        ours = losses[name][SEEDS.index(published.seed), list(SHOWN)]
        cells = [
            f"{theirs:8.4f}, {our / theirs - 1:+.0e}"
            for our, theirs in zip(ours, published.losses, strict=True)
        ]
        print(f"| {name:8} | {published.seed:4} |{'|'.join(f'{each:>18} ' for each in cells)}|")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--reshuffle", action="store_true", help="the data in a new order for every epoch"
    )
    arguments = parser.parse_args()
    started = time.perf_counter()
    compare(arguments.reshuffle)
    print(f"\n{time.perf_counter() - started:.0f} seconds")


if __name__ == "__main__":
    main()
