# SPDX-License-Identifier: GPL-2.0-only
"""The HTML report in a real browser: its controls work, without any network request."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from report_night import night

from harness.base.process import find_tool
from harness.report.files import write

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a nightly run with every kind of result."""
    root = tmp_path_factory.mktemp("page")
    run, background = night(root / "runs")
    write(run, "html", root / "report.html", background)
    return root / "report.html"


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    """A headless Chromium; `make test` installs it."""
    programs = [find_tool(name) for name in ("chromium", "chromedriver")]
    assert all(programs), "chromium and chromium-driver are not installed: make browser"
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with webdriver.Chrome(options=options, service=Service(str(programs[1]))) as driver:
        yield driver


@pytest.fixture
def browser(chromium: webdriver.Chrome, page: Path) -> Iterator[webdriver.Chrome]:
    """Chromium with the page open; after the test its requests and console messages are checked."""
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    chromium.get("about:blank")
    for kind in ("performance", "browser"):
        logged(chromium, kind)
    chromium.get(page.as_uri())
    yield chromium
    asked = {
        message["params"]["request"]["url"].partition("#")[0]
        for entry in logged(chromium, "performance")
        for message in [json.loads(entry["message"])["message"]]
        if message["method"] == "Network.requestWillBeSent"
    }
    assert asked == {page.as_uri()}
    assert logged(chromium, "browser") == []


def logged(browser: webdriver.Chrome, kind: str) -> list[dict[str, str]]:
    entries: list[dict[str, str]] = browser.get_log(kind)  # type: ignore[no-untyped-call]
    return entries


def find(browser: webdriver.Chrome, selector: str) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, selector)


def shown(browser: webdriver.Chrome, selector: str) -> list[WebElement]:
    script = "return Array.from(document.querySelectorAll(arguments[0])).filter(e => e.checkVisibility());"
    found: list[WebElement] = browser.execute_script(script, selector)
    return found


def type_filter(browser: webdriver.Chrome, words: str) -> None:
    box = browser.find_element(By.ID, "filter")
    box.clear()
    box.send_keys(words)
    said = browser.find_element(By.ID, "shown")
    WebDriverWait(browser, 10).until(lambda _: said.get_attribute("data-filter") == words)


def test_a_failure_opens_and_has_its_log(browser: webdriver.Chrome) -> None:
    """The worst failure is first; a click on it shows splat and output, another click hides them."""
    first = find(browser, "details.case")[0]
    summary, splat = (first.find_element(By.CSS_SELECTOR, one) for one in ("summary", "pre.splat"))
    assert "unplug_while_open" in summary.text
    assert "CRASH" in summary.text
    assert "new" in summary.text
    assert not splat.is_displayed()
    summary.click()
    assert "slab-use-after-free in vfio_group_fops_release" in splat.text
    assert "asked the host to unplug" in first.find_element(By.CSS_SELECTOR, "pre.log").text
    assert "--case probes/hotplug/unplug_while_open" in first.text
    summary.click()
    assert not splat.is_displayed()


def test_the_filter_leaves_what_matches(browser: webdriver.Chrome) -> None:
    """Words filter cases and failures, a word of a log finds its case, and no match shows 0."""
    everything = len(shown(browser, "details.case"))
    type_filter(browser, "get_pa gap_ends_the_length 7.3.5-cdev-edu")
    (case,) = shown(browser, "details.case")
    assert "gap_ends_the_length" in case.text
    (row,) = shown(browser, "tr[data-row]")
    assert "errno is 22" in row.text
    assert browser.find_element(By.ID, "shown").text == "1 case"
    type_filter(browser, "kasan slab-use-after-free")
    (case,) = shown(browser, "details.case")
    assert "unplug_while_open" in case.text
    type_filter(browser, "no such word")
    assert shown(browser, "[data-row]") == []
    browser.find_element(By.ID, "filter").send_keys(" \b" + "\b" * len("no such word"))
    WebDriverWait(browser, 10).until(lambda _: len(shown(browser, "details.case")) == everything)


def test_chips_choose_outcomes(browser: webdriver.Chrome) -> None:
    """A click on an outcome shows only its cases, a second click shows all again."""
    (chip,) = find(browser, ".chip[data-label=FLAKY]")
    chip.click()
    assert {row.get_attribute("data-label") for row in shown(browser, "[data-row]")} == {"FLAKY"}
    assert chip.get_attribute("aria-pressed") == "true"
    chip.click()
    assert len(shown(browser, "details.case")) > 1


def test_the_matrix_leads_to_the_job(browser: webdriver.Chrome) -> None:
    """A cell of the heat map opens the cases of its job."""
    cell = next(
        one for one in find(browser, ".heat td.bad a") if "7.3.5-cdev-edu" in str(one.get_attribute("title"))
    )
    cell.click()
    target = str(cell.get_attribute("href")).partition("#")[2]
    job = browser.find_element(By.ID, target)
    WebDriverWait(browser, 10).until(lambda _: job.get_attribute("open") is not None)
    assert "gap_ends_the_length" in job.text
    kinds = {one.get_attribute("class") for one in find(browser, ".heat td")}
    assert kinds == {"good", "bad", "flaky", "infra", "none"}


def test_it_fits_a_phone(browser: webdriver.Chrome) -> None:
    """With everything unfolded the page is no wider than a phone."""
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; });")
    width, room = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth];")
    assert (width, room) == (390, 390)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(browser: webdriver.Chrome, scheme: str) -> None:
    """In the light and the dark scheme every kind of text has enough contrast (WCAG AA: 4.5)."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; });")
    script = Path(__file__).with_name("contrast.js").read_text(encoding="utf-8")
    poor = browser.execute_script(script)
    assert poor == {}


def test_it_prints(browser: webdriver.Chrome) -> None:
    """When printed, failures are unfolded, the filter is hidden, and there are several pages."""
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'));")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not browser.find_element(By.CSS_SELECTOR, ".tools").is_displayed()
    assert all(one.is_displayed() for one in find(browser, "pre.splat"))
    printed = browser.execute_cdp_cmd("Page.printToPDF", {})
    assert len(printed["data"]) > 20_000
