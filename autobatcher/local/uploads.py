"""multipart/form-data as a stream: the file goes to the store while it arrives, with limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from autobatcher.local.bodies import body_of
from autobatcher.local.wire import ApiError, new_id

if TYPE_CHECKING:
    from starlette.requests import Request

    from autobatcher.local.store import Store

_CHUNK = 1_000_000
_MAX_FIELDS = 20
_MAX_FIELD_BYTES = 10_000


@dataclass
class _Form:
    """What the parser's callbacks have gathered so far."""

    fields: dict[str, bytearray] = field(default_factory=dict)
    filename: str | None = None
    content: bytearray = field(default_factory=bytearray)
    current: bytearray | None = None
    header_name: bytes = b""
    header_value: bytes = b""
    disposition: bytes = b""
    ended: bool = False

    def on_part_begin(self) -> None:
        self.disposition = b""
        self.current = None

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self.header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self.header_value += data[start:end]

    def on_header_end(self) -> None:
        if self.header_name.lower() == b"content-disposition":
            self.disposition = self.header_value
        self.header_name = self.header_value = b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self.disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name == "file":
            if self.filename is not None:
                raise ApiError(400, "Only one file can be uploaded at a time.", param="file")
            self.filename = options.get(b"filename", b"upload").decode("utf-8", "replace")
            self.current = self.content
            return
        if len(self.fields) >= _MAX_FIELDS:
            raise ApiError(400, "The form has too many fields.")
        self.current = self.fields[name] = bytearray()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self.current is None:
            return
        self.current += data[start:end]
        if self.current is not self.content and len(self.current) > _MAX_FIELD_BYTES:
            raise ApiError(400, "A field of the form is too long.")

    def check_size(self, size: int, limit: int) -> None:
        if size > limit:
            raise ApiError(
                413, f"The file is larger than {limit} bytes.", param="file", code="file_too_large"
            )

    def on_end(self) -> None:
        self.ended = True

    def parser(self, boundary: bytes) -> MultipartParser:
        try:
            return MultipartParser(
                boundary,
                {
                    "on_part_begin": self.on_part_begin,
                    "on_part_data": self.on_part_data,
                    "on_header_field": self.on_header_field,
                    "on_header_value": self.on_header_value,
                    "on_header_end": self.on_header_end,
                    "on_headers_finished": self.on_headers_finished,
                    "on_end": self.on_end,
                },
            )
        except FormParserError:  # the boundary is too long
            raise ApiError(400, "The body is not valid multipart/form-data.") from None

    def feed(self, parser: MultipartParser, data: bytes) -> None:
        try:
            parser.write(data)
        except FormParserError:
            raise ApiError(400, "The body is not valid multipart/form-data.") from None

    def finish(self) -> str:
        if not self.ended:
            raise ApiError(400, "The body is not complete multipart/form-data.")
        if self.filename is None:
            raise ApiError(400, "Missing required parameter: 'file'.", param="file")
        return self.filename

    def text(self, name: str) -> str | None:
        value = self.fields.get(name)
        return None if value is None else value.decode("utf-8", "replace")


@dataclass(frozen=True)
class Upload:
    """A file whose content is in the store, and the form's other fields."""

    file_id: str
    filename: str
    size: int
    purpose: str | None
    lifetime: str | None


async def receive_upload(request: Request, store: Store, *, limit: int) -> Upload:
    """Read the form; on any error nothing of it stays in the store."""
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise ApiError(400, "The body must be multipart/form-data.")
    form = _Form()
    file_id = new_id("file-")
    try:
        parser = form.parser(options[b"boundary"])
        size = count = 0
        async with body_of(request) as chunks:
            async for data in chunks:
                form.feed(parser, data)
                form.check_size(size + len(form.content), limit)
                if len(form.content) >= _CHUNK:
                    size, count = size + len(form.content), count + 1
                    store.add_chunk(file_id, count, bytes(form.content))
                    form.content.clear()
        filename = form.finish()
        if form.content:
            store.add_chunk(file_id, count + 1, bytes(form.content))
            size += len(form.content)
    except BaseException:
        store.drop_chunks(file_id)
        raise
    return Upload(file_id, filename, size, form.text("purpose"), form.text("expires_after[seconds]"))
