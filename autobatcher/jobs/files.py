"""The server's files: list, get, delete."""

from __future__ import annotations

import functools
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import IO

import openai
from openai.types import FileDeleted, FileObject

from autobatcher.core.lifecycle import Step
from autobatcher.core.outcomes import Trouble
from autobatcher.errors import AutobatcherError
from autobatcher.jobs.calls import PATIENCE, OnRetry, Tries, checked_id, error_of, paged, silent, understood
from autobatcher.jobs.downloads import written
from autobatcher.runtime.upstream import OddAnswerError, Upstream, UpstreamError


def list_files(
    client: openai.AsyncOpenAI, purpose: str | None = None, limit: int | None = None
) -> AsyncGenerator[FileObject, None]:
    """The server's files, in its order.

    Args:
        client: reaches the server.
        purpose: only of these, such as "batch" or "batch_output"; None: all.
        limit: the most files; None: all.

    Raises:
        openai.OpenAIError: the server cannot be reached, refuses, or answers with what is no list.
    """
    listing = client.files.list
    return paged(listing if purpose is None else functools.partial(listing, purpose=purpose), limit)


async def get_file(
    client: openai.AsyncOpenAI,
    file_id: str,
    to: str | os.PathLike[str] | IO[bytes],
    *,
    overwrite: bool = False,
    patience: float = PATIENCE,
    on_retry: OnRetry = silent,
) -> int:
    """Download a file as it is; one that breaks off is read from its start again.

    Args:
        client: reaches the server.
        file_id: the file.
        to: where it goes: a file, which is there when it is whole, or a stream that is open.
        overwrite: whether a file that is there is replaced.
        patience: seconds for which the download may fail on end, in ways that may pass.
        on_retry: is told of such failures.

    Returns:
        Its size in bytes.

    Raises:
        FileExistsError: a file is there.
        InputError: that is no id.
        OSError: it cannot be written.
        openai.OpenAIError: the server cannot be reached, or does not know the file.
    """
    file_id = checked_id(file_id, "file")
    upstream = Upstream(client.with_options(max_retries=0), "", None)
    tries = Tries(Step.FETCH, patience, on_retry)
    with written(to, overwrite=overwrite, even_if_empty=True) as file:
        while True:
            file.seek(0)
            file.truncate()
            try:
                async with aclosing(upstream.read_bytes(file_id)) as pieces:
                    async for piece in pieces:
                        file.write(piece)
                return file.tell()
            except UpstreamError as error:
                failure = error.failure
                if failure.trouble not in (Trouble.PASSING, Trouble.BUSY):
                    raise error_of(failure) from None
                await tries.again(failure)


async def delete_file(client: openai.AsyncOpenAI, file_id: str) -> FileDeleted:
    """Delete a file at the server.

    Raises:
        InputError: that is no id.
        openai.OpenAIError: the server cannot be reached, does not know the file, or does not say that it is deleted.
    """
    file_id = checked_id(file_id, "file")
    with understood():
        answer: object = await client.files.delete(file_id)
    if not isinstance(answer, FileDeleted):  # such as a proxy's page
        raise OddAnswerError(f"the server's answer to the deletion of {file_id} could not be understood")
    if answer.deleted is False:  # some servers do not say it
        raise AutobatcherError(f"the server says that it has not deleted {file_id}")
    return answer
