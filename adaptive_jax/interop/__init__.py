"""Optimizers under the names and with the semantics of other libraries."""

from . import keras as keras
from . import optax as optax
from . import torch as torch
