"""Pictures of the console for the docs, from a real server under a real load: ``python tools/screenshots.py [FOLDER]``.

Needs Chromium and the extra ``dev``. Pictures are reduced to 256 colours, so that each stays small.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parent.parent
WIDE, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
GUIDE = "You are a friendly guide of a mill museum and answer in a few sentences. " * 6
QUESTIONS = ("What is a water mill?", "Name three rivers.", "Why does bread rise?", "Tell me about the sea.", "What is a dam?")


@dataclass(frozen=True)
class Shot:
    """One picture: file name, view, colours, size of the window, and how high the picture is (0: the window)."""

    name: str
    view: str
    theme: str
    size: dict[str, int]
    height: int = 0


SHOTS = (
    Shot("console-chat", "chat", "light", WIDE),
    Shot("console-engine", "engine", "dark", WIDE, 1000),
    Shot("console-latency", "latency", "light", WIDE),
    Shot("console-requests", "requests", "light", WIDE, 860),
    Shot("console-phone", "engine", "dark", PHONE),
)


def start() -> tuple[subprocess.Popen[str], str]:
    """A server on a free port and its address, once it listens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace", "serve", "--port", "0", "--pool-mib", "256"], stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stderr is not None
    for line in process.stderr:
        found = re.search(r"listening on (http://\S+)", line)
        if found:
            return process, found[1]
    raise SystemExit("the server did not start")


class Load:
    """A few people who ask now and then, until stopped."""

    def __init__(self, url: str, people: int) -> None:
        self._url = url
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(person,)) for person in range(people)]
        for thread in self._threads:
            thread.start()

    def _ask(self, person: int) -> None:
        with httpx.Client(trust_env=False, timeout=120) as http:
            for turn in range(10_000):
                long = "Answer from this text. " + "The mill stands by the river. " * 60 if (turn + person) % 4 == 0 else ""
                messages = [
                    {"role": "system", "content": GUIDE},
                    {"role": "user", "content": long + QUESTIONS[(turn * 3 + person) % len(QUESTIONS)]},
                ]
                body = {"messages": messages, "max_tokens": 24 + 31 * ((turn + person) % 4)}
                http.post(f"{self._url}/v1/chat/completions", json=body).raise_for_status()
                if self._over.wait(0.2 + 0.35 * ((turn + 2 * person) % 5)):
                    return

    def stop(self) -> None:
        """Let everybody finish."""
        self._over.set()
        for thread in self._threads:
            thread.join()


def prepare_chat(page: Page) -> None:
    """Ask something, with probabilities, and look at one token."""
    page.fill("#set-max_tokens", "90")
    page.fill("#set-temperature", "0.4")
    page.fill("#set-seed", "7")
    page.check("#probabilities")
    page.fill("#prompt", "What is a headrace, and why does a mill need one?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".assistant .meta span", timeout=60_000)
    page.locator(".tokens .token").nth(13).hover()


def take(browser: Browser, url: str, shot: Shot, folder: Path) -> None:
    """Take one picture."""
    size: Any = shot.size
    context = browser.new_context(viewport=size, color_scheme="dark" if shot.theme == "dark" else "light")
    page = context.new_page()
    page.goto(f"{url}/#{shot.view}")
    if shot.view == "chat":
        prepare_chat(page)
    else:
        page.wait_for_timeout(14_000 if shot.view == "engine" else 3_000)
    clip: Any = {"x": 0, "y": 0, "width": shot.size["width"], "height": shot.height} if shot.height else None
    data = page.screenshot(full_page=bool(clip), clip=clip)
    context.close()
    picture = Image.open(io.BytesIO(data)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(folder / f"{shot.name}.png", optimize=True)
    print(f"{shot.name}: {(folder / f'{shot.name}.png').stat().st_size / 1024:.0f} KiB")


def main(folder: Path) -> None:
    """Take all pictures."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    process, url = start()
    load = None
    try:
        time.sleep(2)
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"] if os.getuid() == 0 else [])
            load = Load(url, people=5)
            time.sleep(25)
            for shot in SHOTS:
                take(browser, url, shot, folder)
            browser.close()
    finally:
        if load is not None:
            load.stop()
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images")
