"""Text that cannot control the terminal that shows it: names from MongoDB may contain anything."""

from __future__ import annotations

import re

# Control characters, and those that change the direction or the order of what follows, or cannot be seen.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def plain(text: str) -> str:
    """The text on one line, with its unseen characters as Python writes them."""
    return _UNSEEN.sub(lambda found: repr(found[0])[1:-1], text)


def plain_lines(text: str) -> str:
    """The same for a text of several lines; all but the first are indented, so that none passes for another's."""
    return "\n  ".join(map(plain, text.split("\n")))
