"""For tests of code that calls the database: what the pytest plugin and Django's runner use."""

from .callbacks import capture_on_commit_callbacks
from .ending import BridgeRunner, many_transactions
from .queries import assert_num_queries
from .transaction import one_transaction

__all__ = [
    "BridgeRunner",
    "assert_num_queries",
    "capture_on_commit_callbacks",
    "many_transactions",
    "one_transaction",
]
