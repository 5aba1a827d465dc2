"""The blueprint: the page, its data as JSON, and its control requests."""

from __future__ import annotations

import json
from functools import partial
from logging import INFO
from typing import Any, cast
from weakref import WeakKeyDictionary

from flask import Blueprint, Flask, Response, current_app, request, url_for
from flask.blueprints import BlueprintSetupState
from jinja2 import Environment, PackageLoader

from ..config import PoolConfig
from ..pool.driver.logs import log, plain
from . import snapshot
from .auth import Authorize, Gate, Refusal, Visit

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
    :exc:`TypeError` if ``authorize`` is not callable. Registering it raises
    :exc:`RuntimeError` if both are missing and the app is not in debug mode, and if
    ``token`` or ``control`` is set without ``SECRET_KEY``.
    """
    monitor = _Monitor(Gate(authorize, token), control)
    blueprint = Blueprint(name, __name__, url_prefix=url_prefix, static_folder="static")
    blueprint.record(monitor.registered)
    blueprint.before_request(monitor.refuse)
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

    def __init__(self, gate: Gate, control: bool) -> None:
        self._gate = gate
        self._has_control = control
        self._memories: WeakKeyDictionary[Flask, snapshot.Memory] = WeakKeyDictionary()

    def registered(self, state: BlueprintSetupState) -> None:
        app = cast(Flask, state.app)
        self._gate.check(app, self._needs_cookie)
        self._memories.setdefault(app, snapshot.Memory())

    @property
    def _needs_cookie(self) -> bool:
        return self._has_control or self._gate.takes_token

    def refuse(self) -> Response | None:
        """Answer requests that are not authorized, without using the app's pools."""
        endpoint = (request.endpoint or "").rpartition(".")[2]
        refusal = None if endpoint in _OPEN else self._gate.refusal()
        if refusal is None:
            return None
        if endpoint == "page":
            return self._sign_in(refusal)
        return _refused(refusal)

    def _sign_in(self, refusal: Refusal) -> Response:
        form = url_for(".login") if self._gate.takes_token else None
        page = _render(refusal.status, refused=refusal.reason, login=form)
        return _challenged(page)

    def page(self) -> Response:
        site = snapshot.read_site(_app())
        visit = self._gate.visit()
        if visit is None and self._needs_cookie:
            visit = self._gate.begin_visit()
        response = _render(
            200,
            site=site,
            settings={b: _settings(config) for b, config in site.configs.items()},
            csrf=self._gate.csrf_token(visit) if visit else "",
            control=url_for(".control") if self._has_control else None,
            logout=url_for(".logout") if self._gate.has_signed_in() else None,
        )
        if visit and self._needs_cookie:
            self._gate.remember(visit, response)
        return response

    def status(self) -> Response:
        """Return the page's data as JSON; ``?server=0`` does not query the server."""
        app = _app()
        return _json(
            snapshot.status(
                snapshot.read_site(app),
                self._memories[app],
                with_server=request.args.get("server") != "0",
                with_line=request.args.get("line") == "1",
            )
        )

    def login(self) -> Response:
        refusal = self._gate.foreign()
        if refusal is not None:
            return _refused(refusal)
        if not self._gate.is_token(request.form.get("token", "")):
            return self._sign_in(Refusal(401, "This is not the token."))
        response = _to_page()
        visit = self._gate.begin_visit(self._gate.signed_out())
        self._gate.remember(visit, response)
        return response

    def logout(self) -> Response:
        refusal = self._gate.forgery()
        if refusal is not None:
            return _refused(refusal)
        fault = self._gate.sign_out()
        response = _refused(fault) if fault else _to_page()
        self._gate.remember(Visit("", None), response)
        return response

    def control(self) -> Response:
        """Reset, pause or resume one pool of all workers."""
        refusal = self._gate.forgery()
        if refusal is not None:
            return _refused(refusal)
        site = snapshot.read_site(_app())
        action, bind = _requested()
        if action not in _ACTIONS or bind not in site.configs:
            return _refused(Refusal(400, "There is no such action, or no such pool."))
        try:
            if site.fleet is None:
                raise OSError(site.unseen)
            how = {"by": _visitor()} if action == "pause" else {}
            getattr(site.fleet, action)(bind, **how)
        except OSError as error:
            text = f"The workers cannot be reached: {snapshot.reason(error)}"
            return _refused(Refusal(503, text))
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
    if not isinstance(content, dict):
        return "", ""
    return str(content.get("action")), str(content.get("bind"))


def _visitor() -> str:
    return f"the monitor, asked from {plain(request.remote_addr, 100)}"


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
    text = json.dumps(_plain(data), separators=(",", ":"))
    return Response(text + "\n", status, mimetype="application/json")


def _plain(data: object) -> object:
    """Escape control characters in all texts."""
    if isinstance(data, dict):
        return {plain(key): _plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [*map(_plain, data)]
    return plain(data) if isinstance(data, str) else data


def _refused(refusal: Refusal) -> Response:
    return _challenged(_json({"error": refusal.reason}, refusal.status))


def _challenged(response: Response) -> Response:
    """Add the authentication scheme to a 401, which requires one."""
    if response.status_code == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _to_page() -> Response:
    return Response(status=303, headers={"Location": url_for(".page")})


def _add_headers(response: Response) -> Response:
    response.headers.update(HEADERS)
    return response
