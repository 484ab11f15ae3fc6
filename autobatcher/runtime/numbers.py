"""What makes requests equal, and which of several equal requests a call is."""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec


class Keys:
    """What equal requests share: a digest of the server, the endpoint, and the body as JSON with its names in order."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._begun: dict[str, hashlib.blake2b] = {}

    def of(
        self,
        endpoint: str,
        body: bytes,
        fields: Mapping[str, Any] | None = None,
        idempotency: str | None = None,
    ) -> bytes:
        """The key of a body.

        Args:
            endpoint: where it goes.
            body: as JSON text.
            fields: what it was encoded from, if that is at hand.
            idempotency: tells it from others that are equal.
        """
        begun = self._begun.get(endpoint)
        if begun is None:
            start = f"{self._base_url}\0{endpoint}\0".encode()
            begun = self._begun[endpoint] = hashlib.blake2b(start, digest_size=16)
        digest = begun.copy()
        try:
            canonical = _encode(msgspec.json.decode(body) if fields is None else fields)
        except (TypeError, ValueError):  # what only the other encoder knows
            canonical = _encode(msgspec.json.decode(body))
        digest.update(canonical)
        if idempotency is not None:
            digest.update(b"\0" + idempotency.encode())
        return digest.digest()


_encode = msgspec.json.Encoder(order="deterministic").encode


IN_DICT = 100_000
"""Keys whose counts are in a dict, which is fast and needs some 150 bytes for each."""


class Numbers:
    """Gives each call the lowest number that no other call of its key has."""

    def __init__(self) -> None:
        self._next: dict[bytes, int] = {}
        self._others = _Counts()
        self._free: dict[bytes, list[int]] = {}  # heaps, none of them empty
        self._returned: deque[tuple[bytes, int]] = deque()

    def take(self, key: bytes) -> tuple[int, bool]:
        """The number, and whether a call had it before."""
        if self._returned:
            self._take_back()
        if self._free and (free := self._free.get(key)):
            n = heapq.heappop(free)
            if not free:
                del self._free[key]
            return n, True
        return self._fresh(key), False

    def _fresh(self, key: bytes) -> int:
        n = self._next.get(key, 0)
        if not n and len(self._next) >= IN_DICT:
            n = self._others.count(key)
            if n < _Counts.LARGEST:
                return n
        self._next[key] = n + 1
        return n

    def retake(self, key: bytes, n: int) -> int:
        """The same number once more, or one that no call has had if another has that by now."""
        self._take_back()
        free = self._free.get(key, [])
        if n not in free:
            return self._fresh(key)
        free.remove(n)
        heapq.heapify(free)
        if not free:
            del self._free[key]
        return n

    def _take_back(self) -> None:
        while self._returned:
            key, n = self._returned.popleft()
            heapq.heappush(self._free.setdefault(key, []), n)

    def give_back(self, key: bytes, n: int) -> None:
        """Let another call have it.

        The garbage collector may call this, by ending a call whose loop is over, inside of `take`: so it takes no lock.
        """
        self._returned.append((key, n))


class _Counts:
    """How often each of many keys was counted, in some 16 bytes for each: a run may make millions of calls.

    The first byte of a key says in which table it is, the seven after it where, from which place on until one is free:
    that entry is these seven and the count. Keys are digests, so tables are filled evenly, and of ten million keys two
    are the same in these eight bytes with a probability of 3 in a million.
    """

    LARGEST = 255

    def __init__(self) -> None:
        self._tables = [array("Q", bytes(8 * 64))] * 256
        self._sizes = [0] * 256

    def count(self, key: bytes) -> int:
        """Count a key once more; how often it was counted before, or `LARGEST` if that is less."""
        name = int.from_bytes(key[1:8], "big")
        table = self._tables[key[0]]
        place = self._place(table, name)
        entry = table[place]
        if entry:
            count = entry & self.LARGEST
            if count < self.LARGEST:
                table[place] = entry + 1
            return count
        size = self._sizes[key[0]]
        if 3 * size >= 2 * len(table) or not size:
            table = self._tables[key[0]] = self._larger(table) if size else table[:]
            place = self._place(table, name)
        self._sizes[key[0]] = size + 1
        table[place] = name << 8 | 1
        return 0

    @staticmethod
    def _place(table: array[int], name: int) -> int:
        last = len(table) - 1
        place = name & last
        while (entry := table[place]) and entry >> 8 != name:
            place = (place + 1) & last
        return place

    def _larger(self, table: array[int]) -> array[int]:
        larger = array("Q", bytes(16 * len(table)))
        for entry in table:
            if entry:
                larger[self._place(larger, entry >> 8)] = entry
        return larger
