"""For tests of code that calls the database: what the pytest plugin and Django's runner use."""

from .captures import assert_num_queries as assert_num_queries
from .captures import capture_on_commit_callbacks as capture_on_commit_callbacks
from .ending import BridgeRunner as BridgeRunner
from .ending import many_transactions as many_transactions
from .transaction import one_transaction as one_transaction
