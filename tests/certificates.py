"""Certificates of an authority of the tests' own, made with the ``openssl`` command."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from flask_mysqlpool.testing import LocalServer

OPENSSL = """
[req]
distinguished_name = name
prompt = no
x509_extensions = authority
[name]
CN = made for a test
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[server]
subjectAltName = IP:127.0.0.1
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[client]
extendedKeyUsage = clientAuth
"""


class Authority:
    """Makes certificates; ``ca`` is what to trust it by.

    Without the ``openssl`` command, the test is skipped.
    """

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("certificates need the openssl command")
        folder.mkdir()
        self._folder = folder
        self._config = folder / "openssl.cnf"
        self._config.write_text(OPENSSL)
        self.ca = folder / "ca.pem"
        self._request("ca", "-x509", "-days", "2", "-out", str(self.ca))

    def issue(self, kind: str) -> tuple[Path, Path]:
        """A certificate and its key, for a ``server`` at 127.0.0.1 or a ``client``."""
        request, certificate = self._folder / f"{kind}.csr", self._folder / f"{kind}"
        key = self._request(kind, "-new", "-out", str(request))
        authority = ["-CA", str(self.ca), "-CAkey", str(self._folder / "ca-key.pem")]
        extensions = ["-extfile", str(self._config), "-extensions", kind]
        files = ["-in", str(request), "-out", str(certificate), "-CAcreateserial"]
        openssl("x509", "-req", "-days", "2", *files, *authority, *extensions)
        return certificate, key

    def context(self) -> ssl.SSLContext:
        """The context of a server at 127.0.0.1."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue("server"))
        return context

    def certify(self, server: LocalServer) -> None:
        """Restart the server with a certificate."""
        certificate, key = self.issue("server")
        # Beside the data, since a server in a folder of its own sees little else.
        data = Path(server.folder, "data")
        for source, name in (certificate, "s.pem"), (key, "s.key"), (self.ca, "c"):
            shutil.copy(source, data / name)
        server.kill()
        own = "--ssl-cert=s.pem", "--ssl-key=s.key", "--ssl-ca=c"
        server.restart([*server.options, *own])

    def _request(self, name: str, *arguments: str) -> Path:
        key = self._folder / f"{name}-key.pem"
        # Of RSA, one would take half a second to find.
        kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        keys = [*kind, "-nodes", "-keyout", str(key)]
        openssl("req", "-config", str(self._config), *keys, *arguments)
        return key


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
