"""Optimizers under the names and with the semantics of other libraries."""

from . import keras as keras
from . import torch as torch
