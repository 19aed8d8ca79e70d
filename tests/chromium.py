"""Headless Chromium as a person would use it, over its DevTools protocol: a page is opened, read, used and pictured."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

BINARIES = ("chromium", "chromium-browser", "google-chrome", "chrome")
TIMEOUT_S = 60.0
LOOKS = {"light": (1280, "light"), "dark": (1280, "dark"), "narrow": (360, "light")}  # name -> width, colour scheme
SHOWN = "[...document.querySelectorAll('.card')].filter((c) => c.checkVisibility()).map((c) => c.dataset.name)"
# Contrast of two colours by WCAG 2.2; `Canvas` colours come from the page as rgb(...).
CONTRAST = """
(() => {
  const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number).map(channel);
  const light = ([r, g, b]) => 0.2126 * r + 0.7152 * g + 0.0722 * b;
  const solid = (e) => {
    for (; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$/.test(color)) return color;
    }
    return "rgb(255, 255, 255)";
  };
  let worst = [99, ""];
  for (const e of document.querySelectorAll("main *, nav *, header *")) {
    if (!e.textContent.trim() || e.closest("svg") || !e.checkVisibility()) continue;
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(rgb(solid(e)))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < worst[0]) worst = [ratio, e.tagName + ": " + e.textContent.trim().slice(0, 60)];
  }
  return worst;
})()
"""


def find_chromium() -> str | None:
    """Path of an installed browser."""
    return next((path for path in map(shutil.which, BINARIES) if path), None)


class Page:
    """One tab. Every console message, failed load and request is kept."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.number = 0
        self.problems: list[str] = []
        self.requests: list[str] = []

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its result."""
        self.number += 1
        number = self.number
        await self.socket.send_json({"id": number, "method": method, "params": parameters})
        return await self._until(lambda message: message.get("id") == number)

    async def _until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                message = await self.socket.receive_json()
                self._note(message)
                if wanted(message):
                    if "error" in message:
                        raise RuntimeError(message["error"]["message"])
                    result: dict[str, Any] = message.get("result", message)
                    return result

    def _note(self, message: dict[str, Any]) -> None:
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(parameters["exceptionDetails"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.problems.append(f"{parameters['type']}: {parameters['args']}")
        elif method == "Log.entryAdded":
            self.problems.append(parameters["entry"]["text"])
        elif method == "Page.javascriptDialogOpening":
            self.problems.append(f"dialog: {parameters['message']}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])

    async def open(self, path: Path) -> float:
        """Load a file; returns seconds until the load event."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")
        started = time.monotonic()
        await self.send("Page.navigate", url=path.resolve().as_uri())
        await self._until(lambda message: message.get("method") == "Page.loadEventFired")
        return time.monotonic() - started

    async def run(self, expression: str) -> Any:
        """Value of a JavaScript expression on the page."""
        answer = await self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    async def look(self, width: int, height: int, scheme: str = "light", scale: float = 1.0) -> None:
        """Set size [CSS pixels] and colour scheme."""
        mobile = width < 600
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.send("Emulation.setEmulatedMedia", features=features)

    async def type(self, text: str) -> None:
        """Type into what has the focus."""
        await self.send("Input.insertText", text=text)

    async def press(self, key: str, code: int) -> None:
        """Press a key by name and Windows key code, for example Tab, 9."""
        for kind in ("keyDown", "keyUp"):
            await self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    async def screenshot(self, path: Path) -> bytes:
        """A picture of what is seen."""
        answer = await self.send("Page.captureScreenshot", format="png")
        data = base64.b64decode(answer["data"])
        path.write_bytes(data)
        return data


async def _visit(binary: str, script: Callable[[Page], Any]) -> Any:
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        command = [binary, *options, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        browser = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            port = await _port(Path(profile) / "DevToolsActivePort", browser)
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    tabs = json.loads(await answer.text())
                address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
                async with session.ws_connect(address, max_msg_size=0) as socket:
                    return await script(Page(socket))
        finally:
            browser.terminate()
            browser.wait(30)


async def _port(file: Path, browser: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        found = re.match(r"(\d+)\n", file.read_text()) if file.exists() else None
        if found:
            return int(found[1])
        assert browser.poll() is None, f"Chromium ended with status {browser.returncode}"
        await asyncio.sleep(0.1)
    raise TimeoutError(f"Chromium opened no DevTools port within {TIMEOUT_S} s")


def visit(script: Callable[[Page], Any]) -> Any:
    """Start Chromium, run `script` with an empty page, and end Chromium."""
    binary = find_chromium()
    assert binary is not None
    return asyncio.run(_visit(binary, script))


def nothing_wrong(page: Page, report: Path) -> None:
    """No error, no warning, and nothing asked for but the page itself."""
    assert page.problems == []
    assert [r for r in page.requests if not r.startswith("data:")] == [report.resolve().as_uri()]


async def filter_to_one_class(page: Page, report: Path) -> None:
    """What a person does who wants to see the images of one class."""
    await page.open(report)
    everything = await page.run(SHOWN)
    wanted = everything[1]
    await page.run("document.getElementById('search').focus()")
    await page.type(wanted)
    assert await page.run(SHOWN) == [wanted]
    assert await page.run("document.getElementById('count').textContent") == f"1 of {len(everything)} classes"
    await page.run("[...document.querySelectorAll('.card details')].find((d) => d.checkVisibility()).open = true")
    await page.run("new Promise((done) => setTimeout(done, 200))")
    rows = await page.run("[...document.querySelectorAll('.card tbody tr')].map((r) => r.cells[1].textContent)")
    assert rows
    assert len(rows) == len(set(rows))
    assert await page.run("document.querySelector('.card table').querySelectorAll('img, script, b').length") == 0
    nothing_wrong(page, report)


async def look_around(page: Page, report: Path, folder: Path, name: str) -> None:
    """Open everything, measure contrast and width, and take a picture of each section.

    The pictures are kept where UPL_SCREENSHOTS says, to be looked at.
    """
    folder = Path(os.environ.get("UPL_SCREENSHOTS", folder))
    folder.mkdir(parents=True, exist_ok=True)
    width, scheme = LOOKS[name]
    await page.look(width, 1000, scheme)
    await page.open(report)
    await page.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    await page.run("new Promise((done) => setTimeout(done, 300))")
    ratio, where = await page.run(CONTRAST)
    assert ratio >= 4.5, where  # WCAG 2.2, level AA
    assert await page.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    await page.run("document.querySelectorAll('details').forEach((d) => { d.open = false; })")
    for section in ("verdict", "classes", "observations", "members-section", "changes", "calibration"):
        await page.run(f"document.getElementById('{section}').scrollIntoView()")
        await page.run("new Promise((done) => setTimeout(done, 300))")
        with Image.open(io.BytesIO(await page.screenshot(folder / f"{name}-{section}.png"))) as image:
            assert (np.asarray(image.convert("L")).mean() < 100) == (scheme == "dark")
    nothing_wrong(page, report)
