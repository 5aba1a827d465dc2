"""Authorization of the monitor's requests, sign-in, and protection from CSRF.

The state of a visitor is in one signed cookie, HttpOnly and SameSite=Strict: an id,
which is also the CSRF token, and whether the visitor has signed in.
"""

from __future__ import annotations

import hashlib
import hmac
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

from ..config.addresses import is_loopback
from ..pool.driver.logs import is_exit, kind, log, plain
from ..workers.desired_state import DesiredState
from ..workers.status_dir import StatusDir

COOKIE = "mysqlpool_monitor"
CSRF_HEADER = "X-CSRF-Token"

#: Seconds for which a cookie is valid.
LIFETIME = 12 * 3600

#: Minimum number of characters of a token: attempts to sign in are not limited.
SHORTEST = 16

_FORWARDED = "Forwarded", "X-Forwarded-For", "X-Real-IP"

_NOT_IN_DEVELOPMENT = (
    "is_local lets in requests to Flask's development server only, as proxies on this"
    " host cannot be told from it elsewhere: give create_monitor a token, or another"
    " authorize."
)

_UNGUARDED = (
    "Without authorize or token, the monitor is for debug mode and for requests from"
    " this host to Flask's development server only."
)

Authorize = Callable[[], bool]


class Refused(Exception):
    """The request is refused, with a status code and a reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason


class Visit(NamedTuple):
    """The content of a cookie: a random id, which is the CSRF token, too."""

    id: str
    #: The number that was in valid cookies when this visitor signed in; None before.
    signed_in: int | None = None

    @classmethod
    def begin(cls, signed_in: int | None = None) -> Visit:
        return cls(secrets.token_hex(), signed_in)


def is_local() -> bool:
    """Tell whether the current request comes directly from this host.

    Always False unless Flask's development server, or with ``TESTING`` the test client,
    has received it: other servers may be behind a proxy on this host, and some proxies
    remove the headers that would tell. Also False with such a header, and for any other
    Host header, which defeats DNS rebinding.
    """
    if not _is_in_development() or any(name in request.headers for name in _FORWARDED):
        return False
    try:
        host = urlsplit(f"//{request.host}").hostname or ""
    except ValueError:
        return False
    is_named = host == "localhost" or host.endswith(".localhost")
    return is_loopback(request.remote_addr or "") and (is_named or is_loopback(host))


def _is_in_development() -> bool:
    environ = request.environ
    # Some servers make an environment that is just like that of the test client.
    is_test = current_app.testing and type(environ["wsgi.input"]) is BytesIO
    return "werkzeug.socket" in environ or (
        is_test and not environ.get("SERVER_SOFTWARE")
    )


def _epoch_key() -> str:
    """Return the key of the desired state whose generation is in valid cookies."""
    return f"the monitor of {current_app.name}"


def _new_epoch() -> DesiredState:
    """Return a number that no cookie has, not even if the file was removed."""
    return DesiredState(secrets.randbits(60) + 1)


def _begin_epoch(known: DesiredState) -> DesiredState:
    """Keep the number of a visitor who has signed in meanwhile."""
    return known if known.generation else _new_epoch()


def _status_dir() -> StatusDir | None:
    states = current_app.extensions.get("mysqlpool") or {}
    return next((state.status_dir for state in states.values()), None)


def _ask(authorize: Authorize) -> bool:
    """Return the result of ``authorize``, which may also abort the request."""
    try:
        allowed: object = current_app.ensure_sync(authorize)()
        if type(allowed) is bool:
            return allowed
        # Other values are mistakes: a redirect or an uncalled method is true.
        fault = f"authorize must return True or False, not a {kind(allowed)}."
    except HTTPException:
        raise
    except BaseException as error:
        if is_exit(error):
            raise
        # Without its text, which may contain a secret.
        place = traceback.extract_tb(error.__traceback__)[-1]
        file = os.path.basename(place.filename)
        fault = f"authorize raised {kind(error)} ({file}, line {place.lineno})."
    log(ERROR, "the monitor: %s", fault, logger=current_app.logger)
    raise Refused(403, fault)


class Gate:
    """Authorizes requests, signs visitors in and out, and detects forged requests."""

    def __init__(
        self, authorize: Authorize | None, token: str | None, control: bool
    ) -> None:
        if authorize is not None and token is not None:
            raise ValueError("create_monitor takes authorize or token, not both")
        if authorize is not None and not callable(authorize):
            raise TypeError("authorize must be a callable that returns True or False")
        if not isinstance(token, str | None):
            raise TypeError(f"token must be a str, not a {kind(token)}")
        if token is not None and len(token) < SHORTEST:
            raise ValueError(
                f"token must have {SHORTEST} characters or more; make one with"
                " python -c 'import secrets; print(secrets.token_urlsafe())'"
            )
        self._authorize = authorize
        self._token = token
        self.needs_cookie = control or token is not None

    def check(self, app: Flask) -> None:
        """Raise :exc:`RuntimeError` for an app in which the monitor is not secure."""
        if self._authorize is None and self._token is None and not app.debug:
            raise RuntimeError(
                "create_monitor() needs authorize=... or token=..., unless the app is"
                " in debug mode"
            )
        if self.needs_cookie and not app.secret_key:
            raise RuntimeError(
                "the monitor signs a cookie: set SECRET_KEY before it is registered"
            )

    def check_reader(self) -> None:
        """Raise :exc:`Refused` for a request that may not read."""
        if self._token is not None:
            if not self._has_token() and not self.has_signed_in():
                raise Refused(401, "Sign in with the monitor's token.")
        elif self._authorize is None:
            if not (current_app.debug and is_local()):
                raise Refused(403, _UNGUARDED)
        elif not _ask(self._authorize):
            if self._authorize is is_local and not _is_in_development():
                raise Refused(403, _NOT_IN_DEVELOPMENT)
            raise Refused(403, "You may not see the monitor.")

    def _has_token(self) -> bool:
        # Not request.authorization, which takes a token with "=" for something else.
        scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
        # WSGI passes the bytes of a header on as Latin-1.
        return scheme.lower() == "bearer" and self._is_token(sent.encode("latin-1"))

    def is_token(self, text: str | None) -> bool:
        return self._is_token((text or "").encode("utf-8", "replace"))

    def _is_token(self, sent: bytes) -> bool:
        return hmac.compare_digest(sent, (self._token or "").encode())

    def has_signed_in(self) -> bool:
        visit = self.visit()
        if visit is None or visit.signed_in is None:
            return False
        try:
            return visit.signed_in == self._epoch()
        except ValueError:  # damaged
            return False

    def _epoch(self) -> int | None:
        """Return the number that is in valid cookies of all workers.

        None before the first visitor signs in, and 0 while there is no directory in
        which to keep a number. Raises :exc:`ValueError` if the file is damaged.
        """
        status_dir = _status_dir()
        if status_dir is not None:
            with suppress(OSError):
                return status_dir.desired(_epoch_key()).generation or None
        return 0

    def sign_in(self) -> int:
        """Return the number for a new cookie; raise :exc:`Refused` if it is damaged."""
        status_dir = _status_dir()
        try:
            epoch = self._epoch()
        except ValueError as error:
            # Not replaced, which would end a pause that the file may have held.
            text = (
                "Signing in is not possible: STATUS_DIR has a damaged file; run flask"
            )
            raise Refused(503, f"{text} mysqlpool check.") from error
        if not epoch and status_dir is not None:
            with suppress(OSError):
                return status_dir.update_desired(_epoch_key(), _begin_epoch).generation
        return epoch or 0

    def sign_out(self) -> None:
        """Invalidate all copies of the cookie; :exc:`OSError` if that fails."""
        status_dir = _status_dir()
        if status_dir is None:
            raise OSError("STATUS_DIR is False")
        status_dir.update_desired(_epoch_key(), lambda _: _new_epoch())

    # The cookie

    def visit(self) -> Visit | None:
        try:
            id, signed_in = self._signer().loads(
                request.cookies.get(COOKIE, ""), max_age=LIFETIME
            )
        except (BadSignature, TypeError, ValueError):  # perhaps another version's
            return None
        if not isinstance(id, str) or not id:
            return None
        # Another version may have signed False, which equals 0.
        return Visit(id, signed_in if type(signed_in) is int else None)

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
        """Return a signer whose key changes with the app's secret key and the token."""
        return URLSafeTimedSerializer(
            current_app.secret_key or "",
            salt=f"flask_mysqlpool.monitor {self._token or ''}",
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )

    # Forged requests

    def check_writer(self) -> None:
        """Raise :exc:`Refused` for a request that the page has not sent."""
        visit = self.visit()
        sent = request.headers.get(CSRF_HEADER, "").encode()
        if visit is None or not hmac.compare_digest(sent, visit.id.encode()):
            raise Refused(403, "This page is too old: reload it, and try again.")
        self.check_origin()

    def check_origin(self) -> None:
        """Raise :exc:`Refused` for what may be a cross-site request."""
        site = request.headers.get("Sec-Fetch-Site")
        # Our pages send no referrer, and their forms therefore no origin.
        origin = request.headers.get("Origin", "null")
        if site not in (None, "same-origin"):
            raise Refused(403, "This was sent by the page of another site.")
        if origin != "null" and origin.partition("://")[2] != request.host:
            text = (
                f"This was sent by a page of {plain(origin, 100)}, and this site is"
                f" {request.host}. If that is one site, a proxy in between"
                " rewrites Host: have it pass Host on, or X-Forwarded-Host, with"
                " werkzeug's ProxyFix."
            )
            raise Refused(403, text)
        if site is None and origin == "null":
            raise Refused(403, "This does not say which page has sent it.")
