"""How several things are told in a sentence, on a page and in what is recorded for one."""


def enumerated(words: list[str]) -> str:
    """Return *words* as in a sentence: ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
