"""A small network, and where its parameters are in PyTorch's."""

from __future__ import annotations

import numpy as np

PARAMS = {"dense": {"kernel": np.zeros((3, 2), np.float32), "bias": np.zeros(2, np.float32)}}
MAPPING = {"dense.weight": ("dense/kernel", (1, 0)), "dense.bias": "dense/bias"}
