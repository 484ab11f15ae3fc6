"""The calls, as every client makes them that is one of the SDK's."""

from __future__ import annotations

from typing import Any

from contestants import work
from contestants.harness import Ask, Settings
from pydantic import BaseModel


class Answer(BaseModel):
    """What `parse` is to make of an answer."""

    number: int
    text: str


def messages(number: int, size: int) -> Any:
    return [{"role": "user", "content": work.prompt(number, size)}]


def ask_of(client: Any, settings: Settings) -> Ask:
    """What makes call number n with a client."""
    size = settings.size
    match settings.measure:
        case "create":
            create = client.chat.completions.create
            return lambda n: create(model=work.MODEL, messages=messages(n, size))
        case "parse":
            parse = client.chat.completions.parse
            return lambda n: parse(model=work.MODEL, messages=messages(n, size), response_format=Answer)
        case "raw":
            raw = client.chat.completions.with_raw_response.create
            return lambda n: raw(model=work.MODEL, messages=messages(n, size))
        case "embeddings":
            embed = client.embeddings.create
            return lambda n: embed(model=work.MODEL, input=work.prompt(n, size))
    raise ValueError(settings.measure)
