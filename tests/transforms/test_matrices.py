"""Which arrays are matrices inside of a model, and what is said of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import keystr, tree_leaves_with_path

import adaptive_jax as aj
from adaptive_jax._core.paths import path_name
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
    "a head": ["lm_head/kernel", "head", "classifier/kernel", "Head_0/kernel", "d/logits", "output"],
    "a norm": [
        "LayerNorm_0/scale", "h/0/ln_1", "ln_f", "RMSNorm_3/weight", "layer_norm/kernel", "bn1/w",
        "attention/norm/kernel",
    ],
    "a bias or a scale": ["layers/mlp/bias", "layers/scale", "gamma", "dense/out_bias"],
}  # fmt: skip


@pytest.mark.parametrize("path", INSIDE)
def test_words_that_only_look_like_others(path):
    assert role(path) is None


@pytest.mark.parametrize(
    ("kind", "path"), [(kind, x) for kind, each in OTHERS.items() for x in each]
)
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
    assert [row.why[0] for row in aj.describe(tx, params).rows][
        -1
    ] == "label 'rest': left out by where"


def test_the_rest_is_what_the_user_says():
    params = {"w": jnp.eye(2), "wte": jnp.ones((2, 2)), "b": jnp.ones(2), "none": None}
    for rest, update in (
        (aj.sgd(0.5), -0.5),
        (None, -0.1),
        (aj.adamw(0.25, weight_decay=1.0), -0.5),
    ):
        tx = aj.muon(0.1, rest=rest)
        updates, state = tx.update(params, tx.init(params), params)
        for name in ("wte", "b"):
            np.testing.assert_allclose(updates[name], update, rtol=1e-5)
        assert sorted(state.inner_states) == ["muon", "rest"]
    with_mask = aj.muon(
        0.1, weight_decay=0.5, mask={"w": False, "wte": True, "b": True, "none": None}
    )
    without = aj.muon(0.1)
    one, other = (tx.update(params, tx.init(params), params)[0]["w"] for tx in (with_mask, without))
    np.testing.assert_array_equal(one, other)


def test_without_parameters_and_for_one_array():
    w = jnp.eye(3)
    tx = aj.muon(0.1)
    updates, _ = tx.update(w, tx.init(w))
    assert np.all(np.diag(updates) < 0)


def matrix_shapes(tx, params):
    """The shapes of the matrices by the names of the arrays, and why they are for Muon."""
    rows = [row for row in aj.describe(tx, params).rows if row.matrix_shape is not None]
    names = {path_name(path): keystr(path) for path, _ in tree_leaves_with_path(params)}
    by_path = {row.path: row for row in rows}
    found = {name: by_path[path] for name, path in names.items() if path in by_path}
    assert len(found) == len(by_path)
    return {name: (row.matrix_shape, row.why[0]) for name, row in found.items()}


WHOLE = "label 'muon': a matrix inside of the model, of all heads"


def attention(library):
    """The parameters of an attention of 4 heads of 8, from 24 to 20 numbers, and how they are named."""
    x = jax.ShapeDtypeStruct((2, 5, 24), jnp.float32)
    if library == "nnx":
        nnx = pytest.importorskip("flax.nnx")

        def made():
            layer = nnx.MultiHeadAttention(
                num_heads=4, in_features=24, qkv_features=32, out_features=20, decode=False,
                rngs=nnx.Rngs(0),
            )  # fmt: skip
            return nnx.state(layer, nnx.Param)

        return jax.eval_shape(made), "{}/kernel/value"
    nn = pytest.importorskip("flax.linen")
    options = {"num_heads": 4, "qkv_features": 32, "out_features": 20}
    layer = nn.MultiHeadDotProductAttention(**options)
    if library == "linen, scanned":

        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                new = nn.MultiHeadDotProductAttention(**{**options, "out_features": 24})(x, x)
                return new, None

        layer = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
        start = jax.eval_shape(layer.init, jax.random.key(0), x, None)["params"]
        return start, "MultiHeadDotProductAttention_0/{}/kernel"
    start = jax.eval_shape(layer.init, jax.random.key(0), x, x)["params"]
    return start, "{}/kernel"


@pytest.mark.parametrize("library", ["nnx", "linen", "linen, scanned"])
def test_kernels_of_an_attention_are_one_matrix_for_all_heads(library):
    with jax.numpy_dtype_promotion("standard"):
        params, name = attention(library)
    layers, out = ((3,), 24) if library == "linen, scanned" else ((), 20)
    expected = {name.format(each): ((*layers, 24, 32), WHOLE) for each in ("query", "key", "value")}
    expected[name.format("out")] = ((*layers, 32, out), WHOLE)
    assert matrix_shapes(aj.muon(0.02), params) == expected
    # The user has the last word.
    by_head = aj.muon(0.02, axes={"query/kernel": aj.MatrixAxes(rows=-3, columns=-1)})
    found = matrix_shapes(by_head, params)
    assert found[name.format("query")] == ((*layers, 4, 24, 8), "label 'muon': named in axes")
    assert found[name.format("key")] == expected[name.format("key")]
    stacked = matrix_shapes(aj.muon(0.02, axes=aj.MatrixAxes()), params)
    why = "label 'muon': a matrix inside of the model"
    assert stacked[name.format("out")] == ((*layers, 4, 8, out), why)


def test_steps_of_an_attention_are_those_of_its_matrices():
    shapes = {"query": (6, 2, 3), "key": (6, 1, 3), "value": (6, 1, 3), "out": (2, 3, 6)}
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        name: {"kernel": jax.random.normal(key, shape)}
        for (name, shape), key in zip(shapes.items(), keys, strict=True)
    }
    flat = {
        name: {"kernel": each["kernel"].reshape((6, -1) if name != "out" else (-1, 6))}
        for name, each in params.items()
    }
    tx = aj.muon(0.02)
    updates, one_by_one = (tx.update(each, tx.init(each), each)[0] for each in (params, flat))
    for name, each in updates.items():
        expected = one_by_one[name]["kernel"].reshape(shapes[name])
        np.testing.assert_allclose(each["kernel"], expected, rtol=1e-5, atol=1e-7)


def test_scanned_dense_layers_with_the_names_of_an_attention_are_many_matrices():
    def kernels(**shapes):
        return {
            name: {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}
            for name, shape in shapes.items()
        }

    dense = kernels(query=(4, 24, 32), key=(4, 24, 32), value=(4, 24, 32), out=(4, 32, 24))
    found = matrix_shapes(aj.muon(0.02), dense)
    assert {name: shape for name, (shape, _) in found.items()} == {
        "query/kernel": (4, 24, 32), "key/kernel": (4, 24, 32), "value/kernel": (4, 24, 32),
        "out/kernel": (4, 32, 24),
    }  # fmt: skip
    alone = kernels(query=(24, 4, 8))  # Without the way back nothing says what its axes are.
    assert matrix_shapes(aj.muon(0.02), alone)["query/kernel"][0] == (24, 4, 8)
