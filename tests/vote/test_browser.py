"""The page in a real Chromium, without a window; skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from ..chromium import chromium, needs_chromium

pytestmark = needs_chromium

Sees = Callable[[str, str], None]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def sees(browser: WebDriver) -> Iterator[Sees]:
    """Waits for an element's text; afterwards, nothing was refused by the page's policy or failed to load."""

    def wait(name: str, text: str) -> None:
        WebDriverWait(browser, 20, 0.05).until(
            lambda _: browser.find_element(By.ID, name).text.strip() == text,
            f"{name}: got {browser.find_element(By.ID, name).text!r}, wanted {text!r}",
        )
        WebDriverWait(browser, 20, 0.05).until(lambda _: settled(browser))

    yield wait
    assert browser.get_log("browser") == []


def settled(browser: WebDriver) -> bool:
    """Both pictures are there, for as long as a vote has to wait, or there is nothing to vote on."""
    return bool(
        browser.execute_script(
            "return !document.getElementById('ballot').hidden ? shownAt && !busy && performance.now() - shownAt > "
            "SETTLE_MS + 20 : true"
        )
    )


def press(browser: WebDriver, key: str) -> None:
    ActionChains(browser).send_keys(key).perform()


def test_a_whole_vote(browser, url, sees, database, study):
    """A name, votes by key and by mouse, undo, reload, another visit, the end, the results."""
    browser.get(url)
    browser.switch_to.active_element.send_keys("Anna B" + Keys.ENTER)
    sees("count", "0 / 6")
    assert browser.current_url.endswith("?voter=Anna%20B")
    assert browser.find_element(By.ID, "question").text == "Which image has better aesthetics and image-text alignment?"
    waiting = database.standing("Anna B").waiting
    assert browser.find_element(By.ID, "prompt").text == study.pairs[waiting[0]].prompt
    assert "secret_" not in browser.page_source

    press(browser, "1")
    sees("count", "1 / 6")
    press(browser, Keys.ARROW_RIGHT)
    sees("count", "2 / 6")
    browser.find_element(By.ID, "left").click()
    sees("count", "3 / 6")
    assert [vote.choice == vote.on_left for vote in database.record().votes] == [True, False, True]
    assert [vote.pair for vote in database.record().votes] == list(waiting[:3])

    press(browser, Keys.BACKSPACE)
    sees("count", "2 / 6")
    browser.find_element(By.ID, "undo").click()
    sees("count", "1 / 6")
    assert browser.find_element(By.ID, "prompt").text == study.pairs[waiting[1]].prompt
    press(browser, "2")
    sees("count", "2 / 6")

    browser.refresh()
    sees("count", "2 / 6")
    assert browser.find_element(By.ID, "prompt").text == study.pairs[waiting[2]].prompt
    browser.get("about:blank")
    browser.get(url + "?voter=Anna%20B")
    sees("count", "2 / 6")

    for done in (3, 4, 5):
        press(browser, Keys.ARROW_LEFT)
        sees("count", f"{done} / 6")
    browser.find_element(By.ID, "right").click()
    sees("finished", "That was the last one")
    assert len(database.record().votes) == 6
    browser.refresh()
    sees("total", "All 6 pairs are voted on.")

    browser.find_element(By.LINK_TEXT, "Results").click()
    WebDriverWait(browser, 20).until(lambda _: browser.find_elements(By.CSS_SELECTOR, "body.results"))
    text = browser.find_element(By.TAG_NAME, "main").text
    wins = sum(vote.choice == "a" for vote in database.record().votes)
    assert f"{wins} : {6 - wins} of 6 votes" in text and "secret_one" in text
    assert "Writing & Symbols" in text and "Anna B" in text


def test_both_pictures_are_those_of_the_voter(browser, url, sees):
    """Shown at once, at the same size, with words for who cannot see them; the next ones are loaded already."""
    browser.get(url + "?voter=carla")
    sees("count", "0 / 6")
    left, right = browser.find_elements(By.CSS_SELECTOR, ".choice img")
    assert left.size == right.size and left.size["height"] > 300
    page = browser.execute_script("return [document.documentElement.scrollHeight, innerHeight]")
    assert page[0] == page[1]  # nothing to scroll
    assert left.rect["x"] < right.rect["x"] and left.rect["y"] == right.rect["y"]
    assert left.get_attribute("alt").startswith("Image 1 of: ")
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').filter(e => e.name.includes('/pictures/')).length"
    )
    assert loaded == 8


def test_a_held_key_and_a_double_click_are_one_vote(browser, url, sees, database):
    browser.get(url + "?voter=dora")
    sees("count", "0 / 6")
    for repeat in (False, True, True, True):
        browser.execute_script(
            "const options = {key: '1', repeat: arguments[0], bubbles: true};"
            "document.body.dispatchEvent(new KeyboardEvent('keydown', options))",
            repeat,
        )
    sees("count", "1 / 6")
    ActionChains(browser).double_click(browser.find_element(By.ID, "right")).perform()
    sees("count", "2 / 6")
    assert len(database.record().votes) == 2


def test_the_keyboard_alone_is_enough(browser, url, sees):
    """Buttons are reached by Tab, in reading order, and pressed by Enter."""
    browser.get(url + "?voter=emil")
    sees("count", "0 / 6")
    names = []
    for _ in range(2):
        press(browser, Keys.TAB)
        names.append(browser.switch_to.active_element.get_attribute("id"))
    assert names == ["left", "right"]
    press(browser, Keys.ENTER)
    sees("count", "1 / 6")


def test_a_phone_has_both_pictures_on_one_screen(browser, url, sees):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 780, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        browser.get(url + "?voter=fred")
        sees("count", "0 / 6")
        first, second = (image.rect for image in browser.find_elements(By.CSS_SELECTOR, ".choice img"))
        assert first["y"] + first["height"] < second["y"] and second["y"] + second["height"] <= 780
        assert first["width"] > 200 and first["x"] >= 0 and first["x"] + first["width"] <= 390
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_vote_that_contradicts_one_from_another_window_says_so(browser, url, sees, database):
    browser.get(url + "?voter=gina")
    sees("count", "0 / 6")
    pair = browser.execute_script("return ballot.next[0].pair")
    database.cast("another-window", "gina", pair, left=True, milliseconds=5)
    press(browser, "2")
    sees("problem", f"pair {pair}: gina has voted for the other picture; undo that first. Going on from what was kept.")
    sees("count", "1 / 6")
    assert "409" in str(browser.get_log("browser"))
    press(browser, "2")
    sees("count", "2 / 6")
    assert not browser.find_element(By.ID, "problem").is_displayed()


def test_a_name_that_is_refused_says_why(browser, url, sees):
    browser.get(url)
    browser.find_element(By.ID, "name").send_keys("<x>" + Keys.ENTER)
    WebDriverWait(browser, 20).until(lambda _: "wanted 1 to 40" in browser.find_element(By.ID, "name-problem").text)
    assert "400" in str(browser.get_log("browser"))  # Chromium notes the refusal; nothing else is noted
    browser.find_element(By.ID, "name").clear()
    browser.find_element(By.ID, "name").send_keys("Gül" + Keys.ENTER)
    sees("count", "0 / 6")
