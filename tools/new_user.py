"""How long somebody waits who sees headrace for the first time: ``python tools/new_user.py [--console]``.

The committed tree is cloned into a folder of its own, with an empty home: no environment, no compiler cache, no model, nothing
that was calibrated. One command, ``make serve``, and then a streamed answer; with ``--console`` (the extra ``dev`` and Chromium)
also an answer in the page. Prints a table of seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 1800.0  # seconds until an answer must have come
KEPT = ("PATH", "LANG", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "http_proxy", "https_proxy", "no_proxy")
QUESTION = {"messages": [{"role": "user", "content": "What is a water mill?"}], "stream": True, "max_tokens": 24}


def main() -> None:
    """Clone, serve, ask; the folder is removed whatever happens."""
    parser = argparse.ArgumentParser(description="Time from a clone to the first streamed token, on a machine that knows nothing.")
    parser.add_argument("--console", action="store_true", help="open the console in Chromium, too, and wait for an answer there")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="headrace-new-user-"))
    try:
        for what, seconds in journey(folder, console=options.console):
            print(f"{what:<52} {seconds:8.1f} s", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def journey(folder: Path, *, console: bool) -> list[tuple[str, float]]:
    """What was waited for, and how long."""
    began = time.perf_counter()
    tree = folder / "headrace"
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{ROOT}", str(tree)], check=True)
    cloned = time.perf_counter()
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith("PIP_")}
    environment |= {"HOME": str(folder / "home")}
    (folder / "home").mkdir()
    command = ["make", "serve", f"ARGS=--port {port}"]
    server = subprocess.Popen(command, cwd=tree, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        first = first_token(url, server)
        steps = [("clone", cloned - began), ("make serve, to the first streamed token", first - cloned)]
        if console:
            steps.append(("opening the console, to the end of an answer", console_answer(url)))
        steps += [("warm: the same question again", again(url)), ("in all, one command", first - began)]
        return steps
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def first_token(url: str, server: subprocess.Popen[bytes]) -> float:
    """Ask until somebody answers; the moment of the first token."""
    limit = time.perf_counter() + LIMIT
    while time.perf_counter() < limit and server.poll() is None:
        try:
            return ask(url)
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    raise SystemExit("make serve ended before it answered" if server.poll() is not None else f"no answer within {LIMIT:.0f} s")


def ask(url: str) -> float:
    """The moment when a stream's first text came."""
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(QUESTION).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        for line in answer:
            if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                return time.perf_counter()
    raise SystemExit("the stream ended without a token")


def again(url: str) -> float:
    """Seconds to the first token of a server that has answered before."""
    began = time.perf_counter()
    return ask(url) - began


def console_answer(url: str) -> float:
    """Seconds from opening the page to a whole answer in it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        began = time.perf_counter()
        page.goto(url)
        page.fill("#prompt", "What is a water mill?")
        page.keyboard.press("Enter")
        page.wait_for_selector(".assistant .meta span", timeout=60_000)
        seconds = time.perf_counter() - began
        browser.close()
        return seconds


if __name__ == "__main__":
    main()
