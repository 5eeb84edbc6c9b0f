"""What a person does, in a real browser: /docs and the page, with mouse, keyboard and phone."""

import json
import os
import time

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from serving import decode, encode, picture, scene, wait_for
from skimage.measure import label

from segment.geo.footprints import polygons
from segment.predict.scene import predict_scene

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --window-size=1280,900"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory, program):
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium")
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    downloads = tmp_path_factory.mktemp("downloads")
    driver = webdriver.Chrome(options, webdriver.ChromeService(program("chromedriver")))
    driver.downloads = downloads
    behaviour = {"behavior": "allow", "downloadPath": str(downloads)}
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    yield driver
    driver.quit()


def state(browser):
    return browser.execute_script("return document.body.dataset.state")


def open_page(browser, server, file=None, name="scene.tif", path=None):
    complaints(browser)  # forget those of other tests
    browser.get(server.url + "/")
    if file:
        (path / name).write_bytes(file)
        browser.find_element(By.ID, "file").send_keys(str(path / name))
        wait_for(lambda: state(browser) == "result", 30, lambda: browser.page_source[-3000:])
        wait_for(lambda: browser.execute_script("return Boolean(scene.buildings)"), 10)
        slide(browser, "smallest", 0)


def text(browser, element):
    return browser.find_element(By.ID, element).text


def slide(browser, element, value):
    browser.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event('input')); scene.buildings = null;",
        element,
        value,
    )
    wait_for(lambda: browser.execute_script("return Boolean(scene.buildings)"), 10)


def complaints(browser):
    """What the console says against the page: errors, and breaches of the security policy."""
    return [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def downloaded(browser, name):
    wait_for((browser.downloads / name).exists, 15, lambda: os.listdir(browser.downloads))
    data = (browser.downloads / name).read_bytes()
    (browser.downloads / name).unlink()
    return data


def test_the_page_counts_what_the_service_counts(browser, server, model, tmp_path):
    """At every threshold, count and area in the browser are those of `segment`."""
    file = scene(120, 160)
    open_page(browser, server, file, path=tmp_path)
    for level in (100, 128, 160):
        slide(browser, "threshold", level)
        mask, profile = predict_scene(model, tmp_path / "scene.tif", level / 255)
        found = polygons(mask, profile["transform"], profile["crs"])
        assert text(browser, "count") == f"{len(found.outlines):,}"
        area = float(text(browser, "area").split()[0].replace(",", ""))
        assert area == pytest.approx(found.area_m2.sum(), rel=2e-3, abs=1)
    slide(browser, "smallest", 5)
    kept = polygons(mask, profile["transform"], profile["crs"], min_area=5)
    assert text(browser, "count") == f"{len(kept.outlines):,}"
    assert not complaints(browser)


def test_downloads_are_at_the_threshold_on_the_slider(browser, server, model, tmp_path):
    open_page(browser, server, scene(90, 70), "roofs.tif", tmp_path)
    slide(browser, "threshold", 140)
    mask, profile = predict_scene(model, tmp_path / "roofs.tif", 140 / 255)
    buttons = {b.text: b for b in browser.find_elements(By.CSS_SELECTOR, ".downloads button")}
    buttons["GeoTIFF"].click()
    got, place = decode(downloaded(browser, "roofs_mask.tif"))
    assert np.array_equal(got, mask) and place["transform"] == profile["transform"]
    buttons["GeoJSON"].click()
    features = json.loads(downloaded(browser, "roofs_buildings.geojson"))["features"]
    assert len(features) == int(text(browser, "count").replace(",", ""))
    buttons["PNG"].click()
    assert decode(downloaded(browser, "roofs_overlay.png"))[0].shape == (90, 70, 3)


def test_the_photograph_lies_where_it_belongs(browser, server, tmp_path):
    """On the map, each corner of the picture is at its longitude and latitude."""
    open_page(browser, server, scene(100, 200), path=tmp_path)
    corners = browser.execute_script("""
        const [a, b, c, d, e, f] = scene.overlay.matrix();
        return [[0, 0], [200, 0], [200, 100], [0, 100]].map(([x, y]) => {
            const at = scene.map.containerPointToLatLng([a * x + c * y + e, b * x + d * y + f]);
            return [at.lng, at.lat];
        });""")
    figures = server.mask(scene(100, 200), query={"response_type": "json"}).json()
    assert np.allclose(corners, figures["corners"], atol=1e-7)


def test_a_plain_photograph_is_asked_for_its_scale(browser, server, tmp_path):
    open_page(browser, server, encode(picture(80, 80), "PNG"), "photo.png", tmp_path)
    assert text(browser, "area") == ""
    browser.find_element(By.ID, "metres").send_keys("0.5", Keys.ENTER)
    wait_for(lambda: text(browser, "area"), 30)
    assert "m²" in text(browser, "area")


def test_large_photographs_are_shown_reduced_and_counted_in_full(browser, server, model, tmp_path):
    open_page(browser, server, scene(64, 2300), path=tmp_path)
    assert browser.execute_script("return [scene.levels.width, scene.reduced]") == [2048, True]
    slide(browser, "threshold", 130)
    mask, profile = predict_scene(model, tmp_path / "scene.tif", 130 / 255)
    exact = len(polygons(mask, profile["transform"], profile["crs"]).outlines)
    wait_for(lambda: text(browser, "count") == f"{exact:,}", 30, lambda: text(browser, "count"))


def test_errors_are_in_plain_words(browser, server, tmp_path):
    open_page(browser, server)
    (tmp_path / "notes.tif").write_bytes(b"shopping list")
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "notes.tif"))
    wait_for(lambda: browser.find_element(By.ID, "error").is_displayed(), 10)
    assert text(browser, "error").startswith("notes.tif is empty or no picture")
    assert state(browser) == "start"


def test_keyboard_alone(browser, server):
    """Tab and Enter reach the example; keys work on the result; Tab reaches every control."""
    open_page(browser, server)
    keys = webdriver.ActionChains(browser)
    for _ in range(10):
        keys.send_keys(Keys.TAB).perform()
        if browser.switch_to.active_element.get_attribute("id") == "example":
            break
    keys.reset_actions()
    keys.send_keys(Keys.ENTER).perform()
    wait_for(lambda: state(browser) == "result", 30)
    threshold = browser.find_element(By.ID, "threshold").get_property("value")
    keys.reset_actions()
    keys.send_keys("]").send_keys(" ").perform()
    assert browser.find_element(By.ID, "threshold").get_property("value") == str(int(threshold) + 5)
    assert browser.execute_script("return scene.overlay.opacity") == 0
    reached = set()
    for _ in range(30):
        keys.reset_actions()
        keys.send_keys(Keys.TAB).perform()
        focused = browser.switch_to.active_element
        reached.add(focused.get_attribute("id") or focused.text)
    wanted = {"threshold", "smallest", "opacity", "outlines", "GeoTIFF", "GeoJSON", "PNG", "again"}
    wanted |= {"draw", "share", "map"}
    assert wanted <= reached


def test_a_phone(browser, server, tmp_path):
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        open_page(browser, server, scene(), path=tmp_path)
        wide = "return document.documentElement.scrollWidth"
        assert browser.execute_script(wide) <= 390
        photo = browser.find_element(By.ID, "map").rect
        assert photo["width"] == 390 and 300 < photo["height"] < 600
        for button in browser.find_elements(By.CSS_SELECTOR, ".downloads button"):
            assert button.rect["height"] >= 44
        narrow = {**phone, "width": 320}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", narrow)
        wait_for(lambda: browser.execute_script("return innerWidth") == 320, 5)
        assert browser.execute_script(wide) <= 320
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_page_forgets_its_job(browser, server, tmp_path):
    open_page(browser, server, scene(seed=9), path=tmp_path)
    job = browser.execute_script("return shot.job")
    assert server.get(f"/jobs/{job}").ok
    browser.find_element(By.ID, "again").click()
    wait_for(lambda: server.get(f"/jobs/{job}").status_code == 404, 10)


def test_a_token_is_asked_for(browser, new_server, tmp_path):
    with new_server(TOKEN="open sesame") as server:
        browser.get(server.url)
        (tmp_path / "scene.tif").write_bytes(scene())
        browser.find_element(By.ID, "file").send_keys(str(tmp_path / "scene.tif"))
        dialog = browser.find_element(By.ID, "token")
        wait_for(dialog.is_displayed, 10)
        browser.find_element(By.ID, "token-value").send_keys("open sesame", Keys.ENTER)
        wait_for(lambda: state(browser) == "result", 30)


def test_docs_upload_execute_download(browser, server, model, tmp_path):
    """Swagger UI from this server alone: pick a file, execute, download the mask."""
    (tmp_path / "scene.tif").write_bytes(scene())
    complaints(browser)  # forget those of other tests
    browser.get(server.url + "/docs")
    wait_for(lambda: browser.find_elements(By.CSS_SELECTOR, ".opblock"), 15)
    operation = browser.find_element(By.CSS_SELECTOR, ".opblock-post")
    operation.find_element(By.CSS_SELECTOR, ".opblock-summary-control").click()
    wait_for(lambda: operation.find_elements(By.CSS_SELECTOR, "input[type=file]"), 10)
    operation.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(
        str(tmp_path / "scene.tif")
    )
    execute = operation.find_element(By.CSS_SELECTOR, ".execute")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", execute)
    time.sleep(0.3)
    execute.click()
    link = ".responses-wrapper .live-responses-table a[download]"
    wait_for(lambda: operation.find_elements(By.CSS_SELECTOR, link), 20)
    element = operation.find_element(By.CSS_SELECTOR, link)
    browser.execute_script("arguments[0].click()", element)
    name = element.get_attribute("download")
    got, _ = decode(downloaded(browser, name))
    assert np.array_equal(got, predict_scene(model, tmp_path / "scene.tif")[0])
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    )
    assert loaded and all(name.startswith((server.url, "data:", "blob:")) for name in loaded)
    assert not complaints(browser)


def on_map(browser, x, y):
    """Click the map where a pixel of the photograph is shown."""
    at = browser.execute_script(
        "const [a, b, c, d, e, f] = scene.overlay.matrix(), r = $('map').getBoundingClientRect();"
        "const [x, y] = arguments;"
        "return [r.x + a * x + c * y + e, r.y + b * x + d * y + f];",
        x,
        y,
    )
    action = ActionBuilder(browser)
    action.pointer_action.move_to_location(*map(round, at)).click()
    action.perform()
    time.sleep(0.5)  # two clicks in a row are a double click


def counted(browser):
    return int(text(browser, "count").replace(",", ""))


def edits(browser, count):
    wait_for(lambda: browser.execute_script("return shot.edits.length") == count, 10)
    browser.execute_script("scene.buildings = null; setThreshold()")
    wait_for(lambda: browser.execute_script("return Boolean(scene.buildings)"), 10)


def test_wrong_buildings_are_removed_and_missing_ones_drawn(browser, server, model, tmp_path):
    """What is downloaded is what is shown, beside an independent labelling of the mask."""
    open_page(browser, server, scene(120, 160, seed=5), "town.tif", tmp_path)
    slide(browser, "threshold", 128)
    mask, _ = predict_scene(model, tmp_path / "town.tif", 128 / 255)
    labels = label(mask, connectivity=1)
    largest = np.argmax(np.bincount(labels[labels > 0]))
    row, col = np.argwhere(labels == largest)[10]
    before = counted(browser)
    on_map(browser, int(col) + 0.5, int(row) + 0.5)
    popup = browser.find_element(By.CSS_SELECTOR, ".leaflet-popup-content button")
    assert popup.text == "Remove"
    popup.click()
    edits(browser, 1)
    assert counted(browser) == before - 1
    browser.find_element(By.ID, "draw").click()
    for x, y in ((20, 30), (60, 30), (60, 70), (20, 70)):
        on_map(browser, x, y)
    browser.find_element(By.ID, "draw").click()
    edits(browser, 2)
    buttons = {b.text: b for b in browser.find_elements(By.CSS_SELECTOR, ".downloads button")}
    buttons["GeoTIFF"].click()
    got, _ = decode(downloaded(browser, "town_mask.tif"))
    assert got[32:68, 22:58].all()
    outside = np.ones(mask.shape, bool)
    outside[28:73, 18:63] = False
    expected = np.where(labels == largest, 0, mask)
    assert np.array_equal(got[outside], expected[outside])
    shown = browser.execute_script(
        "return Array.from(scene.corrected.levels, (level) => level >= $('threshold').value)"
    )
    assert np.array_equal(np.reshape(shown, mask.shape), got > 0)
    browser.find_element(By.ID, "undo").click()
    browser.find_element(By.ID, "undo").click()
    edits(browser, 0)
    assert counted(browser) == before
    assert not complaints(browser)


def test_corrections_by_keyboard_alone(browser, server, tmp_path):
    open_page(browser, server, scene(120, 160, seed=5), path=tmp_path)
    browser.execute_script(
        "const i = scene.buildings.labels.findIndex((b) => b > 0), w = scene.levels.width;"
        "const [a, b, c, d, e, f] = scene.overlay.matrix();"
        "const x = i % w + 0.5, y = Math.floor(i / w) + 0.5;"
        "scene.map.panBy([a * x + c * y + e - scene.map.getSize().x / 2,"
        " b * x + d * y + f - scene.map.getSize().y / 2], {animate: false}); $('map').focus()"
    )
    before = counted(browser)
    keys = webdriver.ActionChains(browser)
    keys.send_keys(Keys.ENTER).perform()
    wait_for(lambda: browser.find_elements(By.CSS_SELECTOR, ".leaflet-popup-content"), 5)
    keys.reset_actions()
    keys.send_keys(Keys.DELETE).perform()
    edits(browser, 1)
    assert counted(browser) == before - 1


def test_a_link_shows_the_same_to_others(browser, server, tmp_path):
    open_page(browser, server, scene(90, 90, seed=6), "link.tif", tmp_path)
    slide(browser, "threshold", 150)
    browser.execute_script("correct([{add: [[5, 5], [40, 5], [40, 30], [5, 30]]}])")
    edits(browser, 1)
    count = text(browser, "count")
    browser.find_element(By.ID, "share").click()
    wait_for(lambda: "#job=" in browser.current_url, 5)
    link, job = browser.current_url, browser.execute_script("return shot.job")
    browser.get("about:blank")  # whoever made it leaves
    browser.get(link)
    wait_for(lambda: browser.execute_script("return Boolean(scene && scene.buildings)"), 20)
    assert text(browser, "count") == count
    assert browser.find_element(By.ID, "threshold").get_property("value") == "150"
    assert "link.tif" in text(browser, "about")
    assert browser.find_element(By.ID, "undo").is_enabled()  # corrections came along
    browser.find_element(By.ID, "again").click()  # it isn't theirs to forget
    time.sleep(0.5)
    assert server.get(f"/jobs/{job}").ok and "#" not in browser.current_url
    server.delete(f"/jobs/{job}")
    browser.get("about:blank")
    browser.get(link)
    wait_for(lambda: browser.find_element(By.ID, "error").is_displayed(), 10)
    assert "forgotten" in text(browser, "error")


def test_several_photographs_at_once(browser, server, tmp_path):
    """The first is shown as soon as it is done; one that can't be read is named, the rest go on."""
    names = ["first.tif", "broken.tif", "last.tif"]
    for number, name in enumerate(names):
        data = b"shopping list" if name == "broken.tif" else scene(80, 80, seed=number)
        (tmp_path / name).write_bytes(data)
    browser.get(server.url + "/")
    paths = "\n".join(str(tmp_path / name) for name in names)
    browser.find_element(By.ID, "file").send_keys(paths)

    def listed():
        return browser.execute_script(
            "return Array.from(document.querySelectorAll('#pile button'),"
            " (button) => Array.from(button.children, (part) => part.textContent))"
        )

    wait_for(lambda: [row[1:] for row in listed()][1:] == [["failed"], ["done"]], 40, listed)
    assert [row[0] for row in listed()] == names and "first.tif" in text(browser, "about")
    browser.find_elements(By.CSS_SELECTOR, "#pile button")[2].click()
    wait_for(lambda: "last.tif" in text(browser, "about"), 20)
    jobs = browser.execute_script("return pile.map((one) => one.job)")
    assert server.get(f"/jobs/{jobs[2]}").ok
    browser.find_element(By.ID, "again").click()
    wait_for(lambda: server.get(f"/jobs/{jobs[2]}").status_code == 404, 10)


def test_a_map_of_ones_own_below(browser, new_server, tmp_path):
    with new_server(BASEMAP="/static/icon.svg?{z}/{x}/{y} © A <Surveyor>") as server:
        open_page(browser, server, scene(), path=tmp_path)
        wait_for(lambda: browser.find_elements(By.CSS_SELECTOR, "img.leaflet-tile-loaded"), 10)
        credit = browser.find_element(By.CSS_SELECTOR, ".leaflet-control-attribution").text
        assert "© A <Surveyor>" in credit
        browser.find_element(By.ID, "below").click()
        assert not browser.find_elements(By.CSS_SELECTOR, "img.leaflet-tile")
        assert not complaints(browser)
    with new_server(BASEMAP="https://{s}.tiles.example/{z}/{x}/{y}.png © B") as server:
        policy = server.get("/").headers["Content-Security-Policy"]
        assert "img-src 'self' data: blob: https://*.tiles.example;" in policy
