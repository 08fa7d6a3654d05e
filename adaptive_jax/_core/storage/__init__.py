"""How the slots of a rule are kept."""

from .base import BFloat16 as BFloat16
from .base import Float as Float
from .base import Storage as Storage
from .blocks import Blocks as Blocks
from .factored import Factored as Factored
from .masked import Masked as Masked
