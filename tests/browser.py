"""A real browser: Chromium with its driver, headless. Tests are skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# What the page gets from /status, kept before the page sees it: the page's figures are compared with it.
_KEEP_ANSWERS = """
const fetched = window.fetch;
window.fetch = async (...given) => {
  const answer = await fetched(...given);
  if (answer.ok) window.answered = await answer.clone().json();
  return answer;
};
"""


class Browser:
    """One window.

    Attributes:
        driver: Selenium's.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": _KEEP_ANSWERS})

    def shape(self, width: int, height: int, *, dark: bool) -> None:
        """Give the window a size in CSS pixels, and its user a preference."""
        size = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def run(self, script: str, *arguments: object) -> Any:
        """The result of a script."""
        return self.driver.execute_script(script, *arguments)

    def shoot(self, path: Path) -> None:
        """Save a picture of the whole page."""
        import base64

        height = self.run("return document.documentElement.scrollHeight")
        width = self.run("return innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        taken = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True}
        )
        path.write_bytes(base64.b64decode(taken["data"]))

    def complaints(self) -> list[str]:
        """What the console has said since the last call."""
        return [each["message"] for each in self.driver.get_log("browser")]


@contextmanager
def chromium(*, insecure: bool = False) -> Iterator[Browser]:
    """A browser that accepts every certificate if ``insecure``."""
    webdriver = pytest.importorskip("selenium.webdriver")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("Chromium or its driver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"]
    for argument in (*arguments, "--disable-background-networking", "--no-first-run"):
        options.add_argument(argument)
    options.accept_insecure_certs = insecure
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    try:
        yield Browser(found)
    finally:
        found.quit()
