"""Pictures of training: curves, sensitivity, paths, measurements, performance profiles.

Every function draws into the matplotlib Axes `ax`, or into a new figure's, and returns the Axes. Titles,
limits and files are the caller's: `ax.set_title(...)`, `ax.figure.savefig("losses.pdf")`.
"""

from .budgets import best_so_far as best_so_far
from .history import measurements as measurements
from .landscape import paths as paths
from .lines import COLORS as COLORS
from .lines import DASHES as DASHES
from .lines import MARKERS as MARKERS
from .losses import SPREADS as SPREADS
from .losses import loss_curves as loss_curves
from .profile import performance_profile as performance_profile
from .rates import learning_rates as learning_rates
from .settings import sensitivity as sensitivity
