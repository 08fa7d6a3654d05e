"""A small language model."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._core import arguments
from .data import HELD_OUT, normal, on_data
from .problem import Problem

_HEAD_WIDTH = 32


def language_model(layers: int = 2, width: int = 64, length: int = 64, batch: int = 16) -> Problem:
    """Which character comes next: a small GPT on the text that ships with Python.

        loss = mean cross-entropy of the next character, over a batch of pieces of text

    The text is what `help()` knows of the language, the standard library's `pydoc_data.topics`, nine
    tenths of it to train with; half of the rest is to select by, and half to report. The network is a
    causal transformer whose layers normalize their input, attend with heads of width 32, and go through a
    feed-forward part four times as wide: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; Radford et
    al. 2019,
    https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf.
    The text differs a little between versions of Python, and so does the loss.

    Args:
      layers: how many, 1 or more.
      width: of the embedding, a multiple of 32.
      length: how many characters the network sees at most, 1 or more.
      batch: how many pieces of text a step takes, 1 or more.

    Returns:
      The problem. Its params are dicts of matrices. evaluate is the mean over 64 pieces of the text held
      out, always the same, in nats per character, and test that over 64 pieces of its other half. The
      target is for the sizes that are the defaults.

    Raises:
      ValueError: for sizes out of range.

    Example:
      >>> import adaptive_jax as aj, jax
      >>> problem = aj.problems.language_model(layers=1, width=32, length=8)
      >>> params = problem.init(jax.random.key(0))
      >>> print(params["positions"].shape, problem.loss(params, jax.random.key(1)).shape)
      (8, 32) ()
    """
    layers = arguments.whole("layers", layers, 1)
    length = arguments.whole("length", length, 1)
    batch = arguments.whole("batch", batch, 1)
    width = arguments.whole("width", width, _HEAD_WIDTH)
    if width % _HEAD_WIDTH:
        raise ValueError(
            f"width={width!r} must be a multiple of {_HEAD_WIDTH}, the width of a head."
        )
    vocabulary, training, *held_out = _text()
    if length >= len(held_out[0]):
        raise ValueError(
            f"length={length!r} must be less than {len(held_out[0])}, the characters of each text held out."
        )
    random = np.random.RandomState(0)
    starts = (random.randint(len(text) - length, size=64)[:, None] for text in held_out)
    pieces = [
        text[start + np.arange(length + 1)[None]]
        for text, start in zip(held_out, starts, strict=True)
    ]

    # What a layer adds is smaller the more of them there are: the sum does not grow with them.
    added = (2 * layers) ** -0.5
    init = normal(
        {
            "tokens": np.full((vocabulary, width), 0.1),
            "positions": np.full((length, width), 0.1),
            "layers": [
                {
                    "attention_input": np.full((width, 3 * width), width**-0.5),
                    "attention_output": np.full((width, width), added * width**-0.5),
                    "feed_forward_input": np.full((width, 4 * width), width**-0.5),
                    "feed_forward_output": np.full((4 * width, width), added / 2 * width**-0.5),
                }
                for _ in range(layers)
            ],
            "output": np.full((width, vocabulary), width**-0.5),
        }
    )

    def cross_entropy(params: Any, pieces: jax.Array) -> jax.Array:
        logits = jax.vmap(_transformer, in_axes=(None, 0))(params, pieces[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, pieces[:, 1:]).mean()

    def loss(params: Any, key: jax.Array) -> jax.Array:
        starts = jax.random.randint(key, (batch,), 0, len(training) - length)
        places = starts[:, None] + jnp.arange(length + 1, dtype=starts.dtype)[None]
        return cross_entropy(params, jnp.asarray(training)[places])

    validation, test = (on_data(cross_entropy, (each,)) for each in pieces)
    return Problem(
        "language model",
        init,
        loss,
        validation,
        steps=500,
        target=2.05,
        measure=HELD_OUT,
        test=test,
    )


@functools.cache
def _text() -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """How many characters there are, and the texts to train with, select by and report, in numbers."""
    from pydoc_data.topics import topics

    # Topics quote each other. Every paragraph is kept once: what is held out must be unseen.
    paragraphs = dict.fromkeys("\n\n".join(topics.values()).split("\n\n"))
    characters, tokens = np.unique(list("\n\n".join(paragraphs)), return_inverse=True)
    ends = [len(tokens) * 18 // 20, len(tokens) * 19 // 20]
    training, validation, test = np.split(tokens.astype(np.int32), ends)
    return len(characters), training, validation, test


def _transformer(params: Any, tokens: jax.Array) -> jax.Array:
    """For each place of one piece of text, the logits of the character that comes next."""
    x = params["tokens"][tokens] + params["positions"][: len(tokens)]
    for layer in params["layers"]:
        mixed = _attention(jax.nn.standardize(x) @ layer["attention_input"])
        x = x + mixed @ layer["attention_output"]
        inner = jax.nn.gelu(jax.nn.standardize(x) @ layer["feed_forward_input"])
        x = x + inner @ layer["feed_forward_output"]
    return jax.nn.standardize(x) @ params["output"]


def _attention(inputs: jax.Array) -> jax.Array:
    """Each place takes from itself and from those before it, by how well its query fits their keys."""
    length = len(inputs)
    queries, keys, values = (
        part.reshape(length, -1, _HEAD_WIDTH) for part in jnp.split(inputs, 3, axis=1)
    )
    scores = jnp.einsum("qhd,khd->hqk", queries, keys) * _HEAD_WIDTH**-0.5
    past = jnp.tri(length, dtype=bool)[None]
    weights = jax.nn.softmax(jnp.where(past, scores, -jnp.inf))
    return jnp.einsum("hqk,khd->qhd", weights, values).reshape(length, -1)
