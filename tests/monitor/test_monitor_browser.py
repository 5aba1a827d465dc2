"""The monitor in a real browser: Chromium without a window, steered by Selenium.

Skipped where Chromium or its driver is missing. The pictures of the documentation are
made here, too, and only on demand::

    export MONITOR_PICTURES=docs/_static/monitor
    scripts/test tests/monitor/test_monitor_browser.py
"""

from __future__ import annotations

import base64
import json
import logging
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeApp, extension, until
from flask import Flask
from pymysql.err import MySQLError
from records import complete, identity_of
from werkzeug.serving import BaseWSGIServer, make_server

from flask_mysqlpool import MySQLPool
from flask_mysqlpool.monitor import create_monitor
from flask_mysqlpool.testing import LocalServer
from flask_mysqlpool.workers.status_dir import StatusDir
from flask_mysqlpool.workers.status_file import StatusFile

selenium = pytest.importorskip("selenium", reason="needs selenium")

from selenium.webdriver import (  # noqa: E402
    ActionChains,
    Chrome,
    ChromeOptions,
    ChromeService,
)
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
PICTURES = os.environ.get("MONITOR_PICTURES")

pytestmark = [
    # The server is not what is tested here.
    pytest.mark.one_engine,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="no browser: looked for chromium and chromedriver in PATH",
    ),
]

TOKEN = "a-token-that-nobody-guesses"

#: Arguments that leave the browser alone with this host.
_ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"),
    *("--no-first-run", "--disable-extensions", "--disable-component-update"),
    *("--disable-background-networking", "--disable-sync", "--hide-scrollbars"),
    # Chromium's own services are asked for nothing: no other name is resolved.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in _ARGUMENTS:
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    with Chrome(options, ChromeService(DRIVER)) as chromium:
        chromium.set_page_load_timeout(10)
        yield chromium


class Window:
    """The browser, at one site."""

    def __init__(self, chromium: Chrome, url: str) -> None:
        self.chromium = chromium
        self.url = url
        self._get_logs()

    def _get_logs(self) -> tuple[list[Any], list[Any]]:
        """What has been logged since this was last asked for."""
        log: Any = self.chromium.get_log
        return log("browser"), log("performance")

    def look(self, path: str = "/mysqlpool/") -> None:
        self.chromium.get(self.url + path)

    def run(self, script: str, *arguments: object) -> Any:
        return self.chromium.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        return str(
            self.run("return document.querySelector(arguments[0]).innerText", selector)
        )

    def field(self, name: str) -> str:
        return self.text(f"[data-field={name}]")

    def rows(self, table: str) -> list[list[str]]:
        """The texts of the cells, also of those that are not shown."""
        found: list[list[str]] = self.run(
            "return [...document.querySelector(`[data-rows=${arguments[0]}]`).rows]"
            ".map(row => [...row.cells].map(cell => cell.textContent))",
            table,
        )
        return found

    def click(self, selector: str) -> None:
        self.chromium.find_element(By.CSS_SELECTOR, selector).click()

    def write(self, selector: str, text: str) -> None:
        self.chromium.find_element(By.CSS_SELECTOR, selector).send_keys(text)

    def wait(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        until(condition, seconds)

    def wait_for_data(self) -> None:
        self.wait(lambda: self.text("#live") == "Live")

    def tell(self, command: str, **arguments: Any) -> Any:
        """A command of the protocol for developers' tools."""
        return self.chromium.execute_cdp_cmd(command, arguments)

    def set_screen(self, width: int, height: int, dark: bool = False) -> None:
        self.tell(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = "dark" if dark else "light"
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.tell("Emulation.setEmulatedMedia", features=[feature])

    def assert_clean(self) -> None:
        """No complaint on the console, no request to anybody else."""
        console, performance = self._get_logs()
        assert [entry["message"] for entry in console] == []
        asked = [json.loads(entry["message"])["message"] for entry in performance]
        urls = [
            message["params"]["request"]["url"]
            for message in asked
            if message["method"] == "Network.requestWillBeSent"
            # Not those of the browser's own start page.
            and message["params"]["documentURL"].startswith(self.url)
        ]
        assert urls and all(url.startswith(self.url + "/") for url in urls)


class Serving:
    """An app behind a real server, with a thread for each request."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self.port = 0
        self._server: BaseWSGIServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._server = make_server("127.0.0.1", self.port, self._app, threaded=True)
        self.port = self._server.port
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None


@pytest.fixture
def serve(
    chromium: Chrome, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Flask], tuple[Window, Serving]]]:
    monkeypatch.setattr(logging.getLogger("werkzeug"), "disabled", True)
    with ExitStack() as stack:

        def serve(app: Flask) -> tuple[Window, Serving]:
            serving = Serving(app)
            serving.start()
            stack.callback(serving.stop)
            window = Window(chromium, serving.url)
            window.set_screen(1280, 900)
            return window, serving

        yield serve
        # What keeps asking would have to be waited for.
        chromium.get("about:blank")
        chromium.delete_all_cookies()


@pytest.fixture
def shop(make_app: MakeApp) -> Flask:
    return made(make_app(MAX_SIZE=3))


def allow() -> bool:
    return True


def made(
    app: Flask,
    authorize: Callable[[], bool] | None = allow,
    token: str | None = None,
) -> Flask:
    app.secret_key = "a secret key"
    app.register_blueprint(
        create_monitor(authorize=authorize, token=token, control=True)
    )
    db = extension(app)

    @app.get("/person/all")
    def person_all() -> str:
        db.get_db().query("SELECT SLEEP(0.05)")
        return ""

    return app


@contextmanager
def visitors(app: Flask, number: int) -> Iterator[None]:
    """Requests all the time, of so many clients."""
    enough = threading.Event()

    def visit() -> None:
        client = app.test_client()
        while not enough.is_set():
            client.get("/person/all")

    threads = [threading.Thread(target=visit) for _ in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        enough.set()
        for thread in threads:
            thread.join()


@contextmanager
def exhausted(app: Flask, endpoint: str = "report") -> Iterator[None]:
    """All connections of the pool are held."""
    with app.app_context(), ExitStack() as stack:
        for _ in range(extension(app).stats().max_size):
            pool = extension(app).pool()
            stack.enter_context(pool.connection(endpoint=endpoint))
        yield


Serve = Callable[[Flask], tuple[Window, Serving]]


def test_it_loads_without_a_complaint_and_asks_nobody_else(
    shop: Flask, serve: Serve
) -> None:
    window, _ = serve(shop)
    window.look()
    window.wait_for_data()
    clock = window.text("#clock")
    window.wait(lambda: window.text("#clock") != clock)

    window.assert_clean()
    assert window.chromium.title == "shop · Pool monitor"


def test_it_updates_by_itself_while_the_site_works(shop: Flask, serve: Serve) -> None:
    window, _ = serve(shop)
    window.look()
    window.wait_for_data()
    with visitors(shop, 6):
        window.wait(lambda: window.field("in_use") == "3")
        window.wait(lambda: window.field("waiting") != "0")
        assert window.field("waiting_note").startswith("for up to ")
        window.wait(lambda: window.field("wait_recent_p95") not in ("–", "0.0 ms"))
        window.wait(lambda: float(window.field("rate").replace("–", "0")) > 1)
        [row] = window.rows("workers")
        assert row[0] == str(os.getpid())
    window.wait(lambda: window.field("in_use") == "0")

    path = window.run(
        "return document.querySelector('[data-path=in_use]').getAttribute('d')"
    )
    assert path.startswith("M") and "L" in path
    window.assert_clean()


def test_nothing_jumps_while_it_updates(shop: Flask, serve: Serve) -> None:
    window, _ = serve(shop)
    window.look()
    window.wait_for_data()
    window.run(
        "window.shift = 0; new PerformanceObserver((list) => {"
        " for (const entry of list.getEntries()) window.shift += entry.value;"
        "}).observe({type: 'layout-shift'})"
    )
    with visitors(shop, 6):
        window.wait(lambda: window.field("in_use") == "3")
    window.wait(lambda: window.field("in_use") == "0")

    assert window.run("return window.shift") < 0.01


#: Counts the holders that are shown whenever the page asks again.
COUNT_HOLDERS = """{
    const fetch = window.fetch;
    window.shown = [];
    window.fetch = (...request) => {
        window.shown.push(document.querySelector("[data-rows=holders]").rows.length);
        return fetch(...request);
    };
}"""


def test_who_holds_an_exhausted_pool_is_shown_with_the_next_answer(
    shop: Flask, serve: Serve
) -> None:
    """The page asks once a second; one question may be under way already."""
    window, _ = serve(shop)
    script = window.tell("Page.addScriptToEvaluateOnNewDocument", source=COUNT_HOLDERS)
    window.look()
    window.wait_for_data()

    def shown(question: int) -> int:
        window.wait(lambda: window.run("return window.shown.length") > question)
        return int(window.run("return window.shown[arguments[0]]", question))

    with exhausted(shop):
        asked = window.run("return window.shown.length")
        assert shown(asked + 1) == 3
        assert {row[1] for row in window.rows("holders")} == {"report"}
        assert window.text("[data-state-of]") == "all in use"

        window.look()
        assert [shown(0), shown(1)] == [0, 3]
    window.tell("Page.removeScriptToEvaluateOnNewDocument", **script)
    window.wait(lambda: window.rows("holders") == [])
    assert window.text("[data-empty=holders]") == "None."


def test_names_with_html_in_them_are_text(shop: Flask, serve: Serve) -> None:
    evil = "<img src=x onerror=alert(1)><b>bold</b>"
    window, _ = serve(shop)
    window.look()
    with exhausted(shop, evil):
        window.wait(lambda: [row[1] for row in window.rows("holders")] == [evil] * 3)
        assert window.run("return document.querySelectorAll('td *').length") == 0
    window.assert_clean()


def test_it_refuses_who_has_not_signed_in(make_app: MakeApp, serve: Serve) -> None:
    window, _ = serve(made(make_app(), authorize=None, token=TOKEN))
    window.look()
    assert window.run("return document.querySelectorAll('.pool').length") == 0
    window.write("#token", "not the token")
    window.click("form button")
    window.wait(lambda: window.text("#refused") == "This is not the token.")
    assert window.run("return document.cookie") == ""

    window.write("#token", "\b" * 20 + TOKEN)
    window.click("form button")
    window.wait(lambda: window.run("return document.querySelector('#live') !== null"))
    window.wait_for_data()
    assert window.run("return document.cookie") == ""
    assert window.run("return location.search") == ""

    window.click("#logout")
    window.wait(lambda: window.run("return document.querySelector('#token') !== null"))


def test_it_ends_when_it_is_no_longer_allowed(make_app: MakeApp, serve: Serve) -> None:
    allowed = [True]
    window, _ = serve(made(make_app(), authorize=lambda: allowed[0]))
    window.look()
    window.wait_for_data()
    allowed[0] = False
    window.wait(lambda: window.text("#live").startswith("Access has ended"))


def test_a_reset_takes_two_clicks(shop: Flask, serve: Serve) -> None:
    with shop.app_context():
        extension(shop).connection().close()
    window, _ = serve(shop)
    window.look()
    window.wait(lambda: window.field("idle") == "1")
    window.click("[data-action=reset]")
    assert window.text("#sure-title") == "Reset default?"
    window.click("#sure-no")
    assert not window.run("return document.querySelector('#sure').open")

    window.click("[data-action=reset]")
    window.click("#sure-yes")

    window.wait(lambda: not window.run("return document.querySelector('#sure').open"))
    window.wait(lambda: window.field("idle") == "0")
    closed = {row[0]: row[2:] for row in window.rows("closed")}
    assert closed["invalidated"] == ["1", "1"]
    window.assert_clean()


def test_pause_and_resume_are_one_button(shop: Flask, serve: Serve) -> None:
    window, _ = serve(shop)
    window.look()
    window.wait_for_data()
    window.click("[data-action=pause]")
    window.click("#sure-yes")
    window.wait(lambda: window.text(".pool > header .state") == "paused")

    window.click("[data-action=resume]")
    window.click("#sure-yes")
    window.wait(lambda: window.text(".pool > header .state") == "not in use yet")


def test_it_says_when_the_app_cannot_be_reached(shop: Flask, serve: Serve) -> None:
    window, serving = serve(shop)
    window.look()
    window.wait_for_data()
    serving.stop()
    window.wait(lambda: window.text("#live").startswith("The app cannot be reached"))
    assert window.run("return document.body.className") == "stale"
    serving.start()
    window.wait(lambda: window.text("#live") == "Live")


def asked(window: Window) -> int:
    """How often the page has asked for data."""
    return int(
        window.run(
            "return performance.getEntriesByType('resource')"
            ".filter(each => each.name.includes('status.json')).length"
        )
    )


def test_on_hold_and_while_it_is_hidden_it_asks_nothing(
    shop: Flask, serve: Serve
) -> None:
    window, _ = serve(shop)
    window.look()
    window.wait_for_data()
    window.click("#hold")
    assert window.text("#live") == "On hold"
    window.wait(lambda: window.run("return !refreshing"))
    before = asked(window)
    window.run("return refresh()")
    assert asked(window) == before
    window.click("#hold")
    window.wait(lambda: asked(window) > before)

    # A browser without a window hides no tab.
    window.run(
        "Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    assert window.text("#live").startswith("Waiting for this tab")
    window.wait(lambda: window.run("return !refreshing"))
    before = asked(window)
    window.run("return refresh()")
    assert asked(window) == before
    window.run(
        "delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))"
    )
    window.wait(lambda: asked(window) > before)


def luminance(colour: str) -> float:
    """Of ``rgb(1, 2, 3)``, as the guidelines for accessible content define it."""
    parts = [int(part) / 255 for part in colour[4:-1].split(",")]
    red, green, blue = (
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4
        for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrasts(window: Window) -> dict[str, float]:
    """Of each text that is shown, with what is behind it."""
    found: list[tuple[str, str, str]] = window.run("""
        const behind = (e) => {
            for (; e; e = e.parentElement) {
                const colour = getComputedStyle(e).backgroundColor;
                if (colour.startsWith("rgb(")) return colour;
            }
        };
        return [...document.querySelectorAll("body *")]
            .filter(e => e.checkVisibility() && [...e.childNodes].some(
                n => n.nodeType === 3 && n.data.trim()))
            .map(e => [e.className + "|" + e.textContent, getComputedStyle(e).color,
                       behind(e)]);
    """)
    ratios = {}
    for name, text, ground in found:
        low, high = sorted([luminance(text), luminance(ground)])
        ratios[name] = (high + 0.05) / (low + 0.05)
    return ratios


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_can_be_read_in_light_and_in_dark(
    shop: Flask, serve: Serve, dark: bool
) -> None:
    window, _ = serve(shop)
    window.set_screen(1280, 900, dark)
    window.look()
    with exhausted(shop):
        window.wait(lambda: len(window.rows("holders")) == 3)
        window.run("document.querySelector('details').open = true")
        ratios = contrasts(window)
        ground = window.run("return getComputedStyle(document.body).backgroundColor")

    assert (luminance(ground) < 0.1) is dark
    assert len(ratios) > 60
    assert [name for name, ratio in ratios.items() if ratio < 4.5] == []


@pytest.mark.parametrize("width", [320, 360, 768])
def test_at_the_width_of_a_phone_nothing_sticks_out(
    make_app: MakeApp, serve: Serve, width: int
) -> None:
    app = made(make_app(MAX_SIZE=3, BINDS={"reports_of_last_year": {}}))
    sheet = StatusFile(StatusDir(app.config["MYSQLPOOL_STATUS_DIR"]))
    times = dict.fromkeys(("wait", "use", "create"), [8_888_888] * 16)
    sheet.write(
        complete(pid=4194304, checkouts=123_456_789, timeouts=99_999, **times)
        | identity_of(app)
        | {"connect_error": "2003: " + "x" * 99, "last_connect_failure": time.time()}
        | {"discarded_by_reason": {"invalidated": 888_888}, "waiting": 9999}
    )
    window, _ = serve(app)
    window.set_screen(width, 800)
    window.look()
    with exhausted(app, "an_endpoint_with_a_name_that_is_much_too_long.for_a_phone"):
        window.wait(lambda: len(window.rows("holders")) == 3)
        sticking_out = window.run(
            "for (const e of document.querySelectorAll('details')) e.open = true;"
            "return [...document.querySelectorAll('html, body *')].filter(e =>"
            " e.scrollWidth > arguments[0]"
            " || e.getBoundingClientRect().right > arguments[0] + .5"
            ").map(e => `${e.tagName}.${e.className}: ${e.textContent.trim()}`)",
            width,
        )
        inner = window.run(
            "return [...document.querySelectorAll('.scroll')]"
            ".filter(e => e.scrollWidth > e.clientWidth).length"
        )

    sheet.remove()
    assert (sticking_out, inner) == ([], 0)


def test_what_has_the_focus_is_never_under_the_header(
    make_app: MakeApp, serve: Serve
) -> None:
    app = make_app(BINDS={name: {} for name in ("reports", "archive", "audit")})
    window, _ = serve(made(app))
    window.set_screen(500, 500)
    window.look()
    window.wait_for_data()

    def press(modifier: str) -> dict[str, Any]:
        """Where the focus is after a tab, and where the header ends."""
        keys = ActionChains(window.chromium).key_down(modifier).send_keys(Keys.TAB)
        keys.key_up(modifier).perform()
        return dict(
            window.run(
                "const header = document.querySelector('.top');"
                "const focused = document.activeElement;"
                "return {header: header.getBoundingClientRect().bottom,"
                " top: focused.getBoundingClientRect().top,"
                " what: focused.outerHTML.slice(0, 80),"
                " isIn: header.contains(focused), isAny: focused !== document.body}"
            )
        )

    places = (press(Keys.NULL) for _ in count())
    forth = list(takewhile(lambda at: at["isAny"], places))
    scrolled = window.run("return scrollY")
    back = [press(Keys.SHIFT) for _ in forth]

    seen = [at for at in forth + back if not at["isIn"]]
    assert scrolled > 0 and len(seen) == 2 * (4 + 4 * 5)
    assert [at["what"] for at in back] == [at["what"] for at in forth][::-1]
    assert [at for at in seen if at["top"] < at["header"]] == []


def test_it_can_be_used_without_a_mouse_and_without_eyes(
    shop: Flask, serve: Serve
) -> None:
    """Everything that scrolls or acts takes the focus, and has a name."""
    window, _ = serve(shop)
    window.look()
    window.wait_for_data()
    nodes = window.tell("Accessibility.getFullAXTree")["nodes"]
    known = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"]
    ]
    named = {role: name for role, name in known if name}
    for role in ("button", "region", "table", "image", "heading", "columnheader"):
        assert role in named
        nameless = [name for each, name in known if each == role and not name.strip()]
        assert nameless == [], role
    assert window.run(
        "return [...document.querySelectorAll('.scroll')].every(e => e.tabIndex === 0)"
    )
    # Of what changes every second, nothing is read out by itself.
    assert (
        window.run(
            "return [...document.querySelectorAll('[role=status], [role=alert],"
            " [aria-live]')].filter(e => e.querySelector('[data-field]')).length"
        )
        == 0
    )


# Pictures


def picture_site() -> Flask:
    """A busy site, for a server with several workers; see :func:`site`."""
    app = Flask("shop")
    app.config.update(
        MYSQLPOOL_URL=os.environ["SITE_URL"],
        MYSQLPOOL_STATUS_DIR=os.environ["SITE_STATUS_DIR"],
        MYSQLPOOL_MAX_SIZE=5,
        MYSQLPOOL_MAX_HOST_CONNECTIONS=12,
        MYSQLPOOL_TIMEOUT=2,
        MYSQLPOOL_BINDS={"reports": {"MAX_SIZE": 2}},
    )
    app.secret_key = "known to all workers"
    app.register_blueprint(create_monitor(authorize=allow, control=True))
    db = MySQLPool(app)

    def add(endpoint: str, seconds: float, statement: str, bind: str) -> None:
        def view() -> str:
            connection = db.get_db(bind)
            with connection.cursor() as cursor:
                cursor.execute(f"{statement}, SLEEP({seconds * random.random():.3f})")
            return ""

        app.add_url_rule(f"/{endpoint}", endpoint, view)

    for endpoint, (seconds, statement, bind) in PAGES.items():
        add(endpoint, seconds, statement, bind)
    return app


#: How long the pages of that site take at the most, and what they ask for.
PAGES = {
    "person_all": (0.04, "SELECT COUNT(*)", "default"),
    "order_list": (0.15, "SELECT MAX(1)", "default"),
    "search": (0.5, "SELECT CONNECTION_ID()", "default"),
    "invoice_pdf": (4.0, "SELECT VERSION()", "default"),
    "sales_by_month": (3.0, "SELECT USER()", "reports"),
}


@contextmanager
def site(server: LocalServer, board: Path) -> Iterator[str]:
    """The address of that site, served by three processes."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    address = f"127.0.0.1:{port}"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "gunicorn", "test_monitor_browser:picture_site()"),
            *(f"--bind={address}", "--workers=3", "--worker-class=gthread"),
            *("--threads=16", "--log-level=error"),
        ],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"SITE_URL": server.url, "SITE_STATUS_DIR": str(board)},
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: is_served(port))
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(15)


def is_served(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


class Rush:
    """Visitors of that site, more or fewer of them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._wanted = threading.Semaphore(0)
        self._ended = False
        self._present = 0

    def visit(self) -> None:
        while not self._ended:
            [page] = random.choices([*PAGES], weights=[50, 25, 12, 2, 2])
            with suppress(OSError):
                urllib.request.urlopen(f"{self._url}/{page}").close()
            if self._wanted.acquire(blocking=False):
                return

    def be(self, number: int, seconds: float) -> None:
        """So many of them, for so long."""
        while self._present > number:
            self._wanted.release()
            self._present -= 1
        while self._present < number:
            threading.Thread(target=self.visit, daemon=True).start()
            self._present += 1
        threading.Event().wait(seconds)

    def end(self) -> None:
        self._ended = True


@pytest.mark.skipif(PICTURES is None, reason="only for MONITOR_PICTURES=FOLDER")
@pytest.mark.timeout(300)
def test_pictures(chromium: Chrome, server: LocalServer, tmp_path: Path) -> None:
    folder = Path(PICTURES or "")
    folder.mkdir(parents=True, exist_ok=True)
    with site(server, tmp_path / "board") as url:
        window, rush = Window(chromium, url), Rush(url)
        window.set_screen(1280, 900)
        window.look()
        for number in (3, 7, 12, 26, 18, 9, 6):
            rush.be(number, 12)
            if number == 12:
                end_connections(server)
        rush.be(24, 2)
        for name, width, dark in SCREENS:
            take_picture(window, folder / f"{name}.webp", width, dark)
        rush.end()
    assert sum(p.stat().st_size for p in folder.iterdir()) < 400_000


SCREENS = ("light", 1200, False), ("dark", 1200, True), ("phone", 360, False)


def end_connections(server: LocalServer) -> None:
    """Of the site, as a restart of the server would."""
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SHOW PROCESSLIST")
        own = connection.thread_id()
        for number, user, *_ in cursor.fetchall():
            if number != own and user == server.user:
                with suppress(MySQLError):
                    cursor.execute(f"KILL {number}")


def take_picture(window: Window, path: Path, width: int, dark: bool) -> None:
    """Of the first pool, as it is on a screen of this width."""
    window.set_screen(width, 900, dark)
    clock = window.text("#clock")
    window.wait(lambda: window.text("#clock") != clock)
    bottom = window.run(
        "return document.querySelector('.pool').getBoundingClientRect().bottom"
        " + scrollY + 20"
    )
    window.set_screen(width, int(bottom), dark)
    picture = window.tell("Page.captureScreenshot", format="webp", quality=82)
    path.write_bytes(base64.b64decode(picture["data"]))
