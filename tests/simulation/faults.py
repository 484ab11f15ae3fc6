"""How HTTP calls fail: each kind as one value, drawn for one call.

A fault says whether the server does what it is asked for nonetheless, and what the client sees of it. Which of them
a call can have depends on its kind.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from autobatcher._http import httpx
from tests.simulation.ledger import Seen

FAR = "Fri, 31 Dec 2100 23:59:59 GMT"
LONG_AGO = "Thu, 01 Jan 1970 00:00:01 GMT"

RETRY_AFTER: tuple[tuple[str, float], ...] = (
    ("1", 1.0),
    ("30", 30.0),
    ("600", 600.0),
    ("0", 0.0),
    ("-5", 0.0),
    ("inf", 0.0),
    ("nan", 0.0),
    ("1e9", 0.0),
    ("9" * 400, 0.0),
    (FAR, 0.0),
    (LONG_AGO, 0.0),
    ("soon", 0.0),
    ("", 0.0),
)
"""What servers send, and for how many seconds that is to be obeyed."""

HTML = b"<html><body><h1>Please sign in</h1></body></html>"


@dataclass(frozen=True)
class Fault:
    """One failure.

    Attributes:
        seen: what the client is to take it for.
        done: whether the server does what it was asked for.
        late: seconds after which the server does it, when the client has long had its error.
        wait: seconds until the client sees anything; infinite: its own timeout.
        error: raised in place of an answer.
        headers, body: of the answer, if it is one.
        change: how the server's true answer is altered, by name; or how a download ends.
    """

    seen: Seen
    done: bool = False
    late: float | None = None
    wait: float = 0.0
    error: type[httpx.TransportError] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    change: str = ""


_LOST = (httpx.ReadError, httpx.RemoteProtocolError, httpx.ReadTimeout)

_ENDLESS = float("inf")

_BREAKS: dict[str, tuple[bool, float, tuple[type[httpx.TransportError], ...]]] = {
    "connection refused": (False, 0.0, (httpx.ConnectError, httpx.ConnectTimeout)),
    "connection lost": (False, 0.0, (httpx.WriteError, httpx.ReadError)),
    "answer lost": (True, 0.0, _LOST),
    "timeout": (False, _ENDLESS, (httpx.ReadTimeout,)),
    "timeout, but done": (True, _ENDLESS, (httpx.ReadTimeout,)),
}
"""Failures without an answer: whether the server does it, how long the client waits, and what it then has."""

_MENU: dict[str, float] = {
    "connection refused": 6,
    "connection lost": 3,
    "answer lost": 6,
    "timeout": 1,
    "timeout, but done": 1,
    "status": 10,
    "status, but done": 4,
}
_ODD = {"odd answer": 2.0}
_MORE: dict[str, dict[str, float]] = {
    "upload": _ODD,
    "create": {**_ODD, "answer lost": 8, "done late": 4},
    "list": _ODD,
    "poll": {**_ODD, "unknown status": 6, "odd file ids": 4, "another batch": 2, "says 404": 2},
    "content": {"breaks off": 10, "cut short": 5, "html page": 1, "says 404": 1},
    "cancel": {},
    "realtime": {**_ODD, "slow": 8, "refused": 3},
}
_REFUSED = {"refused": 2.0}


def draw_fault(kind: str, rng: random.Random, *, refusals: bool, harsh: bool) -> Fault:
    """A fault for a call; `harsh`: in an outage, when nothing but passing failures is to be seen."""
    menu = dict(_MENU) if harsh else {**_MENU, **_MORE[kind], **(_REFUSED if refusals else {})}
    name = rng.choices(list(menu), list(menu.values()))[0]
    full = f"{kind}: {name}"
    if name in _BREAKS:
        done, wait, errors = _BREAKS[name]
        return Fault(Seen(full, "passing"), done=done, wait=wait, error=rng.choice(errors))
    match name:
        case "done late":
            return Fault(Seen(full, "passing"), late=rng.uniform(5, 45), error=rng.choice(_LOST))
        case "status":
            return _status(kind, rng.choice((408, 409, 429, 500, 502, 503, 504)), rng, done=False)
        case "status, but done":
            return _status(kind, rng.choice((408, 500, 502, 504)), rng, done=True)
        case "slow":
            return Fault(Seen(full, "data"), done=True, wait=rng.uniform(1, 550))
        case "refused":
            status = rng.choice((400, 401, 403, 413))
            body = b'{"error": {"message": "You shall not.", "type": "refused", "param": null, "code": "no"}}'
            return Fault(Seen(f"{kind}: refused ({status})", "refused", status), headers=_JSON, body=body)
        case "says 404":
            return missing(kind, full)
        case "odd answer":
            return _odd(kind, full, rng)
    return Fault(Seen(full, "odd" if name == "another batch" else "data", 200), done=True, change=name)


_JSON = {"content-type": "application/json"}


def missing(kind: str, name: str) -> Fault:
    """The server says that what is asked for is not there."""
    status = 400 if kind == "create" else 404
    body = b'{"error": {"message": "No such File object: file-x", "type": "invalid_request_error", "code": null}}'
    return Fault(Seen(name, "missing", status), headers=_JSON, body=body)


def _status(kind: str, status: int, rng: random.Random, *, done: bool) -> Fault:
    headers, seconds = dict(_JSON), 0.0
    if rng.random() < (0.5 if status in (429, 503) else 0.1):
        headers["retry-after"], seconds = rng.choice(RETRY_AFTER)
    name = f"{kind}: {status}, but done" if done else f"{kind}: {status}"
    trouble: Any = "busy" if status in (429, 503) else "passing"
    body = rng.choice((b'{"error": {"message": "Not now.", "type": "x", "code": null}}', HTML, b""))
    return Fault(Seen(name, trouble, status, seconds), done=done, headers=headers, body=body)


_ODD_ANSWERS: tuple[tuple[dict[str, str], bytes], ...] = (
    ({"content-type": "text/html"}, HTML),
    (_JSON, b"{}"),
    (_JSON, b"[]"),
    (_JSON, b"null"),
    (_JSON, b'"busy"'),
    (_JSON, b'{"id": "batch_7'),
    (_JSON, b'{"id": 7, "status": ["x"]}'),
)
_ODD_LISTS: tuple[tuple[dict[str, str], bytes], ...] = (
    ({"content-type": "text/html"}, HTML),
    (_JSON, b'{"object": "list"}'),
    (_JSON, b'{"object": "list", "data": null}'),
    (_JSON, b'{"object": "list", "data": {}}'),
    (_JSON, b'{"object": "list", "data": [null], "has_more": false}'),
    (_JSON, b'{"object": "list", "data": [{"id": "batch_1"}], "has_more": true}'),
    (_JSON, b'{"object": "list", "data": [["batch_1"]], "has_more": true}'),
)


_NO_ANSWERS: tuple[tuple[dict[str, str], bytes], ...] = (
    ({"content-type": "text/html"}, HTML),
    (_JSON, HTML),
    (_JSON, b"null"),
    (_JSON, b"[]"),
    (_JSON, b'{"error": {"message": "Not now."}}'),
    (_JSON, b'{"id": "chatcmpl-7'),
    (_JSON, b""),
)
"""Of realtime calls: an object without an error is an answer to whoever passes it on."""


def _odd(kind: str, name: str, rng: random.Random) -> Fault:
    headers, body = rng.choice({"list": _ODD_LISTS, "realtime": _NO_ANSWERS}.get(kind, _ODD_ANSWERS))
    return Fault(Seen(name, "odd", 200), done=rng.random() < 0.7, headers=headers, body=body)
