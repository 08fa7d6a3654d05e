"""Train a small GPT on the text that ships with Python, and let it write some more of it.

    pip install -e ".[examples]"
    python language_model.py
    python language_model.py --checkpoints ~/gpt    # run it again to go on after an interruption

The text is what `help()` knows of the language, nearly 400,000 characters in the standard library's
`pydoc_data.topics`. The model reads characters and predicts the next one. Weights are float32, the
network computes in bfloat16 (a processor without instructions for it may be quicker with
`--compute-dtype float32`). Takes three minutes on two CPU cores, and prints the losses on the way, what
the optimizer does to each group of weights, and what the model writes. The text differs between
versions of Python, so the numbers do:

    step 0: validation loss 5.409 nats or 7.803 bits per character
    …
    step 3000: validation loss 1.250 nats or 1.804 bits per character
    …
    A common statement cannot be interpreted with a tuple comparison of the string
    argument (the default is executed by "complex" and instance the other

The same command runs on a GPU, where --layers, --width and --length have room to grow. To go on with a
run, give the arguments that it was started with.
"""

import argparse
import itertools
import math
import re
import time
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaptive_jax as aj

try:
    from tqdm import tqdm
except ImportError as error:
    raise SystemExit(f'This example needs {error.name}: pip install -e ".[examples]"') from error

HEAD_WIDTH = 32
# What is measured of each group of arrays, and the heading of its column.
MEASURES = {
    "gradient_norm": "gradient norm",
    "parameter_norm": "weight norm",
    "update_ratio": "update/weights",
    "cosine": "cosine",
}


# --- The text ---------------------------------------------------------------------------------------


def load():
    """Return the characters that occur, and the text to train and to validate with, in tokens.

    A token is the place of a character among them.
    """
    # Topics quote each other. Every paragraph is kept once: validation must be on unseen text.
    paragraphs = dict.fromkeys("\n\n".join(topics.values()).split("\n\n"))
    characters, tokens = np.unique(list("\n\n".join(paragraphs)), return_inverse=True)
    training, validation = np.split(tokens.astype(np.int32), [len(tokens) * 9 // 10])
    return characters, training, validation


def batches(tokens, *, batch, length, seed, first_step):
    """Random pieces of the text, each of length + 1 tokens.

    A batch depends on nothing but its step, so a run that is resumed reads on where it stopped.
    """
    for step in itertools.count(first_step):
        starts = np.random.default_rng([seed, step]).integers(len(tokens) - length, size=batch)
        yield np.stack([tokens[start : start + length + 1] for start in starts])


# --- The model --------------------------------------------------------------------------------------


def init(key, *, vocabulary, layers, width, length):
    """The parameters: matrices only, in plain dicts and a list."""
    keys = iter(jax.random.split(key, 4 * layers + 3))

    def matrix(rows, columns, scale=1.0):
        return jax.random.normal(next(keys), (rows, columns)) * scale * rows**-0.5

    # What each layer adds starts small, so that the sum over the layers does not grow with them.
    small = (2 * layers) ** -0.5
    return {
        "embedding": {
            "tokens": 0.1 * jax.random.normal(next(keys), (vocabulary, width)),
            "positions": 0.1 * jax.random.normal(next(keys), (length, width)),
        },
        "layers": [
            {
                "attention": {
                    "inputs": matrix(width, 3 * width),
                    "output": matrix(width, width, small),
                },
                "feed_forward": {
                    "input": matrix(width, 4 * width),
                    "output": matrix(4 * width, width, small),
                },
            }
            for _ in range(layers)
        ],
        "output": matrix(width, vocabulary),
    }


def normalize(x):
    """Mean 0 and variance 1 over the features, computed in float32 whatever the dtype of x."""
    return jax.nn.standardize(x.astype(jnp.float32)).astype(x.dtype)


def attend(params, x):
    """Each place looks at itself and at those before it."""
    queries, keys, values = (
        part.reshape(len(x), -1, HEAD_WIDTH) for part in jnp.split(x @ params["inputs"], 3, axis=1)
    )
    scores = jnp.einsum("qhd,khd->hqk", queries, keys).astype(jnp.float32) * HEAD_WIDTH**-0.5
    past = jnp.tri(len(x), dtype=bool)
    weights = jax.nn.softmax(jnp.where(past[None], scores, -jnp.inf)).astype(x.dtype)
    return jnp.einsum("hqk,khd->qhd", weights, values).reshape(x.shape) @ params["output"]


def feed_forward(params, x):
    return jax.nn.gelu(x @ params["input"]) @ params["output"]


def network(params, tokens):
    """For each place of one text, the logits of the token that comes next."""
    embedding = params["embedding"]
    x = embedding["tokens"][tokens] + embedding["positions"][: len(tokens)]
    for layer in params["layers"]:
        x = x + attend(layer["attention"], normalize(x))
        x = x + feed_forward(layer["feed_forward"], normalize(x))
    return (normalize(x) @ params["output"]).astype(jnp.float32)


def loss_function(params, batch):
    logits = jax.vmap(network, in_axes=(None, 0))(params, batch[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()


# --- Training ---------------------------------------------------------------------------------------


def start(arguments, vocabulary):
    """The state before the first step."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=arguments.learning_rate,
        warmup_steps=arguments.steps // 20,
        decay_steps=arguments.steps,
        end_value=arguments.learning_rate / 20,
    )
    adamw = aj.adamw(schedule, b2=0.98, weight_decay=0.1)
    tx = aj.chain(
        aj.clip_by_global_norm(1.0),
        aj.diagnose(adamw, tuple(MEASURES), group_by=group_of, every=min(10, arguments.steps)),
    )
    params = init(
        jax.random.key(arguments.seed),
        vocabulary=vocabulary,
        layers=arguments.layers,
        width=arguments.width,
        length=arguments.length,
    )
    return aj.TrainState.create(params, tx)


def group_of(path):
    """From the path of an array, "['layers'][0]['attention']['output']", to "layer 1 attention"."""
    names = re.findall(r"\w+", path)
    return f"layer {int(names[1]) + 1} {names[2]}" if names[0] == "layers" else names[0]


def start_or_resume(arguments, vocabulary):
    """The newest checkpoint, or the state before the first step where there is none."""
    state = start(arguments, vocabulary)
    if arguments.checkpoints is None:
        return state
    try:
        return aj.restore_checkpoint(arguments.checkpoints, state)
    except FileNotFoundError:
        return state


def save(arguments, state):
    if arguments.checkpoints is not None:
        aj.save_checkpoint(arguments.checkpoints, state, keep=2)


@jax.jit
def mean_loss(params, tokens):
    """In nats per character, over the whole text cut in pieces, in float32."""
    piece_length = len(params["embedding"]["positions"]) + 1
    pieces = tokens[: len(tokens) // piece_length * piece_length].reshape(-1, 1, piece_length)
    return jax.lax.map(partial(loss_function, params), pieces, batch_size=16).mean()


def train(arguments, vocabulary, training, validation):
    """Train up to arguments.steps, from the last checkpoint if there is one. Return the state."""
    state = start_or_resume(arguments, vocabulary)
    first_step = int(state.step)
    step = aj.train_step(
        loss_function,
        accumulate=arguments.accumulate,
        compute_dtype=getattr(jnp, arguments.compute_dtype),
        metrics=("loss", "learning_rate", "gradient_norm"),
    )
    data = batches(
        training,
        batch=arguments.batch,
        length=arguments.length,
        seed=arguments.seed,
        first_step=first_step,
    )
    size = sum(x.size for x in jax.tree.leaves(state.params))
    print(f"{size:,} parameters, computed in {arguments.compute_dtype} on {jax.devices()[0]}")
    print_loss(first_step, state, validation)

    every = max(1, arguments.steps // 10)
    # Counted here: to ask the device for state.step would stall every step.
    numbers = itertools.count(first_step + 1)
    started = time.perf_counter()

    def report_and_save(state, metrics):
        number = next(numbers)
        if number % every == 0:
            # Above the progress bar, not into it.
            tqdm.write(
                f"{number:>6}{metrics['loss']:>16.3f}{mean_loss(state.params, validation):>18.3f}"
                f"{metrics['learning_rate']:>15.5f}{metrics['gradient_norm']:>15.2f}"
                f"{time.perf_counter() - started:>9.0f}"
            )
            save(arguments, state)

    left = max(0, arguments.steps - first_step)
    if left:
        print(
            f"\n{'step':>6}{'training loss':>16}{'validation loss':>18}{'learning rate':>15}"
            f"{'gradient norm':>15}{'seconds':>9}"
        )
    else:
        print(f"\nIts {arguments.steps} steps are done: there is nothing left to train.")
    state, _ = aj.fit(state, step, data, steps=left, callback=report_and_save)
    reached = int(state.step)
    if reached > first_step and reached % every:
        save(arguments, state)
    if reached < arguments.steps:  # Ctrl-C
        more = "." if arguments.checkpoints is None else ": the same command goes on from there."
        print(f"\nStopped after {reached} of {arguments.steps} steps{more}")
    print()
    print_loss(reached, state, validation)
    return state


def print_loss(number, state, validation):
    nats = float(mean_loss(state.params, validation))
    print(
        f"step {number}: validation loss {nats:.3f} nats or {nats / math.log(2):.3f} bits per character"
    )


def print_diagnostics(state):
    """What the optimizer last did to each group of arrays."""
    measured = jax.device_get(optax.tree.get(state.opt_state, "measured"))
    print(f"{'last update':<22}" + "".join(f"{heading:>16}" for heading in MEASURES.values()))
    for group in measured["cosine"]:
        values = "".join(f"{measured[name][group]:>16.3g}" for name in MEASURES)
        print(f"{group:<22}{values}")
    print("cosine: of the update and the gradient, 1 for gradient descent")


# --- Writing ----------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames="count")
def write(params, prompt, key, temperature, *, count):
    """The prompt and count more tokens, each drawn from the likely ones after those before it.

    The lower the temperature, the likelier the tokens.
    """
    length = len(params["embedding"]["positions"])
    tokens = jnp.pad(prompt, (0, max(count, length - len(prompt))))

    def add(tokens, place):
        first = jnp.maximum(place - length, 0)
        # From place on, the window has zeros yet. Attention looks back only, and never sees them.
        window = jax.lax.dynamic_slice_in_dim(tokens, first, length)
        logits = network(params, window)[place - 1 - first]
        token = jax.random.categorical(jax.random.fold_in(key, place), logits / temperature)
        return tokens.at[place].set(token), None

    tokens, _ = jax.lax.scan(add, tokens, len(prompt) + jnp.arange(count))
    return tokens[: len(prompt) + count]


# --- The program ------------------------------------------------------------------------------------


def read_arguments(argv=None):
    parser = argparse.ArgumentParser(
        description="Train a small GPT on the text of Python's help()."
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="the highest")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128, help=f"a multiple of {HEAD_WIDTH}")
    parser.add_argument("--length", type=int, default=64, help="how many characters it looks back")
    parser.add_argument("--batch", type=int, default=16, help="pieces of text per step")
    parser.add_argument("--accumulate", type=int, default=2, help="parts of a batch")
    parser.add_argument("--compute-dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--checkpoints", type=Path, help="folder to save to, and to go on from if it has some"
    )
    parser.add_argument("--prompt", default="The ", help="what the sample begins with")
    parser.add_argument("--temperature", type=float, default=0.7, help="of the sample, above 0")
    arguments = parser.parse_args(argv)
    for name in ("steps", "layers", "width", "length", "batch", "accumulate"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} {getattr(arguments, name)}: must be 1 or more")
    if arguments.width % HEAD_WIDTH:
        parser.error(f"--width {arguments.width}: must be a multiple of {HEAD_WIDTH}")
    if arguments.batch % arguments.accumulate:
        parser.error(f"--batch {arguments.batch}: must be a multiple of --accumulate")
    if arguments.temperature <= 0:
        parser.error(f"--temperature {arguments.temperature}: must be above 0")
    return parser, arguments


def main():
    parser, arguments = read_arguments()
    characters, training, validation = load()
    # Checked now: the prompt is needed last, and a wrong one must not cost the whole run.
    unknown = set(arguments.prompt) - set(characters.tolist())
    if unknown or not arguments.prompt:
        parser.error(f"--prompt {arguments.prompt!r}: must be of characters that the text has")
    if arguments.length >= len(validation):
        parser.error(f"--length {arguments.length}: must be less than {len(validation)}")
    print(
        f"{len(training):,} characters to train with, {len(validation):,} to validate with, "
        f"{len(characters)} different ones"
    )
    state = train(arguments, len(characters), training, validation)
    print()
    print_diagnostics(state)
    prompt = np.searchsorted(characters, list(arguments.prompt)).astype(np.int32)
    key = jax.random.key(arguments.seed)
    tokens = write(state.params, prompt, key, arguments.temperature, count=600)
    print(f"\n{'':-<72}\n{''.join(characters[tokens])}\n{'':-<72}")


if __name__ == "__main__":
    main()
