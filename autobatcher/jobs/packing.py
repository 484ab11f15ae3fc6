"""Batch files made from a source: as few as the servers' limits allow, each for one endpoint and one model."""

from __future__ import annotations

import errno
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from autobatcher.core.endpoints import model_name, weight
from autobatcher.core.jsonl import encode_line
from autobatcher.core.window import MAX_BYTES, MAX_LINES, Limits, OversizedError, Request, check_fits_any
from autobatcher.jobs.disk import free_place, naming
from autobatcher.jobs.items import InputError, Item, Source
from autobatcher.jobs.reading import fault, nobody

_BUFFER_BYTES = 2**23
"""Of lines in memory, over all files that are being written: these are not held open, for there may be a thousand."""


def prepare(
    source: Source,
    to: str | os.PathLike[str],
    *,
    max_requests: int = MAX_LINES,
    max_bytes: int = MAX_BYTES,
    on_read: Callable[[int], object] | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write a source's requests to batch files NAME-0001.jsonl and so on, where NAME is the source's without its ending.

    A file has requests of one endpoint and one model, in the order of the source; they go on in the same file until
    that is full. Nothing of a source that turns out to be faulty is left behind.

    Args:
        source: where the requests come from, by `open_source`.
        to: the folder; it is made if it is not there, and is not left behind empty.
        max_requests: the most requests of a file, and of embeddings the most inputs.
        max_bytes: the most bytes of a file.
        on_read: called now and then with how many bytes of the source have been read.
        overwrite: whether to replace files that are there; of an earlier and longer series the rest is removed.

    Returns:
        The files, in the order of their names.

    Raises:
        FileExistsError: one of the files is there already.
        InputError: the source is not what it should be, has no requests, or has one that fits into no file.
        OSError: a file cannot be read or written.
    """
    to = Path(to)
    path = source.path.resolve()
    if path.is_dir() and to.resolve().is_relative_to(path):
        raise InputError(
            f"{to}: is in the input, where the next run would take the batch files for a part of it"
        )
    if to.exists() and not to.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is no folder", str(to))
    name = path.name if path.is_dir() else path.stem
    limits = Limits(weight=max_requests, size=max_bytes)
    with _made(to), tempfile.TemporaryDirectory(prefix=".prepare-", dir=to) as folder:
        packer = _Packer(source.path, Path(folder), to / name, limits, overwrite=overwrite)
        for item in source.items(on_read or nobody):
            packer.add(item)
        packer.flush()
        if not packer.files:
            raise InputError(f"{source.path}: has no requests")
        return packer.publish()


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """A folder, and those that it is in; those that were not there are removed again if this fails with nothing in them."""
    missing = list(itertools.takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # there is something in it
            for path in missing:
                path.rmdir()
        raise


class _File:
    """A batch file while it is written."""

    def __init__(self, path: Path, final: Path) -> None:
        self.path, self.final = path, final
        self.size = self.weight = 0
        self.waiting: list[bytes] = []

    def fits(self, request: Request, limits: Limits) -> bool:
        return self.size + request.size <= limits.size and self.weight + request.weight <= limits.weight

    def add(self, request: Request) -> None:
        self.size += request.size
        self.weight += request.weight
        self.waiting.append(request.line)

    def flush(self) -> None:
        if self.waiting:
            with naming(self.final, self.path), self.path.open("ab") as file:
                file.writelines(self.waiting)
            self.waiting.clear()


class _Packer:
    def __init__(self, source: Path, folder: Path, name: Path, limits: Limits, *, overwrite: bool) -> None:
        self.files: list[_File] = []
        self._source = source
        self._folder = folder
        self._name = name
        self._limits = limits
        self._overwrite = overwrite
        self._open: dict[tuple[str, str], _File] = {}
        self._waiting = 0

    def add(self, item: Item) -> None:
        request = self._request(item)
        group = (request.endpoint, request.model)
        file = self._open.get(group)
        if file is None or not file.fits(request, self._limits):
            if file is not None:
                file.flush()
            file = self._open[group] = self._new()
        file.add(request)
        self._waiting += request.size
        if self._waiting >= _BUFFER_BYTES:
            self.flush()

    def _request(self, item: Item) -> Request:
        try:
            fields = msgspec.json.decode(item.body)
        except (ValueError, RecursionError) as error:  # among them msgspec's own
            raise self._refused(item, fault(item.body, error)) from None
        if not isinstance(fields, dict):
            raise self._refused(item, "the body is no object")
        line = line_of(item)
        request = Request(
            item.custom_id, item.url, model_name(fields), line, len(line), weight=weight_of(item.url, fields)
        )
        try:
            check_fits_any(request, self._limits)
        except OversizedError as error:
            raise self._refused(item, str(error)) from None
        return request

    def _refused(self, item: Item, reason: str) -> InputError:
        return InputError(f"{self._source}: {item.custom_id}: {reason}")

    def _final(self, number: int) -> Path:
        return self._name.with_name(f"{self._name.name}-{number:04}.jsonl")

    def _new(self) -> _File:
        final = self._final(len(self.files) + 1)
        free_place(final, overwrite=self._overwrite)
        file = _File(self._folder / final.name, final)
        self.files.append(file)
        return file

    def flush(self) -> None:
        for file in self._open.values():
            file.flush()
        self._waiting = 0

    def publish(self) -> list[Path]:
        """Give the files their names."""
        for file in self.files:
            free_place(file.final, overwrite=self._overwrite)
        for file in self.files:
            with naming(file.final, file.path):
                file.path.replace(file.final)
        number = len(self.files) + 1
        while self._overwrite and (rest := self._final(number)).exists():
            rest.unlink()  # sent along with the new ones, it would be paid for
            number += 1
        return [file.final for file in self.files]


def line_of(item: Item) -> bytes:
    """A request as a line of a batch file, whatever characters it has, in which nothing but its end ends a line."""
    body = item.body
    for white in (b"\n", b"\r"):  # raw they are white space: JSON's strings have them escaped
        if white in body:
            body = body.replace(white, b" ")
    return encode_line(json.dumps(item.custom_id)[1:-1], json.dumps(item.url)[1:-1], body)


def weight_of(url: str, fields: Mapping[str, Any]) -> int:
    """What a request counts towards the most requests of a file."""
    return weight("embeddings" if url.rstrip("/").endswith("/embeddings") else "", fields)
