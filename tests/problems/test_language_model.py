"""The example that trains a small GPT: it learns, resumes bit for bit, looks back only and writes."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import language_model
import numpy as np
import optax
import pytest

TINY = [
    *("--steps", "40", "--learning-rate", "1e-2", "--layers", "1", "--width", "32"),
    *("--length", "16", "--batch", "8", "--accumulate", "2"),
]


@pytest.fixture(scope="module")
def text():
    characters, training, validation = language_model.load()
    return characters, training, validation[:2000]


@pytest.fixture(scope="module")
def params(text):
    """Of a network that is not trained."""
    size = {"vocabulary": len(text[0]), "layers": 2, "width": 32, "length": 16}
    return language_model.init(jax.random.key(0), **size)


def train(text, *arguments):
    characters, training, validation = text
    _, read = language_model.read_arguments([*TINY, *arguments])
    return language_model.train(read, len(characters), training, validation)


def assert_same(state, other):
    """Of the leaves: each run makes a schedule of its own, and functions are part of the structure."""
    leaves, others = jax.tree.leaves(state), jax.tree.leaves(other)
    jax.tree.map(np.testing.assert_array_equal, leaves, others)


@pytest.mark.slow
@jax.numpy_dtype_promotion("standard")  # optax's schedule mixes dtypes; the model does not.
def test_a_resumed_run_is_the_run_that_never_stopped_and_learns(
    text, tmp_path, capsys, monkeypatch
):
    whole = train(text)
    losses = [line.split() for line in capsys.readouterr().out.splitlines() if "nats" in line]
    (before, after) = (float(words[words.index("nats") - 1]) for words in losses)
    assert after < 3.5 < 4.5 < before

    batches = language_model.batches
    with monkeypatch.context() as patch:
        patch.setattr(
            language_model,
            "batches",
            lambda *args, **options: itertools.islice(batches(*args, **options), 22),
        )
        with pytest.raises(ValueError, match="ended after 22 of 40"):
            train(text, "--checkpoints", str(tmp_path))
    assert sorted(int(folder.name) for folder in tmp_path.iterdir()) == [16, 20]
    capsys.readouterr()
    resumed = train(text, "--checkpoints", str(tmp_path))
    assert "step 20: validation loss" in capsys.readouterr().out
    assert_same(resumed, whole)

    # A run that is finished takes no step more.
    again = train(text, "--checkpoints", str(tmp_path))
    assert_same(again, whole)
    language_model.print_diagnostics(again)
    shown = capsys.readouterr().out
    assert "layer 1 feed_forward" in shown
    assert "nan" not in shown
    cosines = optax.tree.get(again.opt_state, "cosine")
    assert all(0 < cosine < 1 for cosine in cosines.values())


def test_the_text_is_split_and_no_paragraph_is_in_both_parts(text):
    characters, training, validation = language_model.load()
    assert len(training) > 8 * len(validation) > 8 * 10_000

    def paragraphs(tokens):
        return {each for each in "".join(characters[tokens]).split("\n\n") if len(each) > 40}

    assert not paragraphs(training) & paragraphs(validation)


def test_batches_depend_on_the_step_alone():
    tokens = np.arange(100)
    options = {"batch": 4, "length": 8, "seed": 3}
    batches = language_model.batches(tokens, **options, first_step=0)
    fourth = next(itertools.islice(batches, 3, None))
    resumed = next(language_model.batches(tokens, **options, first_step=3))
    np.testing.assert_array_equal(resumed, fourth)
    assert fourth.shape == (4, 9)
    assert (np.diff(fourth) == 1).all()


def test_what_comes_later_changes_no_earlier_logits(text, params):
    tokens = jnp.asarray(text[1][:16])
    changed = tokens.at[10].set((tokens[10] + 1) % len(text[0]))
    logits, others = (language_model.network(params, each) for each in (tokens, changed))
    np.testing.assert_array_equal(logits[:10], others[:10])
    assert (logits[10:] != others[10:]).any(axis=1).all()


def test_computes_nearly_the_same_in_bfloat16(text, params):
    batch = text[1][: 8 * 17].reshape(8, 17)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    loss = jax.jit(language_model.loss_function)
    np.testing.assert_allclose(loss(low, batch), loss(params, batch), rtol=1e-2)
    gradients = jax.eval_shape(jax.grad(loss), low, batch)
    assert {x.dtype for x in jax.tree.leaves(gradients)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("prompt_length", [1, 5, 20])
@pytest.mark.parametrize("count", [3, 40])
def test_writes_so_many_characters_after_the_prompt(text, params, prompt_length, count):
    characters, training, _ = text
    prompt = training[:prompt_length]
    tokens = language_model.write(params, prompt, jax.random.key(1), 1.0, count=count)
    assert tokens.shape == (prompt_length + count,)
    np.testing.assert_array_equal(tokens[:prompt_length], prompt)
    assert ((tokens >= 0) & (tokens < len(characters))).all()
    assert len("".join(characters[tokens])) == prompt_length + count


def test_the_likeliest_character_is_written_where_it_is_cold(text, params):
    """The window moves along: each character is that after the 16 before it."""
    length = 16
    prompt = text[1][:4]
    tokens = language_model.write(params, prompt, jax.random.key(1), 1e-6, count=30)
    network = jax.jit(language_model.network)
    for place in (4, *range(length, 34)):
        before = tokens[max(0, place - length) : place]
        assert tokens[place] == network(params, before)[-1].argmax()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--steps 0", "--steps 0: must be 1 or more"),
        ("--width 100", "multiple of 32"),
        ("--batch 9", "multiple of --accumulate"),
        ("--temperature 0", "must be above 0"),
    ],
)
def test_refuses_arguments_that_cannot_be(arguments, message, capsys):
    with pytest.raises(SystemExit):
        language_model.read_arguments(arguments.split())
    assert message in capsys.readouterr().err
