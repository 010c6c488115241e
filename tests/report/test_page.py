"""comparison.html in a browser: Chromium, where it is installed with its driver."""

import shutil
from collections.abc import Callable, Iterator
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
    return list(
        page.execute_script(
            f"return document.getElementById('{chart}').data.map(line => line.visible)"
        )
    )


def soon(page: Any, holds: Callable[[], bool]) -> None:
    """The charts are drawn anew a moment later."""
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(page, 10).until(lambda _: holds())


def test_it_loads_without_an_error_and_asks_for_nothing_but_itself(page: Any) -> None:
    assert [
        entry for entry in page.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
    ] == []
    asked = [
        entry["message"]
        for entry in page.get_log("performance")
        if "Network.requestWillBeSent" in entry["message"]
    ]
    assert not [message for message in asked if '"url":"http' in message]
    assert len(page.find_elements("css selector", ".chart .main-svg")) >= 2


def test_it_names_the_winner_and_the_command_to_copy(page: Any) -> None:
    text = page.find_element("css selector", ".answer").text
    assert "has the best val/loss" in text
    assert "To copy: python -m runner schedule=" in text


def test_a_checkbox_hides_its_line_in_both_charts(page: Any) -> None:
    """Three lines of rates; of the metric a line and two ends of a band each."""
    box = page.find_elements("css selector", "input[data-group]")[1]
    box.send_keys(" ")  # by keyboard
    assert shown(page, "rate") == [None, False, None]
    assert shown(page, "metric") == [None] * 3 + [False] * 3 + [None] * 3
    box.send_keys(" ")
    assert shown(page, "rate")[1] is True


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
    fills = "return getComputedStyle(document.querySelector('#rate .main-svg')).backgroundColor"
    soon(page, lambda: page.execute_script(fills) == ground)


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
    and load nothing, and Plotly shows them as text."""
    for i, text in enumerate(HOSTILE.values()):
        for seed in (0, 1):
            last = 0.5 + seed / 10 + i / 100
            choices = [f"trainer.max_epochs={i + 2}"]
            write_run(tmp_path / "runs", choices, seed, last, overrides=[text, *choices])
    compare([str(tmp_path / "runs")], tmp_path)
    (path,) = tmp_path.glob("comparisons/*/comparison.html")
    page.get_log("browser")
    page.get(path.as_uri())
    assert page.get_log("browser") == []
    assert page.execute_script("return [document.scripts.length, document.images.length]") == [3, 0]
    labels = [label.text for label in page.find_elements("css selector", "fieldset label")]
    assert len(labels) == len(HOSTILE)
    assert any("<!--<script>alert(1)</script>" in label for label in labels)
    shown = "return document.getElementById('rate').data.map(line => line.name)"
    assert not [name for name in page.execute_script(shown) if "<" in name]
