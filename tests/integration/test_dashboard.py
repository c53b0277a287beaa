"""The dashboard in a real Chromium, in front of a real Kafka, joiner, trainer and scorer: what a person sees and presses."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from ops.kafka.cluster import producer
from ops.kafka.topics import ensure_topics
from ops.machine.ports import free_port, is_open
from ops.versions.store import opened, shown
from ops.watching.journals import last
from schemas.config import Settings, Source, build
from scorer.client import ScorerClient
from tests.kit.processes import Process, wait_until

TOKEN = "dashboard-token-0123456789"
SILENT_S = 7200.0        # since which nobody has said anything to the page that has nothing behind it
WIDE, NARROW = (1280, 900), (390, 844)

DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(DRIVER is None, reason="needs Chromium and chromedriver, which is not here (ops/setup.sh browser)"),
]


class Browser:
    """Headless Chromium. requests: whatever any page asked for, since the start."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.requests: list[str] = []

    def open(self, url: str, size: tuple[int, int] = WIDE, scheme: str = "light") -> None:
        """A page as a person with such a screen, and such a system, has it."""
        self._command("Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1,
                      mobile=size == NARROW)
        self._command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.driver.get(url)
        wait_until(lambda: "Is it right?" in self.text("body"), 20, "the page")
        self._note()

    def text(self, selector: str) -> str:
        """Empty where there is no such element."""
        try:
            return self.driver.find_element(By.CSS_SELECTOR, selector).text
        except (NoSuchElementException, StaleElementReferenceException):
            return ""

    def press(self, name: str) -> None:
        """The button of that name, once it is seen."""
        place = (By.XPATH, f"//button[normalize-space()='{name}']")
        wait_until(lambda: any(one.is_displayed() for one in self.driver.find_elements(*place)), 10, f"the button {name}")
        button = self.driver.find_element(*place)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()

    def fill(self, name: str, text: str) -> None:
        place = f"input[aria-label='{name}']"
        wait_until(lambda: self.count(place), 10, f"the field {name}")
        field = self.driver.find_element(By.CSS_SELECTOR, place)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", field)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)

    def count(self, selector: str) -> int:
        """How many such elements there are."""
        return len(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def answer(self, section: str) -> str:
        """What a part says to what was pressed in it."""
        return self.text(f"section.{section} .answer-line")

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def focused(self) -> str:
        """The name of what has the focus: its label, or its text."""
        return str(self.run("const e = document.activeElement; return e.ariaLabel || e.innerText || e.tagName").strip())

    def names(self) -> list[tuple[str, str]]:
        """(role, name) of all that can be used, as a screen reader has it."""
        nodes = self._command("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes
            if not node["ignored"] and node["role"]["value"] in ("button", "textbox", "spinbutton", "radio", "link", "region")
        ]

    def quit(self) -> None:
        self._note()
        self.driver.quit()

    def _command(self, name: str, **given: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, given)

    def _note(self) -> None:
        for line in self.driver.get_log("performance"):
            message = json.loads(line["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            elif message["method"] == "Network.webSocketCreated":
                self.requests.append(message["params"]["url"])

    def seen(self) -> list[str]:
        """All requests so far."""
        self._note()
        return self.requests


@dataclass
class Scene:
    """Everything that runs. url: of the page before the loop; alone: of one that has nothing behind it, not even a broker."""

    settings: Settings
    crew: dict[str, Process]
    url: str
    alone: str
    browser: Browser


@pytest.fixture(scope="module")
def scene(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The loop under a small load, a page before it, and a page of a model whose processes fell silent two hours ago."""
    folder = tmp_path_factory.mktemp("dashboard")
    ports = [free_port() for _ in range(6)]
    base = {
        "kafka.bootstrap": broker, "kafka.prefix": f"t{uuid.uuid4().hex[:8]}-", "model.bits": 14, "model.hidden": "16",
        "join.window_s": 2, "metrics.window_rows": 1000, "snapshot.version_every_s": 0.2, "snapshot.checkpoint_every_s": 1,
        "score.workers": 1, "score.port": ports[0], "score.operator_port": ports[1], "score.metrics_port": 0,
        "dashboard.port": ports[2],
    }
    (folder / "token").write_text(TOKEN)
    settings = build(Source("test", base | {"var": folder / "var", "dashboard.token_file": str(folder / "token")}))[0]
    silent = build(Source("test", base | {
        "var": folder / "silent", "kafka.bootstrap": "127.0.0.1:1", "score.port": ports[3], "score.operator_port": ports[4],
        "dashboard.port": ports[5],
    }))[0]
    silent.metrics_dir.mkdir(parents=True)
    for name in ("joiner", "trainer"):
        (silent.metrics_dir / f"{name}.jsonl").write_bytes(orjson.dumps({
            "event": f"{name}.status", "time_us": round((time.time() - SILENT_S) * 1e6), "examples_learnt": 7, "open": 0,
            "idle_s": 0, "waiting_rows": 0,
        }) + b"\n")
    ensure_topics(settings)
    crew = {verb: Process(settings, verb) for verb in ("joiner", "trainer", "scorer", "dashboard")}
    crew["simulate"] = Process(settings, "simulate", "--rate", "25")
    crew["silent"] = Process(silent, "dashboard")
    browser = Browser()
    try:
        for port in (ports[2], ports[5]):
            wait_until(lambda port=port: is_open("127.0.0.1", port), 60, f"a page on {port}")  # type: ignore[misc]
        yield Scene(settings, crew, f"http://127.0.0.1:{ports[2]}/", f"http://127.0.0.1:{ports[5]}/", browser)
    finally:
        browser.quit()
        for process in crew.values():
            process.signal(signal.SIGTERM)
        for process in crew.values():
            process.stop()


def newest(settings: Settings) -> int:
    with opened(settings, "version") as reader:
        return reader.numbers()[-1]


def unlocked(browser: Browser) -> None:
    browser.fill("Token for orders", TOKEN)
    browser.press("Unlock")
    wait_until(lambda: "Orders are open" in browser.answer("versions"), 5, "orders to open")


def test_a_page_with_nothing_behind_it_says_what_is_down_and_since_when(scene: Scene) -> None:
    """No broker, no scorer, no store, and two processes silent for two hours: the page opens and names each; orders are
    closed for good without a token, which it says how to set; letters and scores fail with a reason."""
    browser = scene.browser
    browser.open(scene.alone)
    said = browser.text(".parts")
    assert re.search(r"trainer down no word for 2 h, since .*start it with: freshet trainer", said)
    assert re.search(r"joiner down no word for 2 h", said)
    assert "broker down nothing answers on 127.0.0.1:1" in said
    assert "scorer down nothing answers" in said
    assert "No window yet" in browser.text(".right")
    assert "The store holds no version yet." in browser.text(".versions")
    assert "Read-only." in browser.text(".versions")
    assert "dashboard.token_file" in browser.text(".versions")
    browser.press("Read the newest")
    wait_until(lambda: "no broker" in browser.answer("letters"), 20, "why there are no letters")
    browser.press("Fill in an example")
    browser.press("Score")
    wait_until(lambda: f"127.0.0.1:{scene.crew['silent'].settings.score.port}" in browser.answer("slate"), 20, "why no score")


def test_a_reader_is_not_thrown_out_of_a_table_by_its_next_figures(scene: Scene) -> None:
    """Somebody who scrolled down the versions by keyboard: once newer ones stand in the table, the focus is still there, and it
    is still scrolled."""
    browser = scene.browser
    browser.open(scene.url)
    region = "document.querySelector('.versions .scroll')"
    wait_until(lambda: browser.run(f"return {region}.scrollHeight > {region}.clientHeight + 5"), 60, "many versions")
    browser.run(f"{region}.focus(); {region}.scrollTop = 5")
    before = browser.text(".versions tbody")
    wait_until(lambda: browser.text(".versions tbody") != before, 20, "newer versions")
    assert browser.run(f"return [{region} == document.activeElement, {region}.scrollTop]") == [True, 5]


def test_the_page_follows_the_loop(scene: Scene) -> None:
    """Without a reload: windows appear, examples count up, what is served has an age, clicks are followed, speeds are told."""
    browser = scene.browser
    browser.open(scene.url)

    def learnt() -> int:
        found = re.search(r"trainer up ([\d,]+) examples learnt", browser.text(".parts"))
        return int(found[1].replace(",", "")) if found else 0

    wait_until(lambda: browser.text(".right").count("model 0.") >= 3, 60, "three charts")
    first = learnt()
    wait_until(lambda: learnt() > first + 500, 20, "the page to follow the trainer")
    status = last(scene.settings, "trainer", "trainer.status")
    assert status is not None
    assert learnt() <= status["examples_learnt"] + 2000
    wait_until(lambda: re.search(r"\d s old: version", browser.text(".old")), 10, "the age of what is served")
    wait_until(lambda: "click → served" in browser.text(".old"), 30, "clicks followed to their answers")
    wait_until(lambda: re.search(r"[1-9][\d,]* examples/s learnt", browser.text(".fast")), 20, "examples a second")
    wait_until(lambda: re.search(r"[1-9][\d,.]* requests/s", browser.text(".fast")), 20, "requests a second")
    assert "all parts are up" in browser.run("return document.querySelector('.unseen[role=status]').textContent")
    scene.crew["simulate"].stop()                  # versions stand still for what follows


def test_a_slate_is_scored_and_explained_as_the_scorer_says(scene: Scene) -> None:
    """Probabilities and order are those that a client gets from the same version; the explanation's logit is the score's."""
    browser = scene.browser

    def still() -> bool:
        before = newest(scene.settings)
        time.sleep(scene.settings.join.window_s + 1)     # what is open is learnt by then
        return newest(scene.settings) == before

    wait_until(still, 60, "versions to stand still")
    browser.open(scene.url)
    browser.press("Fill in an example")
    browser.fill("price", "1.99")
    wanted = {"user": "u17", "country": "NO", "gender": "f", "age_band": "25-34", "hour": 19, "installed": ["games", "music"]}
    items = [
        {"id": "example1", "features": {"category": "games", "price": 1.99, "app_age_h": 3, "tags": ["puzzle", "free"]}},
        {"id": "example2", "features": {"category": "food", "price": 0.99, "app_age_h": 40, "tags": ["delivery"]}},
        {"id": "example3", "features": {"category": "music", "price": 2.99, "app_age_h": 500, "tags": []}},
    ]
    with ScorerClient(f"127.0.0.1:{scene.settings.score.port}") as client:
        answer = client.score(wanted, items, timeout_s=5)

        def same_version() -> bool:
            nonlocal answer
            browser.press("Score")
            wait_until(lambda: "Scored by version" in browser.text(".scored"), 10, "the scores")
            answer = client.score(wanted, items, timeout_s=5)
            time.sleep(0.3)
            return f"Scored by version {answer.version:,} " in browser.text(".scored")

        wait_until(same_version, 60, "two answers from one version")
    rows = re.findall(r"^(\d) (example\d) ([\d.]+) (-?[\d.]+)$", browser.text(".scored"), re.MULTILINE)
    assert [item_id for _, item_id, *_ in rows] == [item.item_id for item in answer.ranked()]
    assert [float(said) for _, _, said, _ in rows] == pytest.approx([item.probability for item in answer.ranked()], abs=1e-6)
    browser.press("Explain")
    wait_until(lambda: browser.count(".explained .sides"), 20, "the explanations")
    told = dict(re.findall(r"(example\d): logit (-?[\d.]+)", browser.text(".explained")))
    assert {item_id: float(logit) for item_id, logit in told.items()} == {
        item.item_id: pytest.approx(item.logit, abs=2e-3) for item in answer.items
    }
    bars = browser.run("return [...document.querySelectorAll('.explained .sides i')].map(e => e.offsetWidth)")
    assert len(bars) == 3 * 12
    assert max(bars) > 20


def test_a_wrong_token_opens_nothing(scene: Scene) -> None:
    """It is told so after a moment, and no order can be pressed."""
    browser = scene.browser
    browser.open(scene.url)
    browser.fill("Token for orders", TOKEN[:-1])
    browser.press("Unlock")
    wait_until(lambda: "That is not the token" in browser.answer("versions"), 5, "the refusal")
    for name in ("Pin", "Unpin", "Roll back …", "Hold new versions", "Release"):
        assert not browser.driver.find_element(By.XPATH, f"//button[normalize-space()='{name}']").is_displayed()


def test_the_gate_holds_and_releases_at_a_press(scene: Scene) -> None:
    """The trainer obeys, and the page says what the gate does, and that somebody ordered it."""
    browser = scene.browser
    browser.open(scene.url)
    wait_until(lambda: "Gate" in browser.text(".drifts"), 10, "the gate's state")
    unlocked(browser)
    browser.press("Hold new versions")
    wait_until(lambda: re.search(r"\(order \d+\) is obeyed", browser.answer("drifts")), 20, "the hold")
    wait_until(lambda: "Gate holds new versions back since" in browser.text(".drifts"), 10, "that it holds")
    assert "by hand" in browser.text(".drifts")
    browser.press("Release")
    wait_until(lambda: "Gate open" in browser.text(".drifts"), 20, "that it is open again")


def test_pin_and_roll_back_are_obeyed_and_said(scene: Scene) -> None:
    """A press on a version's number chooses it. Pinned, the checkpoint knows it. A roll back asks first: Escape orders nothing;
    then every scorer has the weights of that version under a new lineage, which the page names. What makes no sense is said."""
    browser, settings = scene.browser, scene.settings
    browser.open(scene.url)
    unlocked(browser)
    browser.press("Pin")
    wait_until(lambda: "Which version?" in browser.answer("versions"), 5, "a question")
    rows = browser.driver.find_elements(By.CSS_SELECTOR, ".versions button[data-version]")
    wanted = int(rows[2].get_attribute("data-version") or 0)
    rows[2].click()
    field = browser.driver.find_element(By.CSS_SELECTOR, "input[aria-label='Version']")
    wait_until(lambda: field.get_attribute("value") == str(wanted), 5, "the number in its field")
    browser.press("Pin")
    wait_until(lambda: f"pin {wanted} (order 2) is obeyed" in browser.answer("versions"), 20, "the pin")
    wait_until(lambda: re.search(rf"^{wanted:,} .*pinned", browser.text(".versions"), re.MULTILINE), 10, "the mark")
    with opened(settings, "checkpoint") as reader:
        assert reader.manifest(reader.numbers()[-1]).pinned == (wanted,)

    browser.press("Roll back …")
    wait_until(lambda: f"version {wanted:,} a moment from now" in browser.text(".q-dialog"), 5, "the question")
    assert browser.run("return document.querySelector('.q-dialog').contains(document.activeElement)")
    browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    wait_until(lambda: browser.text(".q-dialog") == "", 5, "the question to go")
    before = newest(settings)
    with opened(settings, "version") as reader:
        digest = shown(reader, wanted)["weights_digest"]
    browser.press("Roll back …")
    browser.press("Roll back")
    wait_until(lambda: f"has the weights of {wanted}: a new lineage" in browser.answer("versions"), 40, "the trainer's answer")
    said = re.search(r"version (\d+) has the weights", browser.answer("versions"))
    assert said
    assert int(said[1]) > before
    with opened(settings, "version") as reader:
        assert shown(reader, int(said[1]))["weights_digest"] == digest
    line = rf"^{int(said[1]):,} .*weights of {wanted:,}"
    wait_until(lambda: re.search(line, browser.text(".versions"), re.MULTILINE), 20, "its line")
    with ScorerClient(f"127.0.0.1:{settings.score.port}") as client:
        wait_until(lambda: client.score({}, [{"id": "a"}]).version >= int(said[1]), 20, "the scorer to follow")

    browser.fill("Version", "99999999")
    browser.press("Unpin")
    wait_until(lambda: "99999999" in browser.answer("versions"), 20, "why not")
    assert "obeyed" not in browser.answer("versions")


def test_dead_letters_are_read(scene: Scene) -> None:
    """The newest first: why, from where, and what it begins with."""
    browser, settings = scene.browser, scene.settings
    sender = producer(settings.kafka, "test")
    for event in (b'{"impression_id": "<b>older', b'{"impression_id": "<b>newer'):
        offset = sender.send(settings.kafka.topic("events"), event, key=b"x").get(timeout=20).offset
    sender.close()
    browser.open(scene.url)

    def read() -> bool:
        browser.press("Read the newest")
        time.sleep(0.3)
        return browser.text(".letters").count("bad_json") == 2

    wait_until(read, 30, "both letters", 0.5)
    said = browser.text(".letters")
    assert f"offset {offset}, 27 bytes" in said
    assert said.index("<b>newer") < said.index("<b>older")


def test_a_telephone_needs_no_scrolling_sideways(scene: Scene) -> None:
    """390 pixels, with every part filled: nothing is wider than the screen, and tables scroll by themselves."""
    browser = scene.browser
    browser.open(scene.url, NARROW)
    unlocked(browser)
    browser.press("Fill in an example")
    browser.press("Score")
    browser.press("Explain")
    browser.press("Read the newest")
    wait_until(lambda: browser.count(".explained .sides"), 20, "the explanations")
    wait_until(lambda: "bad_json" in browser.text(".letters"), 20, "the letters")
    assert browser.run("return [document.documentElement.scrollWidth, document.body.scrollWidth]") == [390, 390]
    wide = browser.run(
        "return [...document.querySelectorAll('button, input, figure, p')].filter(e => !e.closest('.scroll') && e.offsetParent"
        " && !e.closest('.unseen') && e.getBoundingClientRect().right > 390.5).map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []


def test_dark_follows_the_system_and_the_switch(scene: Scene) -> None:
    """Dark paper on a dark system; the switch turns it, either way; text stays readable in both (contrast of 4.5, WCAG 2.2)."""
    browser = scene.browser

    def paper() -> float:
        return luminance(browser.run("return getComputedStyle(document.body).backgroundColor"))

    def least_contrast() -> float:
        colours = browser.run(
            "const none = 'rgba(0, 0, 0, 0)', ground = e => getComputedStyle(e).backgroundColor;"
            "const under = e => ground(e) == none && e.parentElement ? under(e.parentElement) : ground(e);"
            "return [...document.querySelectorAll('section p, th, td, h2, .state, .told, section button')]"
            ".filter(e => e.offsetParent).map(e => [getComputedStyle(e).color, under(e)])"
        )
        found = []
        for ink, ground in colours:
            light, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
            found.append((light + 0.05) / (dark + 0.05))
        return min(found)

    for scheme, other in (("dark", "light"), ("light", "dark")):
        browser.open(scene.url, scheme=scheme)
        wait_until(lambda: (paper() < 0.1) == (scheme == "dark"), 5, f"{scheme} paper")  # noqa: B023
        assert least_contrast() >= 4.5
        browser.press(other)
        wait_until(lambda: (paper() < 0.1) == (other == "dark"), 5, f"{other} paper")  # noqa: B023


def test_the_keyboard_is_enough(scene: Scene) -> None:
    """Tab goes from the link past the head to every field and button in the order of the page, each with a name and a visible
    ring; Enter opens the orders and fills in a slate, Space scores it. No name is missing for a screen reader."""
    browser = scene.browser
    browser.open(scene.url)
    walked = []

    def type_in(*keys: str) -> None:
        webdriver.ActionChains(browser.driver).send_keys(*keys).perform()

    def tab() -> str:
        type_in(Keys.TAB)
        return browser.focused()

    def ring() -> bool:
        return bool(browser.run(
            "const ring = e => { const look = getComputedStyle(e);"
            " return look.boxShadow != 'none' || (look.outlineStyle != 'none' && parseFloat(look.outlineWidth) >= 2) };"
            "const e = document.activeElement, field = e.closest('.q-field'); return ring(e) || (field != null && ring(field))"
        ))

    while (name := tab()) != "Token for orders":
        walked.append(name)
        assert ring(), name
        assert len(walked) < 40, walked
    assert walked[0] == "to the figures"
    assert "dark" in walked
    type_in(TOKEN, Keys.ENTER)
    wait_until(lambda: browser.focused() == "Version", 10, "the focus on what the token opened")
    assert [tab() for _ in range(5)] == ["Pin", "Unpin", "Roll back …", "Read the newest", "Fill in an example"]
    assert ring()
    type_in(Keys.ENTER)
    wait_until(lambda: browser.focused() == "user", 10, "the focus on the form's first field")
    for _ in range(60):
        if tab() == "Score":
            break
    assert ring()
    type_in(Keys.SPACE)
    wait_until(lambda: "Scored by version" in browser.text(".scored"), 10, "the scores")
    assert [(role, name) for role, name in browser.names() if not name] == []


def test_a_lost_scorer_and_trainer_are_missed_on_the_open_page(scene: Scene) -> None:
    """Killed while somebody looks: seconds later the page says who is silent, for how long, and what starts it."""
    browser = scene.browser
    browser.open(scene.url)
    for verb in ("scorer", "trainer"):
        scene.crew[verb].kill()
    for silence in (r"trainer down no word for \d+ s, since [\d:]{8}; start", r"scorer down nothing answers on .* for \d+ s"):
        wait_until(lambda: re.search(silence, browser.text(".parts")), 20, silence)  # noqa: B023
    assert "Nothing is served; the store's newest is" in browser.text(".old")


def test_nothing_was_asked_of_anybody_else(scene: Scene) -> None:
    """Of all requests of all pages above, WebSockets too, none went elsewhere; the policy forbids it; a page under another
    name is refused, so that nobody's page can read this one through a name of theirs."""
    own = [address for url in (scene.url, scene.alone) for address in (url, url.replace("http", "ws"))]
    elsewhere = [url for url in scene.browser.seen() if not url.startswith((*own, "data:", "blob:"))]
    assert len(scene.browser.requests) > 50
    assert any(url.startswith("ws:") for url in scene.browser.requests)
    assert elsewhere == []
    with urllib.request.urlopen(scene.url, timeout=10) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(urllib.request.Request(scene.url, headers={"Host": "freshet.example"}), timeout=10)
    problems = [line["message"] for line in scene.browser.driver.get_log("browser") if line["level"] == "SEVERE"]
    assert problems == []


def luminance(colour: str) -> float:
    """Relative, of rgb(…) (WCAG 2.2)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
