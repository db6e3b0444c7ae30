"""Says of each call who makes it, and whether that one may; before its message is parsed where a token tells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from cryptography import x509
from cryptography.x509.oid import NameOID

from detectors.errors import DeniedError, OverloadedError
from server.security.policy import required
from server.security.principals import Principal, Scope, UnauthenticatedError
from server.security.tokens import Tokens

AUTHORIZATION = "authorization"
BEARER = "bearer "
HINT = "Send `authorization: Bearer TOKEN`; an administrator makes one with `prunewatch tokens make`."


class Context(Protocol):
    """What is needed of the context of a gRPC call."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What TLS knows of the other side."""


class Gatekeeper:
    """Knows tokens and certificates.

    Args:
        tokens: Those that count.
        identities: Scopes by a name of a certificate (its common name, or one of its DNS names).
        max_calls: That one principal may have running.
        max_streams: The same of open streams.
    """

    def __init__(
        self,
        tokens: Tokens,
        identities: Mapping[str, Sequence[Scope]] | None = None,
        *,
        max_calls: int = 1000,
        max_streams: int = 10_000,
    ) -> None:
        self._tokens = tokens
        self._identities = dict(identities or {})
        self._limits = {False: max_calls, True: max_streams}
        self._open: dict[tuple[str, bool], int] = {}

    @property
    def asks_certificates(self) -> bool:
        """Whether a certificate can show who calls; then a call without a token is looked at once it is there."""
        return bool(self._identities)

    def by_token(self, metadata: Sequence[tuple[str, str | bytes]] | None) -> Principal | None:
        """Whose token came with a call; None where none did.

        Raises:
            UnauthenticatedError: it is nobody's.
        """
        given = next((value for key, value in metadata or () if key == AUTHORIZATION), None)
        return None if given is None else self.by_header(given)

    def by_header(self, given: str | bytes) -> Principal:
        """Whose token stands in an `authorization` header.

        Raises:
            UnauthenticatedError: it is nobody's.
        """
        text = given.decode("latin-1") if isinstance(given, bytes) else given
        if text[: len(BEARER)].lower() == BEARER:
            found = self._tokens.principal(text[len(BEARER) :].strip())
            if found is not None:
                return found
        raise UnauthenticatedError("the token is unknown or has expired.", hint=HINT)

    def by_certificate(self, context: Context) -> Principal:
        """Who showed a certificate.

        Raises:
            UnauthenticatedError: nobody did, or nobody who is known.
        """
        names = _names(context.auth_context()) if self._identities else ()
        granted: set[Scope] = set()
        for name in names:
            granted.update(self._identities.get(name, ()))
        if not granted:
            raise UnauthenticatedError("it is not said who calls.", hint=HINT)
        return Principal(names[0], frozenset(granted))

    def require(self, principal: Principal, method: str) -> None:
        """Refuses what a principal may not do.

        Raises:
            DeniedError: it lacks the scope.
        """
        scope = required(method)
        if scope is not None and not principal.may(scope):
            raise DeniedError(
                f"{principal.name!r} may not do this: it needs the scope `{scope}`.",
                hint="Use another token, or have one made with that scope.",
            )

    @contextmanager
    def admitted(self, principal: Principal, *, streaming: bool) -> Iterator[None]:
        """While a call of a principal runs.

        Raises:
            OverloadedError: it has too many already.
        """
        key = principal.name, streaming
        running = self._open.get(key, 0)
        if running >= self._limits[streaming]:
            what = "open streams" if streaming else "running calls"
            raise OverloadedError(f"{principal.name!r} has {running} {what} already.", hint="Wait for some to end.")
        self._open[key] = running + 1
        try:
            yield
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]


def _names(told: Mapping[str, Any]) -> tuple[str, ...]:
    """Names in the certificate of the other side, the common name first; TLS has verified it."""
    pem = next(iter(told.get("x509_pem_cert", ())), None)
    if pem is None:
        return ()
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        common = [str(it.value) for it in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        try:
            other = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return tuple(common)
        return (*common, *other.get_values_for_type(x509.DNSName))
    except ValueError:
        return ()
