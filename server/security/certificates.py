"""The certificate of a server: from files that may be replaced while it runs, used from the next handshake on.

A pair that does not fit together, as in the middle of a replacement, is not used: the one before goes on.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc
from cryptography import x509
from cryptography.x509.oid import NameOID

from detectors.errors import InvalidInputError

LOOK_SECONDS = 1.0
logger = logging.getLogger("prunewatch.security.certificates")


@dataclass(frozen=True)
class TlsFiles:
    """Where PEM files lie.

    Attributes:
        certificate: Of the server, with those between it and its authority.
        key: Its private key.
        client_ca: Authorities whose certificates callers must show; None: callers show none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True)
class _Pair:
    certificate: bytes
    key: bytes
    client_ca: bytes | None
    expires: float
    context: ssl.SSLContext


class Certificates:
    """The present certificate.

    Args:
        files: Where it lies.
        monotonic: Seconds that only ever pass, for how often the files are looked at.

    Raises:
        InvalidInputError: there is none that can be used.
    """

    def __init__(self, files: TlsFiles, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._files = files
        self._monotonic = monotonic
        self._looked = monotonic()
        self._seen = self._stamps()
        self._pair = _read(files)
        self._used = self._pair
        self._following = threading.Lock()
        self.context = _context(files)
        """For the HTTP address: each handshake is done with the pair that is present then."""
        self.context.sni_callback = self._choose

    @property
    def expires(self) -> float:
        """When the present one ends, in seconds since the epoch."""
        return self._pair.expires

    def follow(self) -> None:
        """Takes up a new pair, if there is one that can be used; looks at most once a second. Any thread may ask."""
        with self._following:
            self._follow()

    def _follow(self) -> None:
        now = self._monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        stamps = self._stamps()
        if stamps == self._seen:
            return
        try:
            pair = _read(self._files)
        except InvalidInputError:
            logger.warning("the new certificate can not be used; the one before goes on", exc_info=True)
            return
        self._seen, self._pair = stamps, pair
        logger.info("a new certificate is used", extra={"expires": pair.expires})

    def credentials(self) -> grpc.ServerCredentials:
        """For a gRPC server."""

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            self.follow()
            if self._used is self._pair:
                return None
            self._used = self._pair
            return _configuration(self._pair)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._pair),
            cast("Callable[[], grpc.ServerCertificateConfiguration]", fetch),  # None says: as before
            require_client_authentication=self._files.client_ca is not None,
        )

    def _choose(self, handshake: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
        """Is called for each handshake, with or without a name: a context in use is never changed."""
        self.follow()
        handshake.context = self._pair.context

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        paths = (self._files.certificate, self._files.key, self._files.client_ca)
        return [None if path is None else _stamp(path) for path in paths]


def name_in(pem: bytes) -> str:
    """A name that a certificate is for: the first DNS name, else an address, else its common name; empty: it has none.

    Raises:
        ValueError: it is no PEM certificate.
    """
    certificate = x509.load_pem_x509_certificate(pem)
    names: list[str] = []
    try:
        other = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names += other.get_values_for_type(x509.DNSName)
        names += [str(it) for it in other.get_values_for_type(x509.IPAddress)]
    except x509.ExtensionNotFound:
        pass
    names += [str(it.value) for it in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return next((name.replace("*", "any", 1) for name in names), "")


def _read(files: TlsFiles) -> _Pair:
    """The pair in the files.

    Raises:
        InvalidInputError: one is missing or no PEM file, or they do not belong together.
    """
    certificate, key = _bytes(files.certificate), _bytes(files.key)
    client_ca = None if files.client_ca is None else _bytes(files.client_ca)
    try:
        context = _context(files)
        expires = x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp()
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            "is no certificate that belongs to the key.", field=str(files.certificate), hint=f"The key: {files.key}."
        ) from error
    if client_ca is not None:
        try:
            x509.load_pem_x509_certificates(client_ca)
        except ValueError as error:
            raise InvalidInputError("holds no certificate.", field=str(files.client_ca)) from error
    return _Pair(certificate, key, client_ca, expires, context)


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(files.certificate, files.key)
    return context


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInputError("can not be read.", field=str(path)) from error


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _configuration(pair: _Pair) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)], root_certificates=pair.client_ca)
