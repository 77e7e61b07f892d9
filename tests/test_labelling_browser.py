"""The label page in a browser: clicks, keys, reload, tabs, people, and texts that would like to be more than text."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from label_client import Client, served

from labelling import queries
from labelling.answers import Answers
from labelling.desk import Desk, Source
from labelling.queries import Query

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
NASTY = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> \u202ebackwards\u202c"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} is installed, and BROWSER_PATH names none")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    made = [Query.of("01", f"prompt {n}", f"first {n}\n{NASTY}", f"second {n} " * 800, False) for n in range(5)]
    queries.write(tmp_path / "q.jsonl", made)
    with served(Desk(Source.at(tmp_path / "q.jsonl")), "Which is kinder?\nRead <b>both</b> first.") as found:
        yield found


class Tab:
    """A tab, and what a person does in it."""

    def __init__(self, browser: Any, client: Client, **context: object) -> None:
        self.page = browser.new_context(**context).new_page()
        self.wrong: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)
        self.page.goto(f"http://127.0.0.1:{client.port}/{client.token}/")

    def enter(self, name: str) -> "Tab":
        self.page.locator("#name").fill(name)
        self.page.locator("#name").press("Enter")
        self.page.locator("#count").wait_for()
        return self

    def at(self, count: int, prompt: str = "") -> None:
        playwright.expect(self.page.locator("#count")).to_have_text(f"{count} of 5")
        if prompt:
            playwright.expect(self.page.locator("#prompt")).to_have_text(prompt)
        self.page.wait_for_timeout(250)  # the page takes no answer right after it has shown a duel

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)


def said(tmp_path: Path) -> list[str]:
    return [answer.answer for answer in Answers(tmp_path / "q.answers.jsonl").all]


@pytest.mark.slow
def test_clicks_and_keys_answer_and_reload_goes_on(browser: Any, client: Client, tmp_path: Path) -> None:
    tab = Tab(browser, client).enter("ada")
    tab.at(0, "prompt 0")
    for step, (act, kept) in enumerate(
        [
            (lambda: tab.page.locator("[data-answer=left]").click(), "left"),
            (lambda: tab.press("ArrowRight"), "right"),
            (lambda: tab.press("T"), "tie"),
            (lambda: tab.press("s"), "skip"),
        ],
        start=1,
    ):
        act()
        tab.at(step, f"prompt {step}")
        assert said(tmp_path)[-1] == kept
    tab.page.reload()
    tab.at(4, "prompt 4")
    tab.press("u")
    tab.at(3, "prompt 3")
    tab.page.locator("#undo").click()
    tab.at(2, "prompt 2")
    for count in (3, 4, 5):
        tab.press("ArrowLeft")
        tab.at(count)
    playwright.expect(tab.page.locator("#finished-title")).to_contain_text("Thank you")
    assert said(tmp_path) == ["left", "right", "tie", "skip", "undo", "undo", "left", "left", "left"]
    assert not tab.wrong


def test_texts_stay_texts_and_the_question_is_the_title(browser: Any, client: Client) -> None:
    tab = Tab(browser, client).enter("ada")
    tab.at(0)
    assert tab.page.locator("#left").inner_text() == f"first 0\n{NASTY}"
    assert tab.page.locator("#duel script, #duel img, #duel b").count() == 0
    assert tab.page.title() == "Which is kinder?"
    assert tab.page.locator("#guidelines").inner_text() == "Read <b>both</b> first."
    style = "getComputedStyle(document.querySelector('#left .said')).unicodeBidi"
    assert tab.page.evaluate(f"() => {style}") == "isolate"
    assert not tab.wrong


def test_a_key_that_is_held_or_meant_for_something_else_answers_nothing(
    browser: Any, client: Client, tmp_path: Path
) -> None:
    tab = Tab(browser, client).enter("ada")
    tab.at(0)
    tab.page.keyboard.down("ArrowLeft")
    for _ in range(4):
        tab.page.keyboard.down("ArrowLeft")  # repeats
        tab.page.wait_for_timeout(120)
    tab.page.keyboard.up("ArrowLeft")
    tab.at(1)
    tab.press("Control+ArrowRight")
    tab.page.locator("#annotator").focus()
    tab.press("t")
    tab.page.wait_for_timeout(200)
    assert said(tmp_path) == ["left"]


def test_two_tabs_of_one_person_never_answer_a_duel_twice(browser: Any, client: Client, tmp_path: Path) -> None:
    one, other = (Tab(browser, client).enter("ada") for _ in range(2))
    one.at(0)
    other.at(0)
    one.press("ArrowLeft")
    one.at(1)
    other.press("ArrowRight")
    other.at(1, "prompt 1")
    playwright.expect(other.page.locator("#notice")).to_contain_text("already answered (left) elsewhere")
    assert said(tmp_path) == ["left"]


def test_two_people_label_at_once_and_one_browser_can_change_hands(browser: Any, client: Client) -> None:
    ada, bob = Tab(browser, client).enter("ada"), Tab(browser, client).enter("bob")
    for tab in (ada, bob):
        tab.at(0)
        tab.press("ArrowLeft")
        tab.at(1)
    bob.press("ArrowLeft")
    bob.at(2)
    bob.page.locator("#annotator").select_option("ada")
    bob.at(1, "prompt 1")
    bob.page.locator("#team summary").click()
    playwright.expect(bob.page.locator("#agreement")).to_contain_text("Agreement 100 % on 1 duel")
    bob.page.locator("#annotator").select_option("")
    playwright.expect(bob.page.locator("#known button")).to_have_text(["ada", "bob"])


def test_a_server_that_is_gone_is_told_and_the_duel_stays(browser: Any, client: Client) -> None:
    tab = Tab(browser, client).enter("ada")
    tab.at(0)
    tab.page.route(re.compile("answer$"), lambda route: route.abort())
    tab.press("ArrowLeft")
    playwright.expect(tab.page.locator("#notice")).to_contain_text("nothing was saved")
    tab.at(0, "prompt 0")
    tab.page.unroute(re.compile("answer$"))
    tab.press("ArrowLeft")
    tab.at(1, "prompt 1")


@pytest.mark.campaign
@pytest.mark.parametrize("width", [400, 1100])
def test_the_page_fits_and_long_texts_scroll(browser: Any, client: Client, width: int) -> None:
    tab = Tab(browser, client, viewport={"width": width, "height": 760}).enter("ada")
    tab.at(0)
    wide = "() => document.documentElement.scrollWidth - innerWidth"
    assert tab.page.evaluate(wide) <= 0
    assert (
        tab.page.evaluate(
            "() => { const e = document.querySelector('#right'); return e.scrollHeight - e.clientHeight }"
        )
        > 0
    )
    assert tab.page.locator("[data-answer=right]").is_visible()
    tab.page.locator("#team summary").click()
    box = tab.page.locator("#team .panel").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
