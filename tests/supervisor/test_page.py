"""The page at /: what its policy allows, and that its script writes no markup."""

from __future__ import annotations

import re

from engine.supervisor.page import page


def test_only_what_is_in_the_page_can_run_and_nothing_is_loaded() -> None:
    policy = dict(part.strip().split(" ", 1) for part in page().policy.split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    for name in ("script-src", "style-src"):
        assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", policy[name])


def test_the_page_is_whole() -> None:
    text = page().body.decode()
    assert re.findall(r"<(script|style)\b", text) == ["style", "script"]
    assert not re.search(r"(src|href)=\"(?!data:|#|status\"|metrics\")", text)
    assert not re.search(r"\bon[a-z]+=\"|url\(|@import|https?://(?!www\.w3\.org/)", text)
    assert not re.search(r" style=", text), "the policy would refuse it"


def test_names_never_become_markup() -> None:
    text = page().body.decode()
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|Function\(", text
    )
