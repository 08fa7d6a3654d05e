"""Schedules as data: callable with the count, printable, and pytrees whose numbers are leaves.

Those of `optax.schedules` have optax's names, arguments, order and defaults, and its values to rounding:
branches on arguments are taken when a schedule is made, in float64, where these are Python numbers, and
by `where` where they are traced. A length that optax takes as "no transition" is taken so too, without
a line in the log. Every schedule of optax's, and every other function of the count, can be used as
before; numbers in it are code then, and none of them is a leaf.

A derivative by a length is that from one side where a schedule has a corner at a count.
"""

from .._core.schedule import Schedule as Schedule
from .._core.schedule import product_of_schedules as product_of_schedules
from .._core.schedule import sum_of_schedules as sum_of_schedules
from .cycles import cosine_onecycle_schedule as cosine_onecycle_schedule
from .cycles import cyclic_schedule as cyclic_schedule
from .cycles import linear_onecycle_schedule as linear_onecycle_schedule
from .cycles import sgdr_schedule as sgdr_schedule
from .decays import constant_schedule as constant_schedule
from .decays import cosine_decay_schedule as cosine_decay_schedule
from .decays import exponential_decay as exponential_decay
from .decays import half_life_schedule as half_life_schedule
from .decays import linear_schedule as linear_schedule
from .decays import polynomial_schedule as polynomial_schedule
from .pieces import join_schedules as join_schedules
from .pieces import piecewise_constant_schedule as piecewise_constant_schedule
from .pieces import piecewise_interpolate_schedule as piecewise_interpolate_schedule
from .warmup import warmup_constant_schedule as warmup_constant_schedule
from .warmup import warmup_cosine_decay_schedule as warmup_cosine_decay_schedule
from .warmup import warmup_exponential_decay_schedule as warmup_exponential_decay_schedule
from .warmup import warmup_inverse_sqrt_schedule as warmup_inverse_sqrt_schedule
from .warmup import warmup_stable_decay_schedule as warmup_stable_decay_schedule
