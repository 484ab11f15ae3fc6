"""Who calls: the proxy's own key, and the identity under which the upstream is asked."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from autobatcher.serve.replies import Refused, error_reply

if TYPE_CHECKING:
    from starlette.datastructures import Headers

    from autobatcher.client import Batching
    from autobatcher.serve.config import ServeConfig

SERVE_KEY = "x-serve-key"
"""The header of the proxy's own key; with a key of its own for the upstream it may come as `Authorization`, too."""

ORGANIZATION, PROJECT = "openai-organization", "openai-project"

MOST_CLIENTS = 256
"""Identities whose clients are kept. One that is not is made again; what it waits for does not depend on it."""


class Identity(NamedTuple):
    """Under whose name the upstream is asked.

    Attributes:
        key: for the upstream.
        organization, project: as the SDK's headers name them.
        digest: names the same without telling the key.
    """

    key: str
    organization: str | None
    project: str | None
    digest: str

    def __repr__(self) -> str:
        """Without the key."""
        return f"Identity({self.digest!r})"

    @classmethod
    def of(cls, key: str, organization: str | None = None, project: str | None = None) -> Identity:
        """With its digest."""
        text = "\0".join((key, organization or "", project or ""))
        return cls(key, organization, project, hashlib.sha256(text.encode()).hexdigest()[:32])


class Door:
    """Lets callers in.

    Args:
        config: whose keys count.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._serve_key = config.serve_key
        self._has_key = config.api_key is not None

    def check(self, headers: Headers, *, reader: bool = False) -> None:
        """Refuse who has not the proxy's key; without one, a web page that was not meant to call.

        A `reader` asks for nothing of the upstream: so its header Authorization is for the proxy.

        Raises:
            Refused: with 401 or 403.
        """
        if self._serve_key is None:
            _refuse_pages(headers)
            return
        given = [headers.get(SERVE_KEY)]
        if self._has_key or reader:
            given.append(bearer(headers))
        expected = self._serve_key.encode()
        if not any(
            hmac.compare_digest(key.encode("utf-8", "replace"), expected) for key in given if key is not None
        ):
            where = "Authorization: Bearer KEY, or X-Serve-Key: KEY" if self._has_key else "X-Serve-Key: KEY"
            raise Refused(
                error_reply(
                    401,
                    f"This proxy wants its key: {where}.",
                    code="invalid_api_key",
                    headers={"www-authenticate": "Bearer"},
                ),
                "no key",
            )


def bearer(headers: Headers) -> str | None:
    """The key of the header Authorization."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None


def passed_on(headers: Headers) -> Identity:
    """The caller's own identity.

    Raises:
        Refused: it has none (401).
    """
    key = bearer(headers)
    if key is None or not (key.isascii() and key.isprintable()):
        message = "This proxy passes your key on, and there is none: send it in the header Authorization: Bearer KEY."
        raise Refused(error_reply(401, message, code="invalid_api_key"), "no key")
    return Identity.of(key, headers.get(ORGANIZATION), headers.get(PROJECT))


_NAMES = frozenset({"localhost", "host.docker.internal"})
"""Names that no web page can have; they, and addresses, are how a proxy on this machine is called."""


def _refuse_pages(headers: Headers) -> None:
    """Any page in a browser on this machine could call a proxy without a key; it says so, or its name does."""
    origin = headers.get("origin")
    for url in (f"//{headers.get('host', '')}", *(() if origin is None else (origin,))):
        if not _is_of_here(url):
            message = "Without --serve-key only programs on this machine may call, and no web pages."
            raise Refused(error_reply(403, message, code="forbidden"), "web page")


def _is_of_here(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        if host in _NAMES:
            return True
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Clients:
    """The clients, one for each identity: calls of different ones share nothing.

    Args:
        base: what they are copies of.
    """

    def __init__(self, base: Batching) -> None:
        self._base = base
        self._known: OrderedDict[str, Batching] = OrderedDict()

    @property
    def window_seconds(self) -> float:
        """How long a window stays open."""
        return self._base._options.batch_window_seconds  # noqa: SLF001 -- this package's own client

    def of(self, identity: Identity) -> Batching:
        """The client of an identity."""
        client = self._known.get(identity.digest)
        if client is None:
            client = self._base.copy(api_key=identity.key, _extra_kwargs={"_scope": identity.digest})
            # The SDK takes None for: as the parent has it, or the environment.
            client.organization, client.project = identity.organization, identity.project
            self._known[identity.digest] = client
            if len(self._known) > MOST_CLIENTS:
                self._known.popitem(last=False)
        self._known.move_to_end(identity.digest)
        return client
