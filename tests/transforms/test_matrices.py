"""Which arrays are matrices inside of a model, and what is said of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptive_jax as aj
from adaptive_jax.transforms.matrices import role

INSIDE = [
    "", "w", "kernel", "layers/0/attention/query/kernel", "MultiHeadDotProductAttention_0/out/kernel",
    "attn/head_3/kernel", "blocks/attention/output/dense/kernel", "ahead/kernel", "overhead", "headless/w",
    "h/0/mlp/c_fc/kernel", "abnormal/kernel", "rescale/kernel", "biased/kernel", "token_mixing/kernel",
    "feed_forward_output", "decoder/layers/mlp/wi_0/kernel", "lora_b", "posterior/kernel", "scaled/w",
]  # fmt: skip
OTHERS = {
    "an embedding": [
        "wte/embedding", "wpe", "transformer/wte", "token_embedder/embedding", "params/Embed_0/kernel",
        "embed_tokens/weight", "patch_embed/proj/kernel", "posEmb", "cls_token", "tokens", "positions",
    ],
    "a head": ["lm_head/kernel", "head", "classifier/kernel", "Head_0/kernel", "logits_dense/logits", "output"],
    "a norm": [
        "LayerNorm_0/scale", "h/0/ln_1", "ln_f", "RMSNorm_3/weight", "layer_norm/kernel", "bn1/w",
        "attention/norm/kernel",
    ],
    "a bias or a scale": ["layers/mlp/bias", "layers/scale", "gamma", "dense/out_bias"],
}  # fmt: skip


@pytest.mark.parametrize("path", INSIDE)
def test_words_that_only_look_like_others(path):
    assert role(path) is None


@pytest.mark.parametrize(("kind", "path"), [(kind, x) for kind, each in OTHERS.items() for x in each])
def test_what_an_array_is_by_its_path(kind, path):
    assert role(path).startswith(f"{kind}, by ")


def test_the_arrays_of_the_language_model_of_this_library():
    params = aj.problems.language_model().init(jax.random.key(0))
    rows = aj.describe(aj.muon(0.02), params).rows
    for_adam = {row.path for row in rows if row.why[0].startswith("label 'rest'")}
    assert for_adam == {"['output']", "['positions']", "['tokens']"}


MODEL = {
    "wte": jax.ShapeDtypeStruct((64, 8), jnp.float32),
    "conv_1": {"kernel": jax.ShapeDtypeStruct((3, 3, 4, 8), jnp.float32)},
    "qkv": {"kernel": jax.ShapeDtypeStruct((8, 24), jnp.float32)},
    "layers": {"kernel": jax.ShapeDtypeStruct((4, 8, 8), jnp.float32)},
    "ln": jax.ShapeDtypeStruct((4, 8), jnp.float32),
    "phases": jax.ShapeDtypeStruct((2, 2), jnp.complex64),
    "bias": jax.ShapeDtypeStruct((8,), jnp.float32),
    "temperature": jax.ShapeDtypeStruct((), jnp.float32),
}


def test_describe_says_what_went_where_and_why():
    tx = aj.muon(0.02, axes={"qkv": aj.MatrixAxes(heads=3)})
    described = aj.describe(tx, MODEL)
    expected = {
        "['wte']": "label 'rest': an embedding, by 'wte'",
        "['conv_1']['kernel']": "label 'muon': a matrix inside of the model",
        "['qkv']['kernel']": "label 'muon': named in axes",
        "['layers']['kernel']": "label 'muon': a matrix inside of the model",
        "['ln']": "label 'rest': a norm, by 'ln'",
        "['phases']": "label 'rest': complex",
        "['bias']": "label 'rest': one axis",
        "['temperature']": "label 'rest': a number",
    }
    assert {row.path: row.why[0] for row in described.rows} == expected
    shapes = {row.path: row.matrix_shape for row in described.rows if row.axes is not None}
    assert shapes == {
        "['conv_1']['kernel']": (36, 8),
        "['qkv']['kernel']": (3, 8, 8),
        "['layers']['kernel']": (4, 8, 8),
    }
    assert "label 'rest': an embedding, by 'wte'" in str(described)


def test_axes_and_where_have_the_last_word():
    described = aj.describe(aj.muon(0.02, axes={"wte": aj.MatrixAxes()}), MODEL)
    assert described["['wte']"][0].why == ("label 'muon': named in axes",)

    def chosen(params):
        return jax.tree.map(lambda x: x.shape == (8, 24), params)

    described = aj.describe(aj.muon(0.02, where=chosen), MODEL)
    for row in described.rows:
        selected = row.array.shape == (8, 24)
        assert row.why[0] == (
            "label 'muon': selected by where" if selected else "label 'rest': left out by where"
        )
    tree = {"a": True, "b": False}
    params = {"a": jnp.ones((2, 2)), "b": {"c": jnp.ones((2, 2)), "d": None}}
    tx = aj.muon(0.1, where=tree, rest=None, adam_learning_rate=1.0)
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["b"]["c"], -1.0, rtol=1e-5)
    assert [row.why[0] for row in aj.describe(tx, params).rows][-1] == "label 'rest': left out by where"


def test_the_rest_is_what_the_user_says():
    params = {"w": jnp.eye(2), "wte": jnp.ones((2, 2)), "b": jnp.ones(2), "none": None}
    for rest, update in ((aj.sgd(0.5), -0.5), (None, -0.1), (aj.adamw(0.25, weight_decay=1.0), -0.5)):
        tx = aj.muon(0.1, rest=rest)
        updates, state = tx.update(params, tx.init(params), params)
        for name in ("wte", "b"):
            np.testing.assert_allclose(updates[name], update, rtol=1e-5)
        assert sorted(state.inner_states) == ["muon", "rest"]
    with_mask = aj.muon(0.1, weight_decay=0.5, mask={"w": False, "wte": True, "b": True, "none": None})
    without = aj.muon(0.1)
    one, other = (
        tx.update(params, tx.init(params), params)[0]["w"] for tx in (with_mask, without)
    )
    np.testing.assert_array_equal(one, other)


def test_without_parameters_and_for_one_array():
    w = jnp.eye(3)
    tx = aj.muon(0.1)
    updates, _ = tx.update(w, tx.init(w))
    assert np.all(np.diag(updates) < 0)
