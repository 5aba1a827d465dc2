"""The blueprint: the page, its data beside it, and the orders it can give."""

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

#: Nothing comes from foreign hosts, nothing inline runs, nobody frames a button.
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

#: For those who have not been let in yet.
_OPEN = "static", "login"

# Not the app's: context processors of an app may ask its database.
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
    """A blueprint with the monitor, for ``app.register_blueprint()``.

    Who may see it: whoever ``authorize`` returns True for, called in the request; or
    whoever has the ``token``, sent as ``Authorization: Bearer`` or typed into a form.
    With neither, the app must be in debug mode, and only requests straight from this
    host are answered. With ``control``, the page also resets, pauses and resumes.

    Raises :exc:`ValueError` for both ways at once and for a token that is too short,
    :exc:`TypeError` if ``authorize`` cannot be called; and when it is registered
    :exc:`RuntimeError` if the app is not in debug mode and there is neither, and if a
    token or ``control`` finds no ``SECRET_KEY``.
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
        blueprint.add_url_rule("/control", "control", monitor.steer, methods=["POST"])
    return blueprint


class _Monitor:
    """The views. Several apps may have registered the same one."""

    def __init__(self, gate: Gate, control: bool) -> None:
        self._gate = gate
        self._control = control
        self._memories: WeakKeyDictionary[Flask, snapshot.Memory] = WeakKeyDictionary()

    def registered(self, state: BlueprintSetupState) -> None:
        app = cast(Flask, state.app)
        self._gate.check(app, self._needs_cookie)
        self._memories.setdefault(app, snapshot.Memory())

    @property
    def _needs_cookie(self) -> bool:
        return self._control or self._gate.takes_token

    def refuse(self) -> Response | None:
        """Answer those who may not see this. Nothing of the app's is asked for it."""
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
        site = snapshot.look(_app())
        visit = self._gate.visit()
        if visit is None and self._needs_cookie:
            visit = self._gate.begin_visit()
        response = _render(
            200,
            site=site,
            settings={b: _settings(config) for b, config in site.configs.items()},
            csrf=self._gate.csrf_token(visit) if visit else "",
            control=url_for(".control") if self._control else None,
            logout=url_for(".logout") if self._gate.has_signed_in() else None,
        )
        if visit and self._needs_cookie:
            self._gate.remember(visit, response)
        return response

    def status(self) -> Response:
        """What the page shows, as JSON. ``?server=0``: without asking the server."""
        app = _app()
        return _json(
            snapshot.status(
                snapshot.look(app),
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

    def steer(self) -> Response:
        """Reset, pause or resume one pool of all workers."""
        refusal = self._gate.forgery()
        if refusal is not None:
            return _refused(refusal)
        site = snapshot.look(_app())
        action, bind = _order()
        if action not in _ACTIONS or bind not in site.configs:
            return _refused(Refusal(400, "There is no such order, or no such pool."))
        try:
            if site.fleet is None:
                raise OSError(site.blind)
            how = {"by": _visitor()} if action == "pause" else {}
            getattr(site.fleet, action)(bind, **how)
        except OSError as error:
            text = f"The workers cannot be reached: {snapshot.reason(error)}"
            return _refused(Refusal(503, text))
        text = "the monitor was told: %s %s"
        log(INFO, text, action, bind, logger=current_app.logger)
        return _json({"action": action, "bind": bind})


_ACTIONS = "reset", "pause", "resume"


def _order() -> tuple[str, str]:
    """The action, and the pool it is for."""
    try:
        order = request.get_json(silent=True)
    except RecursionError:
        order = None
    if not isinstance(order, dict):
        return "", ""
    return str(order.get("action")), str(order.get("bind"))


def _visitor() -> str:
    return f"the monitor, asked from {plain(request.remote_addr, 100)}"


def _app() -> Flask:
    return current_app._get_current_object()  # type: ignore[attr-defined,no-any-return]


def _settings(config: PoolConfig) -> list[tuple[str, object, bool]]:
    """Name, value, and whether that is another than the default; without secrets."""
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
    """The same, for a page: with nothing in its texts that a browser would obey."""
    if isinstance(data, dict):
        return {plain(key): _plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [*map(_plain, data)]
    return plain(data) if isinstance(data, str) else data


def _refused(refusal: Refusal) -> Response:
    return _challenged(_json({"error": refusal.reason}, refusal.status))


def _challenged(response: Response) -> Response:
    """Name the scheme, as a 401 has to."""
    if response.status_code == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _to_page() -> Response:
    return Response(status=303, headers={"Location": url_for(".page")})


def _add_headers(response: Response) -> Response:
    response.headers.update(HEADERS)
    return response
