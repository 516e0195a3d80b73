"""The console in a real browser: Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from conftest import Running

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
pytestmark = [pytest.mark.server, pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (apt-get install chromium)")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    with api.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if os.getuid() == 0 else [])
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page in which any error or refusal of the content policy fails the test."""
    context = browser.new_context()
    made = context.new_page()
    faults: list[str] = []
    made.on("pageerror", lambda error: faults.append(str(error)))
    made.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    yield made
    context.close()
    assert not [fault for fault in faults if "401" not in fault], faults


def say(page: Page, text: str) -> None:
    page.fill("#prompt", text)
    page.keyboard.press("Enter")
    page.wait_for_selector(".assistant .meta span")


def test_a_conversation(page: Page, real: Running) -> None:
    page.goto(real.url)
    page.fill("#set-max_tokens", "12")
    page.fill("#set-temperature", "0")
    say(page, "Name a river.")
    first = page.inner_text(".assistant .text")
    facts = page.inner_text(".assistant .meta")
    assert len(first) > 5
    assert "first token" in facts and "tokens/s" in facts and "12 tokens" in facts  # noqa: PT018
    page.get_by_label("Answer again", exact=True).click()
    page.wait_for_selector(".assistant .meta span")
    assert page.inner_text(".assistant .text") == first
    page.locator(".message.user").hover()
    page.get_by_label("Edit, and answer again").click()
    page.get_by_label("Edit the message").fill("Name a lake.")
    page.locator(".editing .primary").click()
    page.wait_for_selector(".assistant .meta span")
    assert page.locator(".message.user").inner_text() == "Name a lake."
    assert page.locator(".message").count() == 2
    page.get_by_label("Start anew").click()
    assert page.locator(".message").count() == 0


def test_tokens_by_probability(page: Page, real: Running) -> None:
    page.goto(real.url)
    page.fill("#set-max_tokens", "8")
    page.check("#probabilities")
    say(page, "The capital of France is")
    tokens = page.locator(".tokens .token")
    assert tokens.count() == 8
    tokens.nth(0).focus()
    assert page.locator(".alternatives .other").count() >= 5
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement === document.querySelectorAll('.tokens .token')[1]")


def test_what_a_model_says_is_text(page: Page, echo: Running) -> None:
    """The echo engine answers with its prompt: markup in it must come out as it is."""
    page.goto(echo.url)
    page.fill("#set-max_tokens", "60")
    say(page, "<img src=x onerror=alert(1)> **bold** `code`")
    assert "<img src=x onerror=alert(1)>" in page.inner_text(".assistant .text")
    assert page.locator(".assistant .text img").count() == 0
    assert page.locator(".message.user img").count() == 0


def test_stop(page: Page, echo: Running) -> None:
    page.goto(echo.url)
    page.fill("#set-max_tokens", "1800")
    page.fill("#prompt", "go on")
    page.keyboard.press("Enter")
    page.wait_for_selector(".assistant .text :text('go')", state="attached")
    page.get_by_role("button", name="Stop").click()
    page.wait_for_selector(".assistant .meta span")
    assert "ended by you" in page.inner_text(".assistant .meta")
    echo.eventually(lambda: echo.metric("headrace_requests_live") == 0)


def test_every_view_shows_real_data(page: Page, real: Running) -> None:
    page.goto(f"{real.url}/#engine")
    page.wait_for_selector(".tile")
    for _ in range(2):
        real.post("/v1/completions", {"prompt": "A mill is", "max_tokens": 24, "ignore_eos": True})
        page.wait_for_timeout(700)
    page.wait_for_selector(".stack")
    assert "decode" in page.inner_text(".page")
    assert "in the model" in page.inner_text(".picked")
    assert page.locator(".share-bar i").count() >= 2
    page.goto(f"{real.url}/#latency")
    page.wait_for_selector(".chart path.line")
    assert "ms" in page.inner_text(".tile .figure >> nth=0")
    page.goto(f"{real.url}/#requests")
    page.wait_for_selector("tbody tr")
    request = page.locator("tbody tr").first
    assert "length" in request.inner_text()
    request.locator("a").click()
    page.wait_for_selector("tr.chosen")
    assert "decode" in page.inner_text(".panel >> nth=0")
    page.goto(f"{real.url}/#doctor")
    page.wait_for_selector(".findings li", timeout=60_000)
    assert "kernels" in page.inner_text(".page")


def test_themes_and_phones(browser: Browser, echo: Running) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme="dark")
    page = context.new_page()
    page.goto(echo.url)
    theme = "document.documentElement.dataset.theme"
    assert page.evaluate(theme) == "dark"
    page.get_by_label("Light colours").click()
    assert page.evaluate(theme) == "light"
    page.reload()
    assert page.evaluate(theme) == "light"
    for view in ("chat", "engine", "latency", "requests", "doctor"):
        page.goto(f"{echo.url}/#{view}")
        page.wait_for_timeout(150)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
    page.keyboard.press("Alt+2")
    assert page.url.endswith("#engine")
    context.close()


def test_a_key_is_asked_for_once(browser: Browser, guest: Running) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(guest.url)
    page.fill("#key", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("#ask-problem:not(:empty)")
    page.fill("#key", "sk-guest")
    page.keyboard.press("Enter")
    page.wait_for_selector("#model option", state="attached")
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    assert not page.locator("#ask").is_visible()
    assert page.evaluate("localStorage.length") <= 1
    context.close()


def test_the_page_needs_no_other_host(echo: Running) -> None:
    for name in ("", *(f"console/{file.name}" for file in page_files())):
        answer = echo.get(f"/{name}".removesuffix("console/index.html"))
        assert answer.status_code == 200, name
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "http://" not in answer.text.replace("http://www.w3.org/", ""), name
        assert "https://" not in answer.text, name
        assert "innerHTML" not in answer.text, name
        with httpx.Client(trust_env=False) as http:
            again = http.get(
                f"{echo.url}/{name}".removesuffix("console/index.html"), headers={"if-none-match": answer.headers["etag"]}
            )
        assert again.status_code == 304


def page_files() -> list[Path]:
    import headrace.server.console

    return sorted((Path(headrace.server.console.__file__).parent / "page").iterdir())
