"""Seals: a recorded file that was edited by hand is none any more.

Whatever is recorded carries the digest of what it says, its *seal*. It is no secret, and keeps
nobody from making one; it shows that a figure on a page is not the one that was recorded.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

#: What is wrong with a file whose seal does not fit.
BROKEN = "was changed by hand and is not what was recorded"


def digest(text: str) -> str:
    """Return the SHA-256 of *text*, whatever its line ends."""
    return hashlib.sha256("\n".join(text.splitlines()).encode()).hexdigest()


def seal(data: Mapping[str, Any]) -> str:
    """Return the seal of *data*, which may have one already."""
    rest = {key: value for key, value in data.items() if key != "seal"}
    return digest(json.dumps(rest, sort_keys=True))[:16]
