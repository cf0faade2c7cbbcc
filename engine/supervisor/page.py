"""The page at ``/``: one file, which loads nothing else and shows what ``/status`` says.

Its Content-Security-Policy allows the page's own style and script, by their hashes, and requests to where it came
from: whatever a name from MongoDB contains, nothing of it can run or leave.
"""

from __future__ import annotations

import functools
import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files

from engine.supervisor.endpoints import Reply


@functools.cache
def page() -> Reply:
    """The page, and its policy."""
    text = files("engine.supervisor").joinpath("page.html").read_text("utf-8")
    policy = (
        f"default-src 'none'; script-src {_hashes('script', text)}; style-src {_hashes('style', text)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Reply(200, "text/html; charset=utf-8", text.encode(), policy)


def _hashes(tag: str, text: str) -> str:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return " ".join(f"'sha256-{b64encode(sha256(each.encode()).digest()).decode()}'" for each in found)
