"""Authorization of the monitor's requests, sign-in, and protection from CSRF.

The state of a visitor is in one signed cookie, HttpOnly and SameSite=Strict: an id, to
which the CSRF token is bound, and whether the visitor has signed in.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
import traceback
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from logging import ERROR
from typing import NamedTuple
from urllib.parse import urlsplit

from flask import Flask, Response, current_app, request, url_for
from itsdangerous import BadSignature, URLSafeTimedSerializer
from werkzeug.exceptions import HTTPException

from ..pool.driver.logs import is_exit, kind, log, plain
from ..workers.desired_state import DesiredState
from ..workers.status_dir import StatusDir

COOKIE = "mysqlpool_monitor"
CSRF_HEADER = "X-CSRF-Token"

#: Seconds for which a cookie is valid.
LIFETIME = 12 * 3600

#: Minimum number of characters of a token: attempts to sign in are not limited.
SHORTEST = 16

#: The key of the desired state whose generation counts how often visitors signed out.
_SIGNED_OUT = "the monitor"

_FORWARDED = "Forwarded", "X-Forwarded-For", "X-Real-IP"

_NOT_IN_DEVELOPMENT = (
    "is_local lets in requests to Flask's development server only, as proxies on this"
    " host cannot be told from it elsewhere: give create_monitor a token, or another"
    " authorize."
)

Authorize = Callable[[], bool]


class Refusal(NamedTuple):
    """The status code of an answer, and the reason."""

    status: int
    reason: str


class Visit(NamedTuple):
    """The content of a cookie."""

    id: str
    #: The count of sign-outs when this visitor signed in; None before.
    signed_in: int | None


def is_local() -> bool:
    """Tell whether the current request comes directly from this host.

    Always False unless Flask's development server, or a test, has received it: other
    servers may be behind a proxy on this host, and some proxies remove the headers that
    would tell. Also False with such a header, and for any other Host header, which
    defeats DNS rebinding.
    """
    if not _is_in_development() or any(name in request.headers for name in _FORWARDED):
        return False
    try:
        host = urlsplit(f"//{request.host}").hostname or ""
    except ValueError:
        return False
    is_named = host == "localhost" or host.endswith(".localhost")
    return _is_loopback(request.remote_addr) and (is_named or _is_loopback(host))


def _is_in_development() -> bool:
    environ = request.environ
    is_test = type(environ["wsgi.input"]) is BytesIO and not environ.get(
        "SERVER_SOFTWARE"
    )
    return is_test or "werkzeug.socket" in environ


def _is_loopback(address: str | None) -> bool:
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
        return found.ipv4_mapped.is_loopback
    return found.is_loopback


def _status_dir() -> StatusDir | None:
    states = current_app.extensions.get("mysqlpool") or {}
    return next((state.status_dir for state in states.values()), None)


def _host_in(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _call(authorize: Authorize) -> tuple[bool, str]:
    """Return the result of ``authorize``, and its fault; it may abort the request."""
    try:
        allowed: object = current_app.ensure_sync(authorize)()
    except HTTPException:
        raise
    except BaseException as error:
        if is_exit(error):
            raise
        # Without its text, which may contain a secret.
        return False, f"authorize raised {kind(error)}{_place(error)}."
    if type(allowed) is not bool:
        # Other values are mistakes: a redirect or an uncalled method is true.
        name = kind(allowed)
        return False, f"authorize must return True or False, not a {name}."
    return allowed, ""


def _place(error: BaseException) -> str:
    """Return file and line of an error."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({os.path.basename(place.filename)}, line {place.lineno})"


class Gate:
    """Authorizes requests, signs visitors in and out, and detects forged requests."""

    def __init__(self, authorize: Authorize | None, token: str | None) -> None:
        if authorize is not None and token is not None:
            raise ValueError("create_monitor takes authorize or token, not both")
        if authorize is not None and not callable(authorize):
            raise TypeError("authorize must be a callable that returns True or False")
        if token is not None and len(token) < SHORTEST:
            raise ValueError(
                f"token must have {SHORTEST} characters or more; make one with"
                " python -c 'import secrets; print(secrets.token_urlsafe())'"
            )
        self._authorize = authorize
        self._token = token

    @property
    def takes_token(self) -> bool:
        return self._token is not None

    def check(self, app: Flask, needs_key: bool) -> None:
        """Raise :exc:`RuntimeError` for an app in which the monitor is not secure."""
        if self._authorize is None and self._token is None and not app.debug:
            raise RuntimeError(
                "create_monitor() needs authorize=... or token=..., unless the app is"
                " in debug mode"
            )
        if needs_key and not app.secret_key:
            raise RuntimeError(
                "the monitor signs a cookie: set SECRET_KEY before it is registered"
            )

    def refusal(self) -> Refusal | None:
        """Return why this request may not read; None if it may."""
        if self._token is not None:
            if self._has_token() or self.has_signed_in():
                return None
            return Refusal(401, "Sign in with the monitor's token.")
        if self._authorize is not None:
            allowed, fault = _call(self._authorize)
            if allowed:
                return None
            if fault:
                log(ERROR, "the monitor: %s", fault, logger=current_app.logger)
                return Refusal(403, fault)
            if self._authorize is is_local and not _is_in_development():
                return Refusal(403, _NOT_IN_DEVELOPMENT)
            return Refusal(403, "You may not see the monitor.")
        if current_app.debug and is_local():
            return None
        return Refusal(
            403,
            "Without authorize or token, the monitor is for debug mode and for"
            " requests from this host to Flask's development server only.",
        )

    def _has_token(self) -> bool:
        sent = request.authorization
        is_bearer = sent is not None and sent.type == "bearer"
        return is_bearer and self.is_token((sent and sent.token) or "")

    def is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), (self._token or "").encode())

    def has_signed_in(self) -> bool:
        visit = self.visit()
        return visit is not None and visit.signed_in == self.signed_out()

    def signed_out(self) -> int:
        """Return how often visitors of this app have signed out, in all workers."""
        status_dir = _status_dir()
        with suppress(OSError, ValueError):
            return status_dir.desired(_SIGNED_OUT).generation if status_dir else 0
        return 0

    def sign_out(self) -> Refusal | None:
        """Invalidate all copies of the cookie; return why if that fails."""
        status_dir = _status_dir()
        try:
            if status_dir is None:
                raise OSError("STATUS_DIR is False")
            status_dir.update_desired(
                _SIGNED_OUT, lambda o: DesiredState(o.generation + 1)
            )
        except OSError as error:
            text = (
                "You are signed out here; copies of the cookie stay valid until expiry"
            )
            return Refusal(503, f"{text}: {error.strerror or error}.")
        return None

    # The cookie

    def visit(self) -> Visit | None:
        try:
            id, signed_in = self._signer().loads(
                request.cookies.get(COOKIE, ""), max_age=LIFETIME
            )
        except (BadSignature, TypeError, ValueError):  # perhaps another version's
            return None
        if not isinstance(id, str):
            return None
        # Another version may have signed False, which equals 0.
        return Visit(id, signed_in if type(signed_in) is int else None)

    def begin_visit(self, signed_in: int | None = None) -> Visit:
        return Visit(secrets.token_urlsafe(), signed_in)

    def remember(self, visit: Visit, response: Response) -> None:
        secure = request.is_secure or current_app.config["SESSION_COOKIE_SECURE"]
        response.set_cookie(
            COOKIE,
            str(self._signer().dumps(visit)),
            max_age=LIFETIME,
            # A path with a slash would not cover the page's URL without one.
            path=url_for(".page").rstrip("/") or "/",
            secure=secure,
            httponly=True,
            samesite="Strict",
        )

    def _signer(self) -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer(
            self._key("cookie"), signer_kwargs={"digest_method": hashlib.sha256}
        )

    def _key(self, purpose: str) -> bytes:
        """Derive a key, which changes with the app's secret key and with the token."""
        key = current_app.secret_key or ""
        key = key.encode() if isinstance(key, str) else key
        about = f"flask_mysqlpool.monitor {purpose} {self._token or ''}"
        return hmac.digest(key, about.encode(), "sha256")

    # Forged requests

    def csrf_token(self, visit: Visit) -> str:
        return hmac.digest(self._key("csrf"), visit.id.encode(), "sha256").hex()

    def forgery(self) -> Refusal | None:
        """Return why this request may not write; None if it may."""
        visit = self.visit()
        sent = request.headers.get(CSRF_HEADER, "")
        if visit is None or not hmac.compare_digest(
            sent.encode(), self.csrf_token(visit).encode()
        ):
            return Refusal(403, "This page is too old: reload it, and try again.")
        return self.foreign()

    def foreign(self) -> Refusal | None:
        """Return why this may be a cross-site request; None if it is not."""
        site = request.headers.get("Sec-Fetch-Site")
        origin = request.headers.get("Origin", "null")
        # Our pages send no referrer, and their forms therefore no origin.
        is_ours = origin == "null" or _host_in(origin) == request.host
        if site not in (None, "same-origin"):
            return Refusal(403, "This was sent by the page of another site.")
        if not is_ours:
            text = (
                f"This was sent by a page of {plain(origin, 100)}, and this site is"
                f" {request.host}. If that is one site, a proxy in between"
                " rewrites Host: have it pass Host on, or X-Forwarded-Host, with"
                " werkzeug's ProxyFix."
            )
            return Refusal(403, text)
        if site is None and origin == "null":
            return Refusal(403, "This does not say which page has sent it.")
        return None
