"""Saved runs of optax and optax.contrib go on here, and those from here go on there.

Optimizers have optax's names and arguments already, see "What differs from optax" for those that compute
something else. Many of them keep their state as optax does; of all others, these two convert it.
"""

from .states import export_state as export_state
from .states import import_state as import_state
