"""The morning page of 10,000 tiles in a browser, from a file, without a network."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from PIL import Image
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from hisem.report.morning import render_morning
from tests.report.nights import AFTER, BEFORE, SAME, night, row, table

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian: chromium-driver)"),
]

TILES = 10_000
ROWS = night(TILES).to_pylist()
EVIL = "</script><img src=x onerror=document.title='run'><script>document.title='run'</script>"


class Page:
    """A page in the browser, as a person uses it."""

    def __init__(self, driver: Chrome, folder: Path) -> None:
        self.driver = driver
        self._folder = folder

    def open(self, html: str) -> None:
        file = self._folder / "morning.html"
        file.write_text(html, encoding="utf-8")
        self.driver.get_log("performance")  # what earlier pages asked for
        self.driver.get(file.as_uri())

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.find(selector).get_attribute("textContent") or ""

    def wait(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def counts(self) -> tuple[int, int]:
        """Tiles of the list and of the map."""
        shown = self.text("#count").split(" of ")[0].replace(",", "")
        return int(shown), int(self.find("#map-count").get_attribute("data-tiles") or "")

    def type(self, selector: str, text: str) -> None:
        field = self.find(selector)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text or Keys.DELETE)

    def reset(self) -> None:
        self.find("#reset").click()
        self.wait(lambda: self.counts()[0] == TILES)

    def click_map(self, longitude: float, latitude: float) -> None:
        canvas = self.find("#map")
        west, south, east, north = map(float, (canvas.get_attribute("data-bounds") or "").split())
        right = (longitude - west) / (east - west) - 0.5
        down = (north - latitude) / (north - south) - 0.5
        size = canvas.size
        offset = round(right * size["width"]), round(down * size["height"])
        ActionChains(self.driver).move_to_element_with_offset(canvas, *offset).click().perform()

    def pixels(self, selector: str) -> npt.NDArray[np.int64]:
        image = Image.open(io.BytesIO(self.find(selector).screenshot_as_png))
        return np.asarray(image.convert("RGB")).astype(np.int64)

    def requests(self) -> set[str]:
        """Addresses that the page asked for, but those that hold their content themselves."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return {address for address in sent if not address.startswith("data:")}

    def complaints(self) -> list[Any]:
        return self.driver.get_log("browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1400,1000"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def opened(browser: Chrome, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of `ROWS`, opened once."""
    page = Page(browser, tmp_path_factory.mktemp("morning"))
    page.open(render_morning(table(ROWS), "Night", {"tiles": TILES}, []))
    return page


@pytest.fixture
def page(opened: Page) -> Iterator[Page]:
    """The same page as if just opened; whatever a test does with it, it must not complain."""
    opened.reset()
    opened.find("#zoom-fit").click()
    yield opened
    assert opened.complaints() == []


def changed(tile: dict[str, Any]) -> bool:
    return bool(tile["changed"])


def test_loads_nothing_but_itself(page: Page) -> None:
    page.wait(lambda: page.find("#list img").get_property("naturalWidth"))
    assert page.requests() == {page.driver.current_url}
    assert page.counts() == (TILES, TILES)


@pytest.mark.parametrize(
    "words", ["large BUILDING", "road forest is built", "widened", "the same", "nowhere", "removed road"]
)
def test_search_narrows_list_and_map_to_captions_with_all_words(page: Page, words: str) -> None:
    expected = sum(all(word in (tile["caption"] or "").lower() for word in words.lower().split()) for tile in ROWS)
    page.type("#search", words)
    page.wait(lambda: page.counts()[0] == expected)
    assert page.counts() == (expected, expected)
    assert len(page.driver.find_elements(By.CSS_SELECTOR, "#list button")) == min(50, expected)


def test_filters_narrow_list_and_map(page: Page) -> None:
    """Each filter on top of the others, against a plain loop."""
    left = list(ROWS)

    def expect(wanted: Callable[[dict[str, Any]], bool]) -> None:
        nonlocal left
        left = [tile for tile in left if wanted(tile)]
        page.wait(lambda: page.counts()[0] == len(left))
        assert page.counts() == (len(left), len(left))
        assert left

    page.find("input[name=kind][value='3']").click()
    expect(lambda tile: tile["status"] != "skipped")
    page.find("input[name=kind][value='1']").click()
    expect(lambda tile: tile["status"] == "ok")
    page.find("#date option[value='2026-01-03']").click()
    expect(lambda tile: tile["after_time"].day == 3)
    page.find("#minimal").send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * 30)
    assert page.text("#minimal-said") == "0.30"
    expect(lambda tile: round(tile["change_probability"], 4) >= 0.3)
    page.type("#pair", "scene_001")
    expect(lambda tile: tile["pair_id"].startswith("scene_001"))
    page.find("input[name=kind][value='2']").click()
    expect(changed)


def test_chips_are_the_most_frequent_captions_of_changes(page: Page) -> None:
    captions = [tile["caption"] for tile in ROWS if changed(tile)]
    chip = page.find("#chips button")
    caption = chip.get_attribute("title") or ""
    most = max(map(captions.count, set(captions)))
    assert (page.text("#chips b"), captions.count(caption)) == (str(most), most)
    chip.click()
    page.wait(lambda: page.counts() == (most, most))
    page.find("#chips [aria-pressed=true]").click()
    page.wait(lambda: page.counts() == (TILES, TILES))


def test_list_is_sorted_by_probability_and_paged(page: Page) -> None:
    wanted = sorted(filter(changed, ROWS), key=lambda tile: -tile["change_probability"])
    page.find("#page-after").click()
    page.find("#list li:nth-child(7) button").click()
    assert page.text("#page") == "page 2 of 200"
    assert page.text("#tile-id") == wanted[56]["tile_id"]
    page.find("#step-forth").click()
    assert page.text("#tile-id") == wanted[57]["tile_id"]


def test_click_on_the_map_opens_the_tile_there(page: Page) -> None:
    """Oracle: the footprint that holds the point."""
    footprints = shapely.from_wkb([tile["geometry"] for tile in ROWS])
    for number in np.random.default_rng(1).choice(TILES, 8, replace=False):
        centre = footprints[number].centroid
        (expected,) = np.flatnonzero(shapely.contains(footprints, centre))
        page.click_map(centre.x, centre.y)
        assert page.text("#tile-id") == ROWS[expected]["tile_id"]


def test_click_finds_the_tile_after_zoom_and_drag(page: Page) -> None:
    footprints = shapely.from_wkb([tile["geometry"] for tile in ROWS])
    before = page.find("#map").get_attribute("data-bounds")
    for _ in range(4):
        page.find("#zoom-in").click()
    ActionChains(page.driver).drag_and_drop_by_offset(page.find("#map"), 90, -60).perform()
    page.find("#map").send_keys(Keys.ARROW_LEFT, "+")
    page.wait(lambda: page.find("#map").get_attribute("data-bounds") != before)
    time.sleep(0.2)  # the last frame
    west, south, east, north = map(float, (page.find("#map").get_attribute("data-bounds") or "").split())
    assert east - west < 0.02
    inside = shapely.contains_properly(shapely.box(west, south, east, north).buffer((west - east) / 8), footprints)
    for number in np.flatnonzero(inside)[::17][:5]:
        page.click_map(footprints[number].centroid.x, footprints[number].centroid.y)
        assert page.text("#tile-id") == ROWS[number]["tile_id"]


def test_filtered_tiles_are_not_on_the_map(page: Page) -> None:
    tile = next(tile for tile in ROWS if tile["caption"] == SAME)
    place = shapely.from_wkb(tile["geometry"]).centroid
    page.find("input[name=kind][value='2']").click()
    page.wait(lambda: page.counts()[0] == sum(tile["caption"] != SAME for tile in ROWS))
    opened = page.text("#tile-id")
    page.click_map(place.x, place.y)
    assert page.text("#tile-id") != tile["tile_id"]
    page.find("input[name=kind][value='2']").click()
    page.click_map(place.x, place.y)
    assert page.text("#tile-id") == tile["tile_id"] != opened


def test_slider_divides_before_and_after(page: Page) -> None:
    page.find("#list button").click()
    slider = page.find("#slider")
    for key, share in ((Keys.HOME, 0.0), (Keys.END, 1.0), (None, 0.3)):
        slider.send_keys(*([key] if key else [Keys.HOME, *[Keys.ARROW_RIGHT] * 30]))
        time.sleep(0.1)
        band = page.pixels(".compare")[20]
        width = len(band)
        blue, red = (np.abs(band - colour).max(axis=1) < 12 for colour in (BEFORE, AFTER))
        edge = round(share * width)
        assert blue[4 : max(4, edge - 24)].all()
        assert red[min(width - 4, edge + 24) : width - 4].all()
        assert blue.mean() == pytest.approx(share, abs=0.1)


def test_colours_follow_the_theme(page: Page) -> None:
    def ground() -> int:
        time.sleep(0.2)
        return int(page.pixels("#map")[-60, -300:].mean())

    light = ground()
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    dark = ground()
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert dark + 100 < light


@pytest.mark.parametrize("width", [400, 800, 1400])
def test_nothing_sticks_out_sideways(page: Page, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= width
        assert all(page.find(part).is_displayed() for part in ("#search", "#map", "#list", "#detail h2"))
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_text_from_data_does_not_run(browser: Chrome, tmp_path: Path) -> None:
    texts = dict.fromkeys(("tile_id", "pair_id", "caption", "second_caption", "error", "model_name"), EVIL)
    page = Page(browser, tmp_path)
    page.open(render_morning(table([row(**texts, changed=True)]), EVIL, {EVIL: EVIL}, [EVIL]))
    page.find("#list button").click()
    page.find("#chips button").click()
    assert [page.text(part) for part in ("#headline", "#tile-id", ".said", "h1", ".remark", "dd")] == [EVIL] * 6
    assert page.driver.title == EVIL
    assert page.driver.find_elements(By.CSS_SELECTOR, "img[src=x]") == []
    page.driver.execute_script(
        "document.body.insertAdjacentHTML('beforeend', arguments[0])", "<img src=x onerror=\"document.title='run'\">"
    )
    page.wait(lambda: any("Content Security Policy" in entry["message"] for entry in page.complaints()))
    assert page.driver.title == EVIL


def test_tiles_without_a_place_stand_in_a_grid(browser: Chrome, tmp_path: Path) -> None:
    page = Page(browser, tmp_path)
    page.open(render_morning(table([row(tile_id=f"bench/{number}") for number in range(12)]), "Night", {}, []))
    assert page.text("#map-count") == "12 without a place on Earth, as a grid"
    page.wait(lambda: page.find("#map").get_attribute("data-bounds"))
    ids = []
    for x, y in ((0.4, -0.4), (1.4, -0.4), (0.4, -1.4)):
        page.click_map(x, y)
        ids.append(page.text("#tile-id"))
    assert len(set(ids)) == 3
    assert ids[:2] == ["bench/0", "bench/1"]
    assert page.complaints() == []
