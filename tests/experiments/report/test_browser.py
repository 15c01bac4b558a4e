"""The page in a real browser: an empty console, zoom and filters, phone, dark mode and print, a page that follows its run."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from xomni_rl.experiments.report.page import build_report

WriteRun = Callable[..., Path]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the dev extra has it)")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine (apt-get install chromium)")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, "--no-first-run"])
        yield found
        found.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """visit(file, …) → the page, opened; afterwards its console must be empty and nothing may have been asked of a network."""
    said: list[str] = []
    contexts = []

    def start(path: Path, address: str = "", **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
        page.goto(path.resolve().as_uri() + address)
        return page

    yield start
    for context in contexts:
        context.close()
    assert said == []


def until(page: Any, condition: str) -> None:
    """Waits until a condition holds on the page, whose policy forbids what Playwright itself would do for that."""
    end = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"still not: {condition}"
        page.wait_for_timeout(50)


def scrolled(page: Any, *figures: str) -> Any:
    """The page with these figures drawn: each is when it comes near the screen."""
    for figure in figures:
        page.evaluate(f"document.querySelector('[data-figure=\"{figure}\"]').scrollIntoView({{block: 'center'}})")
        until(page, f"document.querySelector('[data-figure=\"{figure}\"] svg') !== null")
    return page


def ranges(page: Any) -> dict[str, list[float]]:
    """Figure → ends of its horizontal axis."""
    return page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('.js-plotly-plot')]"
        ".map(p => [p.dataset.figure, p._fullLayout.xaxis.range.map(Number)]))"
    )


def test_zoom_of_one_curve_zooms_all_over_steps_and_a_double_click_goes_back(write_run: WriteRun, visit: Open) -> None:
    page = scrolled(visit(build_report(write_run(steps=60))), "advantages", "grad_norm", "kl", "entropy")
    before = ranges(page)
    plot = page.locator("[data-figure=entropy] .nsewdrag").first
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 62, steps=5)
    page.mouse.up()
    low, high = before["entropy"]
    until(page, "document.querySelector('[name=from]').value !== ''")
    after = ranges(page)
    # a quarter and three quarters of the axis, to the pixel
    assert after["entropy"] == pytest.approx([low + 0.25 * (high - low), low + 0.75 * (high - low)], abs=0.5)
    assert after["grad_norm"] == after["kl"] == after["entropy"]
    assert after["advantages"] == before["advantages"]  # not over steps
    assert page.input_value("[name=from]") == str(int(after["entropy"][0]))
    page.mouse.dblclick(box["x"] + 50, box["y"] + 60)
    until(page, "document.querySelector('[name=from]').value === ''")
    assert ranges(page)["kl"] == pytest.approx(before["kl"])


def test_filters_choose_pictures_steps_and_stay_in_the_address(write_run: WriteRun, visit: Open) -> None:
    page = visit(build_report(write_run(images=12)))
    shown = "[...document.querySelectorAll('.card')].filter(card => card.offsetParent).map(card => card.dataset.{})"
    wanted = page.locator(".row .prompt").first.inner_text()
    page.fill("[name=words]", wanted)
    assert {wanted in words for words in page.evaluate(shown.format("words"))} == {True}
    page.fill("[name=words]", "")
    page.select_option("[name=right]", "False")
    assert set(page.evaluate(shown.format("right"))) == {"False"}
    page.fill("[name=from]", "5")
    steps = "[...document.querySelectorAll('.row:not([hidden]) .at')].filter(at => at.offsetParent).map(at => at.dataset.step)"
    assert set(page.evaluate(steps)) == {"10", "20"}  # of 0, 10, 20
    assert "right=False" in page.url
    page.click("[type=reset]")
    until(page, "[...document.querySelectorAll('.card')].every(card => !card.hidden)")
    page.locator(".shot img").first.click()
    assert page.locator("dialog.large img").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog.large").is_visible()


def test_methods_of_several_runs_can_be_left_out(write_run: WriteRun, tmp_path: Path, visit: Open) -> None:
    folders = [write_run("a"), write_run("b")]  # the same settings and seed: two methods, called by their folders
    page = scrolled(visit(build_report(folders, tmp_path / "both.html"), "#off=a"), "all-entropy")
    shown = "document.querySelector('[data-figure=\"all-entropy\"]')._fullData.map(trace => trace.visible)"
    assert page.evaluate(shown) == [False, True]  # as the address says
    page.check("[name=method][value=a]")
    assert page.evaluate(shown) == [True, True]
    page.uncheck("[name=method][value=b]")
    assert page.evaluate(shown) == [True, False]
    page.click("a[href='#run-1-']")
    assert page.locator("#run-1- .headline").first.is_visible()


def test_page_fits_a_phone_follows_dark_mode_and_prints_every_figure(write_run: WriteRun, visit: Open, tmp_path: Path) -> None:
    page = visit(build_report(write_run()), viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    scrolled(page, "components")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        ink, ground = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
        light, dark = ((sum(map(int, colour[4:-1].split(","))) / 3) for colour in (ink, ground))
        assert abs(light - dark) > 150
        assert (light > dark) == (scheme == "dark")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    drawn, plots = (page.locator(found).count() for found in (".plot.js-plotly-plot", ".plot"))
    assert drawn == plots > 10
    assert not page.locator(".filters").is_visible()
    page.pdf(path=str(tmp_path / "page.pdf"))
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_page_of_a_run_that_goes_on_shows_what_came_later(write_run: WriteRun, visit: Open) -> None:
    folder = write_run(finished=False)
    page = visit(build_report([folder], reload=1.0))
    (folder / "summary.json").write_text(json.dumps({"status": "finished", "steps": 20}))
    build_report([folder], reload=0.0)
    began = time.monotonic()
    page.wait_for_selector(".status.good", timeout=20000)
    assert time.monotonic() - began < 20
    assert page.locator("body[data-reload]").count() == 0
