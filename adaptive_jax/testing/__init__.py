"""Checks that a rule, an optimizer made of rules, or a storage keeps every promise of this library."""

from . import rules, storages
from .promises import BrokenPromise as BrokenPromise
from .rules import check_rule as check_rule
from .storages import check_storage as check_storage

STORAGE_PROMISES = storages.STORAGE_PROMISES
"""What `check_storage` checks, in order."""

PROMISES = rules.PROMISES
"""What `check_rule` checks, in order."""
