"""Who may see the monitor, who may steer by it, and which requests are forged.

All that is remembered of a visitor is in one cookie, which is signed, closed to scripts
and never sent along by other sites. It holds an id, to which the token of the control
buttons is bound, and whether its owner has signed in.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple
from urllib.parse import urlsplit

from flask import Flask, Response, current_app, request, url_for
from itsdangerous import BadSignature, URLSafeTimedSerializer

COOKIE = "mysqlpool_monitor"
CSRF_HEADER = "X-CSRF-Token"

#: Seconds that a cookie is good for.
LIFETIME = 12 * 3600

#: Characters that a token has at the least: nobody is kept from guessing.
SHORTEST = 16

_FORWARDED = "Forwarded", "X-Forwarded-For", "X-Real-IP"

_NOT_IN_DEVELOPMENT = (
    "is_local lets in requests to Flask's development server only, as proxies on this"
    " host cannot be told from it elsewhere: give create_monitor a token, or another"
    " authorize."
)

Authorize = Callable[[], bool]


class Refusal(NamedTuple):
    """The status that a request is answered with, and why."""

    status: int
    reason: str


class Visit(NamedTuple):
    """What a cookie says."""

    id: str
    signed_in: bool


def is_local() -> bool:
    """Whether the current request comes straight from this host.

    False for whatever Flask's development server, or a test, has not received: other
    servers stand behind proxies, whose requests all come from this host, and some
    remove the headers that would show it. False with such a header, and for any other
    name of the host, which defeats DNS rebinding.
    """
    if not _is_in_development() or any(name in request.headers for name in _FORWARDED):
        return False
    host = urlsplit(f"//{request.host}").hostname or ""
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


class Gate:
    """Decides about the current request."""

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
        """Refuse to be part of an app that it would not be safe in."""
        if self._authorize is None and self._token is None and not app.debug:
            raise RuntimeError(
                "create_monitor() needs to be told who may see it, unless the app is"
                " in debug mode: create_monitor(authorize=...), or token=..."
            )
        if needs_key and not app.secret_key:
            raise RuntimeError(
                "the monitor signs a cookie: set SECRET_KEY before it is registered"
            )

    def refusal(self) -> Refusal | None:
        """Why this request may see nothing; None if it may."""
        if self._token is not None:
            if self._has_token() or self._has_signed_in():
                return None
            return Refusal(401, "Sign in with the token that the monitor was given.")
        if self._authorize is not None:
            if self._is_authorized(self._authorize):
                return None
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

    def _is_authorized(self, authorize: Authorize) -> bool:
        allowed: object = current_app.ensure_sync(authorize)()
        if not isinstance(allowed, bool):
            # A redirect to a login page, or a method that was not called, is true.
            kind = type(allowed).__name__
            raise TypeError(f"authorize must return True or False, not a {kind}")
        return allowed

    def _has_token(self) -> bool:
        sent = request.authorization
        is_bearer = sent is not None and sent.type == "bearer"
        return is_bearer and self.is_token((sent and sent.token) or "")

    def is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), (self._token or "").encode())

    def _has_signed_in(self) -> bool:
        visit = self.visit()
        return visit is not None and visit.signed_in

    # The cookie

    def visit(self) -> Visit | None:
        try:
            id, signed_in = self._signer().loads(
                request.cookies.get(COOKIE, ""), max_age=LIFETIME
            )
        except BadSignature:
            return None
        return Visit(id, signed_in)

    def begin_visit(self, signed_in: bool = False) -> Visit:
        return Visit(secrets.token_urlsafe(), signed_in)

    def remember(self, visit: Visit, response: Response) -> None:
        secure = request.is_secure or current_app.config["SESSION_COOKIE_SECURE"]
        response.set_cookie(
            COOKIE,
            str(self._signer().dumps(visit)),
            max_age=LIFETIME,
            # With a slash at the end, the page without one would not be sent it.
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
        """Another one as soon as the secret key or the token is."""
        key = current_app.secret_key or ""
        key = key.encode() if isinstance(key, str) else key
        about = f"flask_mysqlpool.monitor {purpose} {self._token or ''}"
        return hmac.digest(key, about.encode(), "sha256")

    # Forged requests

    def csrf_token(self, visit: Visit) -> str:
        return hmac.digest(self._key("csrf"), visit.id.encode(), "sha256").hex()

    def forgery(self) -> Refusal | None:
        """Why this request may change nothing; None if it may."""
        visit = self.visit()
        sent = request.headers.get(CSRF_HEADER, "")
        if visit is None or not hmac.compare_digest(
            sent.encode(), self.csrf_token(visit).encode()
        ):
            return Refusal(403, "This page is too old: reload it, and try again.")
        return self.foreign()

    def foreign(self) -> Refusal | None:
        """Why this request is, or may be, another site's; None if it is ours."""
        site = request.headers.get("Sec-Fetch-Site")
        origin = request.headers.get("Origin", "null")
        # A form of a page without referrer has no origin either.
        is_ours = urlsplit(origin).netloc == request.host or origin == "null"
        if site not in (None, "same-origin") or not is_ours:
            return Refusal(403, "This was sent by the page of another site.")
        if site is None and origin == "null":
            return Refusal(403, "This does not say which page has sent it.")
        return None
