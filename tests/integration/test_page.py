"""The page at / in a real browser, and ``top`` in real terminals, under load; compared with /status.

SCREENSHOTS=DIRECTORY keeps the pictures.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import random
import re
import shutil
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from bench.local import LocalStack
from tests.browser import Browser, chromium
from tests.integration.harness import Engine, EngineConfig, run_engine

MARKUP, REVERSED = "<img src=x onerror=alert(1)>", "events\u202egnp.\x1b[2Jexe"
NAMES = ["orders", "users", "carts", MARKUP, REVERSED]
SHAPES = {"desktop": (1280, 900), "phone": (390, 844)}


@dataclass
class Watched:
    """An engine under load, one of whose streams has failed."""

    config: EngineConfig
    engine: Engine

    def restart(self) -> None:
        """Start a new engine in place of a dead one."""
        self.engine = Engine(self.config)


@pytest.fixture(scope="module")
def watched(stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    assert stack.mongo is not None
    sections: dict[str, dict[str, Any]] = {"source": {"collections": [*NAMES, "recent"]}}
    sections["batch"] = {"rows": 5000, "interval": "2s"}
    config = EngineConfig(stack, tmp_path_factory.mktemp("page"), "shown", sections)
    with MongoClient[dict[str, Any]](stack.mongo.uri) as client:
        database = client.shown
        database.command("create", "recent", viewOn="orders", pipeline=[])
        stopped = threading.Event()

        def insert() -> None:
            chosen = random.Random(7)
            while not stopped.wait(0.25):
                for name in NAMES:
                    rows = chosen.randint(5, 60)
                    database[name].insert_many([{"text": "x" * chosen.randint(20, 400)} for _ in range(rows)])

        inserting = threading.Thread(target=insert)
        inserting.start()
        made = Watched(config, Engine(config))
        try:
            made.engine.wait_for(has_failed_and_reads, "reading")
            yield made
        finally:
            stopped.set()
            inserting.join()
            made.engine.kill_tree()


def has_failed_and_reads(status: dict[str, Any]) -> bool:
    states = sorted(each["state"] for each in status["streams"])
    return states == ["failed", *["reading"] * len(NAMES)] and all(
        each["events_committed"] for each in status["streams"] if each["state"] == "reading"
    )


def until(found: Callable[[], Any], what: str, seen: Callable[[], object] = str) -> Any:
    """What is found once it is true; ``seen`` is told if it never is."""
    deadline = time.monotonic() + 60
    while not (value := found()):
        assert time.monotonic() < deadline, (what, seen())
        time.sleep(0.1)
    return value


# --- the page -----------------------------------------------------------------------------------------------

# What the page shows, with the answer that it has shown.
SHOWN = """
const text = (node) => node.innerText.replace(/\\s+/g, " ").trim();
const cells = (id) => [...document.querySelectorAll(`#${id} tbody tr`)].map((row) =>
  [(row.querySelector("summary") || row.querySelector("th")).textContent,
   [...row.querySelectorAll("td")].map((each) => each.textContent)]);
return {
  at: document.body.dataset.at, answered: window.answered, about: text(document.querySelector("#about")),
  verdict: text(document.querySelector("#verdict")), title: document.title,
  figures: Object.fromEntries([...document.querySelectorAll(".figure")].map((each) =>
    [text(each.querySelector("h3")), [text(each.querySelector(".value")), text(each.querySelector(".note"))]])),
  streams: cells("t-streams"), processes: cells("t-processes"), errors: cells("t-errors"),
};
"""
# What a screen reader would miss.
UNNAMED = """
const wrong = [], all = (selector) => [...document.querySelectorAll(selector)];
for (const table of all("table")) {
  if (!table.caption || !table.caption.textContent) wrong.push("a table without a caption");
  for (const th of table.querySelectorAll("th")) if (!th.scope || !th.textContent) wrong.push(th.outerHTML);
}
for (const input of all("input")) if (!input.labels.length) wrong.push("no label: " + input.id);
for (const svg of all("svg")) if (!svg.getAttribute("aria-label")) wrong.push("a plot without a text");
const named = (part) => document.getElementById(part.getAttribute("aria-labelledby"));
for (const part of all("section")) if (!named(part)) wrong.push(part.id);
for (const bar of all("progress")) if (!bar.getAttribute("aria-label")) wrong.push("a bar without a text");
for (const each of all("button")) if (!each.hidden && !each.textContent) wrong.push("a button without a text");
const ids = all("[id]").map((each) => each.id);
if (new Set(ids).size < ids.length) wrong.push("an id twice");
for (const [tag, n] of [["main", 1], ["h1", 1], ["header", 1]]) if (all(tag).length !== n) wrong.push(tag);
if (document.documentElement.lang !== "en") wrong.push("lang");
return wrong;
"""
# Texts with less contrast to what is behind them than WCAG asks for (4.5).
FAINT = """
const colour = (text) => { const c = text.match(/[\\d.]+/g).map(Number); return [c[0], c[1], c[2], c[3] ?? 1]; };
const over = (a, b) => [0, 1, 2].map((n) => a[n] * a[3] + b[n] * (1 - a[3])).concat(1);
const linear = (v) => (v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
const light = (c) => [.2126, .7152, .0722].reduce((sum, weight, n) => sum + weight * linear(c[n] / 255), 0);
const behind = (node) => {
  const own = colour(getComputedStyle(node).backgroundColor);
  return own[3] === 1 ? own : over(own, node.parentElement ? behind(node.parentElement) : [255, 255, 255, 1]);
};
const faint = new Set();
for (const node of document.querySelectorAll("body *")) {
  const own = [...node.childNodes].some((each) => each.nodeType === 3 && each.textContent.trim());
  if (!own || !node.getClientRects().length || node.tagName === "SCRIPT") continue;
  const [front, back] = [light(over(colour(getComputedStyle(node).color), behind(node))), light(behind(node))];
  const contrast = (Math.max(front, back) + .05) / (Math.min(front, back) + .05);
  if (contrast < 4.5) faint.add(`${node.tagName}.${node.className}: ${contrast.toFixed(2)}`);
}
return [...faint];
"""


def shown(browser: Browser) -> dict[str, Any]:
    """What the page shows, when that is the latest answer that it has got."""

    def settled() -> dict[str, Any] | None:
        found: dict[str, Any] = browser.run(SHOWN)
        answered = found["answered"]
        return found if answered and found["at"] and float(found["at"]) == answered["at"] else None

    return until(settled, "the page shows an answer")  # type: ignore[no-any-return]


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "\u2013"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, s = divmod(int(seconds), 60)
    assert minutes < 60, "not in this test"
    return " ".join(f"{n} {unit}" for n, unit in ((minutes, "min"), (s, "s")) if n)


def check_figures(found: dict[str, Any], earlier: list[dict[str, Any]]) -> None:
    """Against the answer of /status, and rates against any two of the answers so far."""
    status = found["answered"]
    streams = {each["stream"]: each for each in status["streams"]}
    assert found["verdict"] == f"1 of {len(streams)} streams not read"
    assert found["title"].startswith("(!) 1 of")
    assert found["streams"][0][0] == "shown.recent", "problems first"
    assert {name for name, _ in found["streams"]} == set(streams)
    for name, (state, _, lag, left, in_flight, committed) in found["streams"]:
        each = streams[name]
        assert state == each["state"] + each["error"]
        assert lag == duration(each["lag_s"])
        assert left == duration(each["oplog_headroom_s"])
        assert in_flight == str(each["segments_in_flight"])
        assert committed == f"{each['events_committed']:,}"
    lags = [each["lag_s"] for each in streams.values() if each["lag_s"] is not None]
    assert found["figures"]["Lag"][0] == duration(max(lags))
    mebibytes = status["memory_bytes"] / 2**20
    assert found["figures"]["Memory"][0] == f"{mebibytes:.0f} MiB"
    assert (
        f"{100 * status['memory_bytes'] / status['memory_limit_bytes']:.0f} % of" in found["figures"]["Memory"][1]
    )
    total = sum(each["events_committed"] for each in streams.values())
    assert f"{total:,} events committed." in found["figures"]["Throughput"][1]
    assert {name for name, _ in found["processes"]} == {each["process"] for each in status["processes"]}
    assert found["errors"][0][1][1].startswith("stream stopped")
    if earlier and earlier[-1]["at"] < status["at"]:
        read = [(each["at"], sum(one["events_read"] for one in each["streams"])) for each in (*earlier, status)]
        at, events = read[-1]
        possible = {f"{(events - then) / (at - when):,.0f}/s" for when, then in read[:-1] if when < at}
        assert found["figures"]["Throughput"][0] in possible


def focused(browser: Browser) -> str:
    script = "const e = document.activeElement; return e.id || e.dataset.state || e.innerText.trim() || e.tagName"
    return str(browser.run(script))


def test_the_page(watched: Watched, tmp_path: Path) -> None:
    pictures = Path(os.environ.get("SCREENSHOTS", tmp_path))
    address = f"http://127.0.0.1:{watched.config.port}"
    with chromium() as browser:
        browser.shape(*SHAPES["desktop"], dark=False)
        browser.driver.get(f"{address}/")
        seen: list[dict[str, Any]] = []
        while len(seen) < 5:
            found = shown(browser)
            check_figures(found, seen)
            if not seen or found["answered"]["at"] != seen[-1]["at"]:
                seen.append(found["answered"])
        for name, size in SHAPES.items():
            for dark in (False, True):
                browser.shape(*size, dark=dark)
                browser.shoot(pictures / f"page-{name}-{'dark' if dark else 'light'}.png")
                assert browser.run(FAINT) == [], (name, dark)
                assert browser.run("return document.documentElement.scrollWidth <= innerWidth"), (name, dark)
        browser.shape(*SHAPES["desktop"], dark=False)
        assert browser.run(UNNAMED) == []
        check_keyboard(browser)
        check_filter(browser)
        loaded = browser.run("return performance.getEntriesByType('resource').map((each) => each.name)")
        assert {url.removeprefix(address) for url in loaded} == {"/status"}
        assert browser.complaints() == []
        check_recovery(browser, watched)


def check_keyboard(browser: Browser) -> None:
    """Everything in reading order; and what has the focus keeps it while the figures change."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    order = []
    for _ in range(14):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        order.append(focused(browser))
    assert order[:2] == ["Skip to the streams", "all 6"]
    assert order[2:5] == ["failed", "reading", "filter"]
    assert order[5:12] == ["Stream", "State", "Events read", "Lag", "Oplog left", "In flight", "Committed"]
    assert order[12] == "shown.recent"
    at = shown(browser)["at"]
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    until(lambda: shown(browser)["at"] != at, "another answer")
    assert focused(browser) == order[13]
    assert browser.run("return document.activeElement.parentElement.open")
    facts = browser.driver.find_element(By.CSS_SELECTOR, "details[open] dl").text
    assert "Collections" in facts
    hidden = browser.run("return [...document.querySelectorAll('dd')].map((each) => each.textContent).join()")
    assert f"shown: {MARKUP}" in hidden
    assert "events\\u202egnp.\\u001b[2Jexe" in hidden
    assert browser.run("return document.images.length") == 0


def check_filter(browser: Browser) -> None:
    rows = "return [...document.querySelectorAll('#t-streams tbody tr summary')].map((each) => each.textContent)"
    type_ = (
        "const i = document.getElementById('filter'); i.value = arguments[0]; i.dispatchEvent(new Event('input'))"
    )
    browser.run(type_, "view")
    assert browser.run(rows) == ["shown.recent"], "the reason is searched too"
    browser.run(type_, "")
    browser.run("document.querySelector('[data-state=reading]').click()")
    assert len(browser.run(rows)) == len(NAMES)
    browser.run("document.querySelector('[data-state=\"\"]').click()")
    browser.run("[...document.querySelectorAll('#t-streams thead button')].at(-1).click()")
    counts = browser.run(
        "return [...document.querySelectorAll('#t-streams td:last-child')].map((e) => e.textContent)"
    )
    numbers = [int(each.replace(",", "")) for each in counts]
    assert numbers == sorted(numbers, reverse=True)


def check_recovery(browser: Browser, watched: Watched) -> None:
    last = shown(browser)
    watched.engine.kill_tree()
    gone = "const e = document.getElementById('gone'); return e.hidden ? '' : e.textContent"
    told = until(lambda: browser.run(gone), "the page says that the engine is gone")
    since = re.fullmatch(r"The engine has not answered since (\d\d:\d\d:\d\d); the figures are as of then\.", told)
    assert since
    time_of_day = datetime.fromtimestamp(last["answered"]["at"], UTC).strftime("%H:%M:%S")
    assert since[1] >= time_of_day or time_of_day.startswith("23:59")
    assert browser.run("return document.getElementById('verdict').textContent") == "No answer"
    watched.restart()
    until(lambda: not browser.run(gone), "the page has recovered")
    assert shown(browser)["answered"]["started_at"] > last["answered"]["started_at"]


# --- the terminal -------------------------------------------------------------------------------------------

TOP = [sys.executable, "-m", "engine", "top", "--config"]


def check_screen(lines: list[str], width: int) -> None:
    text = "\n".join(lines)
    assert all(len(line) <= width for line in lines)
    assert re.search(r"throughput +[\d,.]+/s", text)
    assert re.search(r"memory +\d+ MiB", text)
    streams = lines[next(n for n, line in enumerate(lines) if line.startswith("stream ")) + 1 :]
    assert streams[0].startswith("shown.recent"), "problems first"
    assert "failed" in streams[0]
    assert streams[1].startswith("  read the change stream shown.recent: ")


def test_top_in_tmux(watched: Watched, tmp_path: Path) -> None:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    watched.engine.wait_for(has_failed_and_reads, "reading")

    def tmux(*arguments: str) -> str:
        command = ["tmux", "-S", str(tmp_path / "tmux"), "-f", "/dev/null", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    command = " ".join([*TOP, str(watched.config.path), f"; echo ended with $? > {tmp_path}/code; sleep 60"])
    tmux("new-session", "-d", "-x", "120", "-y", "40", command)
    try:
        pictures = Path(os.environ.get("SCREENSHOTS", tmp_path))
        for width, height in ((120, 40), (48, 24), (120, 40)):
            tmux("resize-window", "-x", str(width), "-y", str(height))

            def screen(width: int = width) -> list[str]:
                lines = tmux("capture-pane", "-p").splitlines()
                fits = lines and re.search("not read$", lines[0]) and len(lines[0]) in (width, width - 1)
                return lines if fits and re.search(r"throughput +[\d,.]+/s", "\n".join(lines)) else []

            lines = until(screen, "top is shown", lambda: tmux("capture-pane", "-p"))
            (pictures / f"top-{width}.txt").write_text("\n".join(lines) + "\n")
            check_screen(lines, width)
        tmux("send-keys", "q")
        until(lambda: (tmp_path / "code").exists() and (tmp_path / "code").read_text(), "it has ended")
        assert (tmp_path / "code").read_text() == "ended with 0\n"
        assert "headrace" not in tmux("capture-pane", "-p"), "what was on the terminal before is back"
    finally:
        tmux("kill-server")


class Pty:
    """A program in a pseudo-terminal; what it has written so far, and the screen that it makes."""

    def __init__(self, command: list[str], columns: int, lines: int) -> None:
        import pyte

        self.screen = pyte.Screen(columns, lines)
        self.stream = pyte.ByteStream(self.screen)
        self.written = b""
        self.pid, self.fd = pty.fork()
        if not self.pid:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
            os.execvpe(command[0], command, os.environ | {"TERM": "xterm-256color", "COLUMNS": "33"})
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        try:
            while data := os.read(self.fd, 65536):
                self.written += data
                self.stream.feed(data)
        except OSError:  # the program has ended
            pass

    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display]

    def end(self, key: bytes) -> int:
        os.write(self.fd, key)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self._reading.join(30)
        os.close(self.fd)
        return code


def test_top_survives_the_engine(watched: Watched) -> None:
    watched.engine.wait_for(has_failed_and_reads, "reading")
    terminal = Pty([*TOP, str(watched.config.path)], 110, 40)
    until(lambda: re.search(r"throughput +[\d,.]+/s", "\n".join(terminal.lines())), "top is shown")
    check_screen(terminal.lines(), 110)
    assert "stream stopped" in "\n".join(terminal.lines())
    # What comes from MongoDB does not get through to the terminal: no screen is cleared by a collection's name.
    assert b"gnp.\x1b[2J" not in terminal.written
    watched.engine.kill_tree()
    until(lambda: "no answer since" in "\n".join(terminal.lines()), "top says that the engine is gone")
    watched.restart()
    until(lambda: "not read" in terminal.lines()[0], "top shows the next engine")
    assert terminal.end(b"q") == 0


def test_top_in_a_pipe(watched: Watched) -> None:
    watched.engine.wait_for(has_failed_and_reads, "reading")
    done = run_engine(watched.config, "top")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    for each in (*NAMES[:3], "recent", "reader-0", "writer-1"):
        assert each in done.stdout
    nowhere = subprocess.run(
        [*TOP[:-1], "--url", "http://127.0.0.1:9"], capture_output=True, text=True, check=False, timeout=60
    )
    assert nowhere.returncode == 1
    assert "Connection refused" in json.loads(nowhere.stderr)["cause"]
