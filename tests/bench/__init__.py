"""The benchmark: how many calls a second, side by side with the alternatives."""


class Failed(Exception):  # noqa: N818 -- it is counted, not an error of the benchmark
    """A call had an answer, but not the one that it should have had."""
