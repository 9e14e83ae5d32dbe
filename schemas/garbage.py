"""How often Python looks for objects that only hold each other: seldom, where nearly all go by themselves.

For processes that make thousands of short-lived objects a second: it would look hundreds of times, in vain.
"""

from __future__ import annotations

import gc
from typing import Final

GARBAGE: Final = 20_000
"""Objects more than before until Python looks among the youngest."""


def collect_less() -> None:
    """From now on. What is there already stays, and is not looked at again."""
    gc.freeze()
    gc.set_threshold(GARBAGE)
