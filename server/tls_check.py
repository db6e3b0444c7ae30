"""Looks at the certificate of the settings: whether it fits, how long it lasts, who can read its key."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509

from detectors.errors import PrunewatchError
from server.config import Tls
from server.findings import Finding
from server.security.certificates import Certificates, TlsFiles, name_in

SOON_SECONDS = 14 * 86400.0
"""As the alert PrunewatchCertificateEnding has it."""
PART = "tls"


def examine_tls(tls: Tls, now: float) -> Iterator[Finding]:
    """Looks at the files of `tls`.

    Args:
        tls: Where they lie.
        now: Seconds since the epoch.
    """
    try:
        Certificates(TlsFiles(tls.certificate, tls.key, tls.client_ca))
    except PrunewatchError as error:
        told = f"{error.field} {error.problem}".rstrip(".")
        todo = "`tls` names PEM files: a certificate, and the private key that belongs to it."
        yield Finding(PART, "problem", told, error.hint or todo)
        return
    yield _dates(tls.certificate, now)
    if tls.client_ca is not None:
        yield from _authorities(tls.client_ca, now)
    mode = stat.S_IMODE(tls.key.stat().st_mode)
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        yield Finding(
            PART, "problem", f"every user can read the key {tls.key} (mode {mode:03o})", f"chmod 600 {tls.key}"
        )
    elif mode & (stat.S_IRGRP | stat.S_IWGRP):
        told = f"the group of the key {tls.key} can read it (mode {mode:03o})"
        yield Finding(PART, "note", told, f"If nobody there needs it: chmod 600 {tls.key}.")


def _dates(path: Path, now: float) -> Finding:
    pem = path.read_bytes()
    certificate = x509.load_pem_x509_certificate(pem)
    begins, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    what = f"the certificate for {name_in(pem) or 'no name'}"
    if ends <= now:
        return Finding(PART, "problem", f"{what} ended on {_day(ends)}", "Renew it: callers refuse to connect.")
    if begins > now:
        todo = "Is the clock right? Until then callers refuse to connect."
        return Finding(PART, "problem", f"{what} begins on {_day(begins)} only", todo)
    if ends - now < SOON_SECONDS:
        todo = "Renew it; a running server takes up the new files by itself."
        return Finding(PART, "note", f"{what} ends on {_day(ends)}", todo)
    return Finding(PART, "ok", f"{what} fits its key and lasts until {_day(ends)}")


def _authorities(path: Path, now: float) -> Iterator[Finding]:
    ends = max(it.not_valid_after_utc.timestamp() for it in x509.load_pem_x509_certificates(path.read_bytes()))
    if ends <= now:
        told = f"the authorities of callers in {path} ended on {_day(ends)}"
        yield Finding(PART, "problem", told, "Put newer ones there: no certificate of a caller counts.")


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
