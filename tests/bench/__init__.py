"""The benchmark: how many calls a second, side by side with the alternatives."""
