"""The benchmark: how many calls a second, side by side with the alternatives."""

#: What is said of a contestant that gave no figure; the results have the reason under it.
UNFINISHED = "did not finish"


class Failed(Exception):  # noqa: N818 -- it is counted, not an error of the benchmark
    """A call had an answer, but not the one that it should have had."""
