"""Files and folders that requests are read from, or made from with a template; all of them are streamed."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from autobatcher.display_state import counted
from autobatcher.jobs.items import InputError, Item, Source
from autobatcher.jobs.outputs import parquet_library
from autobatcher.jobs.reading import FirstLines, fault, nobody, numbered_lines, text_of
from autobatcher.jobs.template import Template, image_type

BATCH, CSV, TSV, JSONL, PARQUET, TEXT, FOLDER = "batch", "csv", "tsv", "jsonl", "parquet", "text", "folder"

KINDS = (BATCH, CSV, TSV, JSONL, PARQUET, TEXT, FOLDER)
"""What a source can be made of."""

_BY_ENDING = {
    ".csv": CSV,
    ".tsv": TSV,
    ".tab": TSV,
    ".jsonl": JSONL,
    ".ndjson": JSONL,
    ".parquet": PARQUET,
    ".pq": PARQUET,
    ".txt": TEXT,
    ".text": TEXT,
    ".md": TEXT,
    ".markdown": TEXT,
}

_FIELD_BYTES = 2**31 - 1
"""Of a cell of CSV; more does not fit into a C long everywhere."""

_PARQUET_ROWS = 500
_PARQUET_BUFFER = 2**20
"""Bytes of a column that are read at a time; otherwise it is a whole row group, which may be the whole file."""

_LINE_FIELDS = {"custom_id", "method", "url", "body"}


class Row(NamedTuple):
    """A row of a table; `place` is what errors name: the file, and the line where there are lines."""

    place: str
    values: Mapping[str, Any]


def open_source(
    path: str | os.PathLike[str], template: Template | None = None, *, kind: str | None = None
) -> Source:
    """Open a batch file, or with a template a table whose rows become requests.

    Args:
        path: a batch file, that is JSONL whose lines have custom_id, method, url and body (which is seen by its first
            line); or a table: CSV or TSV with a header, JSONL of objects, Parquet, plain text (.txt, .md: each line that
            is not blank is a row with the column `text`), or a folder (each file in it and in its folders is a row
            with the columns `file` and `text`, by name; hidden ones are passed over, and with images in the template,
            a file of an image has no text). Text is UTF-8.
        template: makes the requests of a table; their custom_ids are "row-1" and so on.
        kind: one of `KINDS`; None: as the name's ending says.

    Raises:
        InputError: it is not what it should be, or the template does not go with it.
        OSError: it cannot be read.
    """
    path = Path(path)
    path.stat()
    if kind is None:
        kind = _kind_of(path, with_template=template is not None)
    if kind not in KINDS:
        raise InputError(f"{path}: there is no kind {kind!r}, only {', '.join(KINDS)}")
    if (kind == FOLDER) != path.is_dir():
        raise InputError(f"{path}: is {'no' if kind == FOLDER else 'a'} folder")
    if kind == BATCH:
        if template is not None:
            raise InputError(
                f"{path}: is a batch file, whose lines have model and prompt: leave out --model, --prompt and what"
                " goes with them"
            )
        return BatchFile(path)
    if template is None:
        raise InputError(
            f"{path}: is a table and no batch file: give --model and --prompt, such as --prompt"
            ' "Summarise: {text}", to make requests of its rows'
        )
    return _TABLES[kind](path, template)


def _kind_of(path: Path, *, with_template: bool) -> str:
    if path.is_dir():
        return FOLDER
    kind = _BY_ENDING.get(path.suffix.lower())
    if kind not in {None, JSONL}:
        return str(kind)
    fields = _first_fields(path)
    if fields >= _LINE_FIELDS or (len(fields & _LINE_FIELDS) > 1 and not with_template):
        return BATCH
    if kind is None:
        raise InputError(
            f"{path}: is no batch file, and its name does not say what else it is: give --kind, one of"
            f" {', '.join(KINDS)}"
        )
    return kind


def _first_fields(path: Path) -> set[str]:
    """The names in the object on the first line, if it is one; a damaged one is told when it is read."""
    for _, line in numbered_lines(path):
        if line.strip():
            try:
                fields = msgspec.json.decode(line)
            except (ValueError, RecursionError):  # among them msgspec's own
                return set()
            return set(fields) if isinstance(fields, dict) else set()
    return set()


# --- batch files -----------------------------------------------------------------------------------------------


class _Line(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


_line = msgspec.json.Decoder(_Line)
_object = msgspec.json.Decoder(dict[str, Any])


class BatchFile:
    """A file whose lines are requests.

    Reading it all keeps what `FirstLines` does, some 50 bytes a line.
    """

    columns = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size

    def items(self, moved: Callable[[int], object] = nobody) -> Iterator[Item]:
        """The requests; the body of each has the bytes that it has in the file.

        Blank lines are passed over.

        Raises:
            InputError: a line is no request, or its custom_id was there before.
        """
        seen = FirstLines()
        for number, line in numbered_lines(self.path, moved):
            if not line.strip():
                continue
            place = f"{self.path}:{number}"
            item = _request(line, place)
            first = seen.add(item.custom_id, number)
            if first is not None:
                raise InputError(f"{place}: the custom_id {item.custom_id!r} is that of line {first}")
            yield item

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """None: a batch file is no table."""
        return iter(())


def _request(line: bytes, place: str) -> Item:
    try:
        if not line.isascii():
            line.decode()  # which what is passed on is not put to otherwise
        fields = _line.decode(line)
        body = bytes(fields.body).strip()
        if not body.startswith(b"{"):
            raise InputError(f"{place}: the body is no object")
        _object.decode(body)  # the bodies are passed over otherwise
    except msgspec.ValidationError as error:
        if not _is_json(line):
            raise InputError(f"{place}: {fault(line, error)}") from None
        raise InputError(f"{place}: no request: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{place}: {fault(line, error)}") from None
    if not fields.custom_id:
        raise InputError(f"{place}: the custom_id is empty")
    if fields.method != "POST":
        raise InputError(f"{place}: the method is {fields.method!r}, not 'POST'")
    if not fields.url:
        raise InputError(f"{place}: the url is empty")
    return Item(fields.custom_id, fields.url, body)


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except (ValueError, RecursionError):  # among them msgspec's own
        return False
    return True


# --- tables ----------------------------------------------------------------------------------------------------


class Table:
    """A file of rows, each of which a template makes a request of."""

    def __init__(self, path: Path, template: Template) -> None:
        self.path = path
        self.size = self._bytes()
        self._template = template
        self._columns: dict[str, None] = dict.fromkeys(self._header())
        if self._columns:
            try:
                template.check(self._columns)
            except InputError as error:
                raise InputError(f"{path}: {error}") from None

    @property
    def columns(self) -> Sequence[str]:
        """The names; of JSONL those of the first object, and those that came up in what has been read since."""
        return list(self._columns)

    def items(self, moved: Callable[[int], object] = nobody) -> Iterator[Item]:
        """A request for each row.

        Raises:
            InputError: a row is not what it should be, or lacks a column that the template takes.
        """
        endpoint, body, folder = self._template.endpoint, self._template.body, self._folder()
        for number, row in enumerate(self._read(moved, self._template.columns), 1):
            try:
                item = Item(f"row-{number}", endpoint, body(row.values, folder))
            except InputError as error:
                raise InputError(f"{row.place}: {error}") from None
            yield item

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """The rows, in the same order."""
        return (row.values for row in self._read(nobody, None))

    def _bytes(self) -> int:
        return self.path.stat().st_size

    def _folder(self) -> Path:
        """Where relative paths in the rows start."""
        return self.path.parent

    def _header(self) -> Sequence[str]:
        """The columns, as far as they are known before the rows are read; none: there is not a row."""
        raise NotImplementedError

    def _read(self, moved: Callable[[int], object], only: Sequence[str] | None) -> Iterator[Row]:
        """The rows; other columns than `only` may be left out, if that saves work."""
        raise NotImplementedError


class CsvTable(Table):
    """CSV: a header, commas, quotes doubled within quotes; every row has as many cells as the header."""

    dialect = "excel"

    def _header(self) -> Sequence[str]:
        for _, names in self._records(nobody):
            return self._checked(names)
        raise InputError(f"{self.path}: is empty; there should be a header")

    def _checked(self, names: list[str]) -> list[str]:
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"{self.path}:1: the column {name!r} is there twice")
        return names

    def _read(self, moved: Callable[[int], object], only: Sequence[str] | None) -> Iterator[Row]:  # noqa: ARG002 -- saves nothing here
        records = self._records(moved)
        _, names = next(records)
        for number, cells in records:
            if len(cells) != len(names):
                raise InputError(
                    f"{self.path}:{number}: the row has {counted(len(cells), 'cell')}, the header {len(names)}"
                )
            yield Row(f"{self.path}:{number}", dict(zip(names, cells, strict=True)))

    def _records(self, moved: Callable[[int], object]) -> Iterator[tuple[int, list[str]]]:
        """The records that are not blank, each with the number of the line on which it starts."""
        csv.field_size_limit(_FIELD_BYTES)
        lines = (text_of(line, self.path, number) for number, line in numbered_lines(self.path, moved))
        reader = csv.reader(lines, self.dialect, strict=True)
        while True:
            number = reader.line_num + 1
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise InputError(f"{self.path}:{number}: not CSV: {error}") from None
            if record:
                yield number, record


class TsvTable(CsvTable):
    """As CSV, with tabs in place of the commas."""

    dialect = "excel-tab"


class JsonlTable(Table):
    """An object a line; blank lines are passed over."""

    def _header(self) -> Sequence[str]:
        for _, row in self._objects(nobody):
            return list(row)
        return ()

    def _read(self, moved: Callable[[int], object], only: Sequence[str] | None) -> Iterator[Row]:  # noqa: ARG002 -- saves nothing here
        known = self._columns
        for number, row in self._objects(moved):
            if not row.keys() <= known.keys():
                known |= dict.fromkeys(row)
            yield Row(f"{self.path}:{number}", row)

    def _objects(self, moved: Callable[[int], object]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in numbered_lines(self.path, moved):
            if not line.strip():
                continue
            try:
                row = msgspec.json.decode(line)
            except (ValueError, RecursionError) as error:  # among them msgspec's own
                raise InputError(f"{self.path}:{number}: {fault(line, error)}") from None
            if not isinstance(row, dict):
                raise InputError(f"{self.path}:{number}: the line is no JSON object")
            yield number, row


class ParquetTable(Table):
    """Parquet, some hundred rows at a time; needs pyarrow."""

    def _open(self) -> Any:
        pa, parquet = parquet_library()
        try:
            return parquet.ParquetFile(self.path, buffer_size=_PARQUET_BUFFER, pre_buffer=False)
        except pa.lib.ArrowException as error:
            raise InputError(f"{self.path}: not Parquet: {error}") from None

    def _header(self) -> Sequence[str]:
        with self._open() as file:
            names: list[str] = file.schema_arrow.names
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"{self.path}: the column {name!r} is there twice")
        return names

    def _read(self, moved: Callable[[int], object], only: Sequence[str] | None) -> Iterator[Row]:
        if only is not None and any("." in name for name in only):
            only = None  # pyarrow would take such a name for a path into a column
        pa, _ = parquet_library()
        done = 0
        with self._open() as file:
            total = file.metadata.num_rows or 1
            try:
                for batch in file.iter_batches(_PARQUET_ROWS, columns=only, use_threads=False):
                    for values in batch.to_pylist():
                        done += 1
                        yield Row(f"{self.path}: row {done}", values)
                    moved(self.size * done // total)
            except (pa.lib.ArrowException, UnicodeDecodeError) as error:
                raise InputError(f"{self.path}: the rows after {done:,} cannot be read: {error}") from None
        moved(self.size)


class TextLines(Table):
    """Plain text: each line that is not blank is a row."""

    def _header(self) -> Sequence[str]:
        return ("text",)

    def _read(self, moved: Callable[[int], object], only: Sequence[str] | None) -> Iterator[Row]:  # noqa: ARG002 -- there is one
        for number, line in numbered_lines(self.path, moved):
            text = text_of(line, self.path, number).rstrip("\r\n")
            if text.strip():
                yield Row(f"{self.path}:{number}", {"text": text})


class FolderTable(Table):
    """The files of a folder and of the folders in it, as they are when it is opened."""

    def _header(self) -> Sequence[str]:
        return ("file", "text")

    def _folder(self) -> Path:
        return self.path

    def _bytes(self) -> int:
        self._files = sorted(files_below(self.path))
        return sum((self.path / name).stat().st_size for name in self._files)

    def _read(self, moved: Callable[[int], object], only: Sequence[str] | None) -> Iterator[Row]:
        read = 0
        for name in self._files:
            path = self.path / name
            text = self._text(path) if only is None or "text" in only else None
            yield Row(str(path), {"file": name, "text": text})
            read += path.stat().st_size
            moved(read)

    def _text(self, path: Path) -> str | None:
        if image_type(path) is not None:
            if self._template.images:
                return None
            raise InputError(f"{path}: is an image: give --image file")
        lines = (text_of(line, path, number) for number, line in numbered_lines(path))
        return "".join(lines)


def files_below(folder: Path) -> Iterator[str]:
    """Paths below the folder, with slashes, of all files that are not hidden."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(place) / name
            if not name.startswith(".") and path.is_file():
                yield path.relative_to(folder).as_posix()


_TABLES: dict[str, type[Table]] = {
    CSV: CsvTable,
    TSV: TsvTable,
    JSONL: JsonlTable,
    PARQUET: ParquetTable,
    TEXT: TextLines,
    FOLDER: FolderTable,
}
