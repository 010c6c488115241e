"""comparison.html in a browser: Chromium, where it is installed with its driver."""

import shutil
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from runner.tasks.compare import compare
from tests.command_line import forked
from tests.run_folders import write_run
from tests.text.test_escape import HOSTILE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="needs chromium and chromedriver",
    ),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A comparison of three schedules with two seeds each, opened from its file, with what the
    browser logs."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    here = tmp_path_factory.mktemp("page")
    command = (
        "-m",
        "schedule=constant,linear,step",
        "seed=0,1",
        "trainer.max_epochs=2",
        "device=cpu",
    )
    (done,) = forked(here, command)
    assert done.status == 0
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,1000"):
        options.add_argument(argument)
    options.binary_location = str(shutil.which("chromium"))
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(shutil.which("chromedriver"))))
    try:
        driver.get((here / done.folder / "comparison.html").as_uri())
        yield driver
    finally:
        driver.quit()


def column(page: Any, name: str) -> list[str]:
    script = (
        "const th = [...document.querySelectorAll('#groups th')].find(th => th.textContent "
        "=== arguments[0]);"
        "return [...document.querySelectorAll('#groups tbody tr')].map(row => "
        "row.cells[th.cellIndex].textContent)"
    )
    return list(page.execute_script(script, name))


def shown(page: Any, chart: str) -> list[Any]:
    """Return whether each group's line is visible in a chart, rate or mean."""
    return list(page.execute_script(f"return lines.map(line => line.{chart}.visible)"))


def complaints(page: Any) -> list[Any]:
    """Return what the browser has logged as a warning or an error."""
    return [entry for entry in page.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def soon(page: Any, holds: Callable[[], bool]) -> None:
    """The charts are drawn anew a moment later."""
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(page, 10).until(lambda _: holds())


def wait_for_charts(page: Any) -> None:
    """Wait until the page and both charts are drawn."""
    drawn = (
        "return [rates, metric].filter(plot => plot.inner_width > 0).length + "
        "[...document.querySelectorAll('.chart > *')].filter(plot => "
        "plot.shadowRoot.querySelector('.bk-Canvas')).length"
    )
    soon(page, lambda: page.execute_script(drawn) == 4)


def test_it_loads_without_an_error_and_asks_for_nothing_but_itself(page: Any) -> None:
    assert complaints(page) == []
    asked = [
        entry["message"]
        for entry in page.get_log("performance")
        if "Network.requestWillBeSent" in entry["message"]
    ]
    assert not [message for message in asked if '"url":"http' in message]
    wait_for_charts(page)


def test_it_is_smaller_than_a_million_and_a_half_bytes(page: Any) -> None:
    assert len(page.page_source.encode()) < 1.5e6


def test_it_names_the_winner_and_the_command_to_copy(page: Any) -> None:
    text = page.find_element("css selector", ".answer").text
    assert "has the best val/loss" in text
    assert "To copy: python -m runner schedule=" in text


def test_a_checkbox_hides_its_line_in_both_charts(page: Any) -> None:
    """The band between the seeds goes with the line of the metric."""
    box = page.find_elements("css selector", "input[data-group]")[1]
    box.send_keys(" ")  # by keyboard
    assert shown(page, "rate") == shown(page, "mean") == shown(page, "every[2]")
    assert shown(page, "rate") == [True, False, True]
    box.send_keys(" ")
    assert shown(page, "rate") == [True, True, True]


def test_a_click_on_a_column_s_head_sorts_by_it_and_again_turns_it(page: Any) -> None:
    ranks = column(page, "rank")
    assert ranks == ["1", "2", "3"]
    head = next(
        button
        for button in page.find_elements("css selector", "#groups th button")
        if button.text == "overrides"
    )
    head.click()
    assert column(page, "overrides") == ["schedule=constant", "schedule=linear", "schedule=step"]
    assert head.find_element("xpath", "..").get_attribute("aria-sort") == "ascending"
    head.click()
    assert column(page, "overrides") == ["schedule=step", "schedule=linear", "schedule=constant"]
    values = next(
        b for b in page.find_elements("css selector", "#groups th button") if b.text == "val/loss"
    )
    values.click()
    assert column(page, "val/loss") == sorted(column(page, "val/loss"), key=float)


@pytest.mark.parametrize(
    ("scheme", "ground"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(22, 24, 28)")]
)
def test_page_and_charts_follow_the_reader_s_light_or_dark(
    page: Any, scheme: str, ground: str
) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    assert page.execute_script("return getComputedStyle(document.body).backgroundColor") == ground
    fill = "return [rates, metric].map(plot => plot.background_fill_color)"
    hexadecimal = {"light": "#ffffff", "dark": "#16181c"}[scheme]
    soon(page, lambda: page.execute_script(fill) == [hexadecimal] * 2)


def test_the_table_fits_a_window_of_1200_points(page: Any) -> None:
    assert page.execute_script(
        "const frame = document.querySelector('#groups').parentElement;"
        "return frame.scrollWidth <= frame.clientWidth"
    )


def test_it_fits_a_phone(page: Any) -> None:
    """Nothing is wider than 390 points, the table's rows are blocks of lines, and the charts stand
    one below the other."""
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    soon(page, lambda: page.execute_script("return document.documentElement.scrollWidth") <= 390)
    tops = page.execute_script(
        "return ['rate', 'metric'].map(id => "
        "document.getElementById(id).getBoundingClientRect().top)"
    )
    assert tops[1] > tops[0]
    width = "return document.querySelector('#groups').parentElement.scrollWidth"
    assert page.execute_script(width) <= 390
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_labels_of_a_stranger_are_text(page: Any, tmp_path: Path) -> None:
    """The last one, for it opens a page of its own: scripts, tags, links and controls in labels run
    and load nothing, also in the box that a chart shows under the pointer."""
    from selenium.webdriver.common.action_chains import ActionChains

    for i, text in enumerate(HOSTILE.values()):
        for seed in (0, 1):
            last = 0.5 + seed / 10 + i / 100
            choices = [f"trainer.max_epochs={i + 2}"]
            write_run(tmp_path / "runs", choices, seed, last, overrides=[text, *choices])
    compare([str(tmp_path / "runs")], tmp_path)
    (path,) = tmp_path.glob("comparisons/*/comparison.html")
    page.get_log("browser")
    page.get(path.as_uri())
    assert complaints(page) == []
    assert page.execute_script("return [document.scripts.length, document.images.length]") == [3, 0]
    labels = [label.text for label in page.find_elements("css selector", "fieldset label")]
    assert len(labels) == len(HOSTILE)
    assert any("<!--<script>alert(1)</script>" in label for label in labels)
    chart = page.find_element("id", "rate")
    wait_for_charts(page)
    inside = (
        "const within = root => [...root.querySelectorAll('*')].flatMap("
        "part => [part, ...(part.shadowRoot ? within(part.shadowRoot) : [])]);"
        "const every = within(document);"
    )
    tips = inside + "return every.filter(part => part.matches('.bk-tooltip-row-label')).map("
    labels = tips + "part => part.textContent)"
    places = cycle((0, 20))  # the pointer must move

    def is_told() -> bool:
        ActionChains(page).move_to_element_with_offset(chart, next(places), 0).perform()
        return any("<!--<script>" in label for label in page.execute_script(labels))

    soon(page, is_told)
    forbidden = "return every.filter(part => part.matches('img, iframe')).length"
    assert page.execute_script(inside + forbidden) == 0
    assert complaints(page) == []
