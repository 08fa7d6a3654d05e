"""The weights of a PyTorch model, here and back there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _arrays, _match

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def match(params: Any, named: Mapping[str, Any], known: Any = None) -> _match.Mapped:
    """Which parameter here each one of a PyTorch model is, and how its axes are ordered.

    Args:
      params: the parameters here, a tree.
      named: `dict(model.named_parameters())` or `model.state_dict()`, or shapes by name.
      known: pairs to start from, where names and shapes do not decide: {name: (path, axes)} or
        {name: path}.

    Returns:
      From each name there to (path here, axes). The axes are None, or those by which
      `numpy.transpose` brings the array there into the layout here: (1, 0) for a linear layer whose
      weights are (in, out) here, (2, 3, 1, 0) for a convolution in HWIO. Names decide where modules
      have the same names on both sides ("layers.0.weight" is "layers_0/kernel"; numbered ones if all
      their numbers agree), shapes elsewhere. A kernel (Flax) or w (Haiku) is transposed, a weight
      (Equinox) is not.

      What no name can tell is not told: a transposed convolution, and a linear layer whose inputs
      are the flattened (channels, height, width) of PyTorch, need weights reordered by hand.

    Raises:
      ValueError: where names and shapes leave a choice, or nothing fits.

    Example:
      >>> import adaptive_jax as aj, numpy as np
      >>> params = {"out": {"kernel": np.zeros((3, 2)), "bias": np.zeros(2)}}
      >>> aj.interop.torch.match(params, {"out.weight": (2, 3), "out.bias": (2,)})
      {'out.weight': ('out/kernel', (1, 0)), 'out.bias': ('out/bias', None)}
    """
    if isinstance(named, Mapping):
        named = {name: value for name, value in named.items() if not name.endswith(_BUFFERS)}
    return _match.match(params, named, known, transposes=True)


def import_params(params: Any, named: Mapping[str, Any], mapping: Any = None) -> Any:
    """The weights of a PyTorch model, in the structure, the layouts and the dtypes of params.

    Args:
      params: the parameters here, a tree of arrays.
      named: the model's `state_dict()`, of tensors or arrays.
      mapping: what `match` returns, or the like; None to let it find out.

    Returns:
      The tree of weights, copied.

    Raises:
      TypeError, ValueError: for a wrong shape, a missing name, NaN, or where `match` cannot decide.

    Example:
      >>> import adaptive_jax as aj, numpy as np
      >>> params = {"kernel": np.zeros((3, 2)), "bias": np.zeros(2)}
      >>> model = {"weight": np.ones((2, 3)), "bias": np.ones(2)}
      >>> aj.interop.torch.import_params(params, model)["kernel"].shape
      (3, 2)
    """
    mapped = match(params, named) if mapping is None else _match.checked_mapping(mapping, params)
    arrays = {}
    for name, (path, axes) in mapped.items():
        if name not in named:
            raise ValueError(f"mapping names {name!r}, which the model does not have.")
        arrays[path] = _arrays.to_here(named[name], axes, name)
    leaves = []
    for path, leaf in _arrays.paths(params).items():
        if arrays[path].shape != np.shape(leaf):
            raise ValueError(
                f"{path} has the shape {np.shape(leaf)}, but {arrays[path].shape} was saved. A mapping "
                "can transpose it: {name: (path, axes)}."
            )
        leaves.append(jnp.array(arrays[path], jnp.result_type(leaf)))
    return jax.tree.structure(params).unflatten(leaves)


def export_params(params: Any, mapping: Any) -> dict[str, Any]:
    """The reverse of `import_params`: tensors by name, for `model.load_state_dict`.

    Args:
      params: the parameters here.
      mapping: what `match` returns, or the like.

    Returns:
      Tensors of float32 or float64, in PyTorch's layouts. They are parameters: a model with buffers,
      such as the running means of batch normalisation, loads them with strict=False.

    Raises:
      ImportError: without PyTorch.
      ValueError: for a mapping that does not name every parameter once.
    """
    torch = imported_torch()
    known = _arrays.paths(params)
    return {
        name: torch.from_numpy(_arrays.to_there(_arrays.array(known[path], name), axes).copy())
        for name, (path, axes) in _match.checked_mapping(mapping, params).items()
    }


def imported_torch() -> Any:
    """PyTorch; an ImportError that says what to install if it is missing."""
    try:
        import torch
    except ImportError as error:
        raise ImportError("an export makes tensors: pip install torch") from error
    return torch
