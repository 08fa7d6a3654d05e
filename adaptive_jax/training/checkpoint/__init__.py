"""Saving a run and going on with it, by Orbax: every entry under its name, and checked."""

from .checkpoints import Checkpoints as Checkpoints
from .folder import last as last
from .restore import restore_checkpoint as restore_checkpoint
from .save import save_checkpoint as save_checkpoint
