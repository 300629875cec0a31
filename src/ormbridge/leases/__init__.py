"""Calls that keep one thread: leases, blocks' turns, suspended generators."""
