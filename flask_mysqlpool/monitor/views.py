"""The blueprint: the page, its data as JSON, and its control requests."""

from __future__ import annotations

import json
from functools import partial
from logging import INFO
from typing import Any, cast
from weakref import WeakKeyDictionary

from flask import Blueprint, Flask, Response, current_app, request, url_for
from jinja2 import Environment, PackageLoader

from ..config import PoolConfig
from ..pool.driver.logs import log, plain
from ..pool.driver.process import process
from ..workers.overview import map_texts, reason
from . import snapshot
from .auth import Authorize, Gate, Refused, Visit

#: No content of other hosts, no inline scripts or styles, no framing (clickjacking).
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": CONTENT_POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

#: Bytes of the form with a token, at most: strangers send it.
LONGEST_LOGIN = 4096

#: Endpoints without authorization.
_OPEN = "static", "login"

# Not the app's environment, whose context processors may use the database.
_templates = Environment(
    loader=PackageLoader("flask_mysqlpool.monitor"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)


def create_monitor(
    *,
    authorize: Authorize | None = None,
    token: str | None = None,
    control: bool = False,
    url_prefix: str = "/mysqlpool",
    name: str = "mysqlpool_monitor",
) -> Blueprint:
    """Create the blueprint of the monitor, for ``app.register_blueprint()``.

    A request may read if ``authorize``, called in the request, returns True; or if it
    has the ``token``, as ``Authorization: Bearer`` or after signing in with a form.
    Without both, the app must be in debug mode, and only requests directly from this
    host are answered. With ``control``, the page also resets, pauses and resumes.

    Raises :exc:`ValueError` for both at once and for a token that is too short, and
    :exc:`TypeError` if ``authorize`` is not callable or ``token`` is no text.
    Registering it raises :exc:`RuntimeError` if both are missing and the app is not in
    debug mode, and if ``token`` or ``control`` is set without ``SECRET_KEY``.
    """
    gate = Gate(authorize, token, control)
    monitor = _Monitor(gate, control=control, login=token is not None)
    blueprint = Blueprint(name, __name__, url_prefix=url_prefix, static_folder="static")
    blueprint.record(lambda state: gate.check(cast(Flask, state.app)))
    blueprint.before_request(monitor.check)
    blueprint.register_error_handler(Refused, monitor.refused)
    blueprint.after_request(_add_headers)
    blueprint.add_url_rule("/", "page", monitor.page, strict_slashes=False)
    blueprint.add_url_rule("/status.json", "status", monitor.status)
    if token is not None:
        blueprint.add_url_rule("/login", "login", monitor.login, methods=["POST"])
        blueprint.add_url_rule("/logout", "logout", monitor.logout, methods=["POST"])
    if control:
        blueprint.add_url_rule("/control", "control", monitor.control, methods=["POST"])
    return blueprint


class _Monitor:
    """The views; one object may be registered with several apps."""

    def __init__(self, gate: Gate, *, control: bool, login: bool) -> None:
        self._gate = gate
        self._has_control = control
        self._has_login = login
        self._memories: WeakKeyDictionary[Flask, snapshot.Memory] = WeakKeyDictionary()

    def _memory(self, app: Flask) -> snapshot.Memory:
        memory = self._memories.get(app)
        if memory is None or memory.process != process():
            memory = self._memories[app] = snapshot.Memory()
        return memory

    def check(self) -> None:
        """Refuse requests that are not authorized, without using the app's pools."""
        if _endpoint() not in _OPEN:
            self._gate.check_reader()

    def refused(self, error: Refused) -> Response:
        if _endpoint() in ("page", "login"):
            form = url_for(".login") if self._has_login else None
            response = _render(error.status, refused=error.reason, login=form)
        else:
            response = _json({"error": error.reason}, error.status)
        if error.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response

    def page(self) -> Response:
        site = snapshot.read_site(_app())
        visit = None
        if self._gate.needs_cookie:
            visit = self._gate.visit() or Visit.begin()
        response = _render(
            200,
            site=site,
            settings={b: _settings(config) for b, config in site.pools.items()},
            csrf=visit.id if visit else "",
            control=url_for(".control") if self._has_control else None,
            logout=url_for(".logout") if self._gate.has_signed_in() else None,
        )
        if visit:
            self._gate.remember(visit, response)
        return response

    def status(self) -> Response:
        """Return the page's data as JSON; ``?server=0`` does not query the server."""
        app = _app()
        return _json(
            snapshot.status(
                snapshot.read_site(app),
                self._memory(app),
                with_server=request.args.get("server") != "0",
                with_line=request.args.get("line") == "1",
            )
        )

    def login(self) -> Response:
        self._gate.check_origin()
        size = request.content_length
        if size is None or size > LONGEST_LOGIN:
            raise Refused(413, "This is too long for a token.")
        if not self._gate.is_token(request.form.get("token")):
            raise Refused(401, "This is not the token.")
        response = _to_page()
        self._gate.remember(Visit.begin(self._gate.sign_in()), response)
        return response

    def logout(self) -> Response:
        self._gate.check_writer()
        response = _to_page()
        try:
            self._gate.sign_out()
        except OSError as error:
            text = "You are signed out here; copies of the cookie stay valid until"
            text = f"{text} expiry: {error.strerror or error}."
            response = self.refused(Refused(503, text))
        self._gate.remember(Visit.begin(), response)
        return response

    def control(self) -> Response:
        """Reset, pause or resume one pool of all workers."""
        self._gate.check_writer()
        site = snapshot.read_site(_app())
        action, bind = _requested()
        if action not in _ACTIONS or bind not in site.pools:
            raise Refused(400, "There is no such action, or no such pool.")
        try:
            visitor = f"the monitor, asked from {plain(request.remote_addr, 100)}"
            how = {"by": visitor} if action == "pause" else {}
            getattr(site.fleet(), action)(bind, **how)
        except OSError as error:
            text = f"The workers cannot be reached: {reason(error)}"
            raise Refused(503, text) from error
        text = "requested by the monitor: %s %s"
        log(INFO, text, action, bind, logger=current_app.logger)
        return _json({"action": action, "bind": bind})


_ACTIONS = "reset", "pause", "resume"


def _requested() -> tuple[str, str]:
    """Return the requested action and its bind."""
    try:
        content = request.get_json(silent=True)
    except RecursionError:
        content = None
    about = content if isinstance(content, dict) else {}
    return str(about.get("action")), str(about.get("bind"))


def _endpoint() -> str:
    return (request.endpoint or "").rpartition(".")[2]


def _app() -> Flask:
    return current_app._get_current_object()  # type: ignore[attr-defined,no-any-return]


def _settings(config: PoolConfig) -> list[tuple[str, object, bool]]:
    """Return names, values without secrets, and whether each is not the default."""
    defaults = PoolConfig().settings()
    return [(k, v, v != defaults[k]) for k, v in config.settings().items()]


def _render(status: int, **context: Any) -> Response:
    static = partial(url_for, ".static")
    text = _templates.get_template("page.html").render(
        {"static": static, "data": url_for(".status"), **context}
    )
    shown = "\n".join(plain(line, len(line)) for line in text.split("\n"))
    return Response(shown, status, mimetype="text/html")


def _json(data: object, status: int = 200) -> Response:
    text = json.dumps(map_texts(plain, data), separators=(",", ":"))
    return Response(text + "\n", status, mimetype="application/json")


def _to_page() -> Response:
    return Response(status=303, headers={"Location": url_for(".page")})


def _add_headers(response: Response) -> Response:
    response.headers.update(HEADERS)
    return response
