"""Lines on disk, and the file that is made of lines."""

from __future__ import annotations

import gc
import io
import itertools
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatcher.runtime import spool as module
from autobatcher.runtime.spool import LARGE, Line, LinesFile, Spool, SpooledLine, whole

FDS = Path("/proc/self/fd")

needs_fds = pytest.mark.skipif(not FDS.exists(), reason="the system does not list open files")


def open_files() -> int:
    gc.collect()
    return len(os.listdir(FDS))  # noqa: PTH208 -- iterating a Path here would count its own descriptor


def large(byte: bytes, more: int = 0) -> bytes:
    return byte * (LARGE + more)


# --- lines -----------------------------------------------------------------------------------------------------


@needs_fds
def test_small_lines_stay_in_memory() -> None:
    before = open_files()
    spool = Spool()
    line = b"x" * (LARGE - 1)
    assert spool.keep(line) is line
    assert open_files() == before


def test_a_large_line_comes_back_from_disk_as_often_as_it_is_asked_for() -> None:
    spool = Spool()
    lines = [large(b"a"), large(b"b", 7), large(b"c", 1_000_000)]
    kept = [spool.keep(line) for line in lines]
    for _ in range(2):
        for stored, line in zip(kept, lines, strict=True):
            assert isinstance(stored, SpooledLine)
            assert len(stored) == len(line)
            assert stored.read() == whole(stored) == line


@needs_fds
def test_the_file_vanishes_with_the_last_of_its_lines() -> None:
    before = open_files()
    spool = Spool()
    kept = [spool.keep(large(b"x")) for _ in range(10)]
    assert open_files() == before + 1
    last = kept.pop()
    del kept
    assert open_files() == before + 1
    assert whole(last) == large(b"x")
    del last
    assert open_files() == before


@needs_fds
def test_a_line_after_all_others_were_let_go_has_a_file_of_its_own() -> None:
    before = open_files()
    spool = Spool()
    for byte in (b"a", b"b", b"c"):
        line = spool.keep(large(byte))
        assert open_files() == before + 1
        assert whole(line) == large(byte)
        del line
    assert open_files() == before


@needs_fds
def test_a_lines_file_outlives_the_spool() -> None:
    before = open_files()
    line = Spool().keep(large(b"x"))
    assert whole(line) == large(b"x")
    del line
    assert open_files() == before


@needs_fds
def test_a_full_segment_is_followed_by_another_and_each_goes_with_its_own_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SEGMENT", 2 * LARGE)
    before = open_files()
    spool = Spool()
    kept = [spool.keep(large(bytes([number]))) for number in range(6)]
    assert open_files() == before + 3
    assert [whole(line) for line in kept] == [large(bytes([number])) for number in range(6)]
    del kept[2:4]
    assert open_files() == before + 2
    huge = spool.keep(large(b"h", 5 * LARGE))  # more than a segment: alone in one
    assert open_files() == before + 3
    assert len(huge) == 6 * LARGE
    del kept, huge
    assert open_files() == before


def test_nothing_of_a_line_has_a_name_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    line = Spool().keep(large(b"x"))
    assert list(tmp_path.iterdir()) == []
    assert len(line) == LARGE


def test_nothing_of_a_line_is_in_its_repr() -> None:
    assert "secret" not in repr(Spool().keep(b"secret" * LARGE))


def test_a_full_disk_raises_and_spoils_no_other_line(monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool()
    first = spool.keep(large(b"a"))
    assert isinstance(first, SpooledLine)
    segment = first._segment
    file = segment._file

    class Full:
        def seek(self, position: int) -> int:
            return file.seek(position)

        def write(self, piece: memoryview) -> int:
            file.write(piece[:100])  # some of it still fitted
            raise OSError(28, "No space left on device")

        def read(self, length: int) -> bytes:
            return file.read(length)

    with monkeypatch.context() as patched:
        patched.setattr(segment, "_file", Full())
        with pytest.raises(OSError, match="No space"):
            spool.keep(large(b"b"))
    third = spool.keep(large(b"c"))
    assert (whole(first), whole(third)) == (large(b"a"), large(b"c"))


def test_writes_that_take_less_than_they_are_given_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool()
    first = spool.keep(large(b"a"))
    assert isinstance(first, SpooledLine)
    segment = first._segment
    file = segment._file

    class Sparing:
        def seek(self, position: int) -> int:
            return file.seek(position)

        def write(self, piece: memoryview) -> int:
            return file.write(piece[:1_000])

        def read(self, length: int) -> bytes:
            return file.read(min(length, 777))

    monkeypatch.setattr(segment, "_file", Sparing())
    second = spool.keep(large(b"b", 5))
    assert (whole(first), whole(second)) == (large(b"a"), large(b"b", 5))
    monkeypatch.undo()


def test_threads_share_a_spool() -> None:
    spool = Spool()
    wrong: list[int] = []

    def work(number: int) -> None:
        content = large(bytes([number]), number)
        kept = [spool.keep(content) for _ in range(20)]
        if any(whole(line) != content for line in kept for _ in range(2)):
            wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- the file --------------------------------------------------------------------------------------------------

SPOOL = Spool()
KEPT: list[Line] = [SPOOL.keep(bytes(range(256)) * 200), SPOOL.keep(large(b"z"))]
lines = st.lists(st.binary(min_size=1, max_size=30) | st.sampled_from(KEPT), max_size=6)


@given(lines, st.lists(st.integers(1, 50_000), min_size=1, max_size=20))
def test_read_in_any_pieces_it_is_the_lines(given_lines: list[Line], counts: list[int]) -> None:
    expected = b"".join(map(whole, given_lines))
    file = LinesFile(given_lines)
    found = b""
    for count in itertools.chain(counts, itertools.repeat(40_000)):
        assert file.tell() == len(found)
        piece = file.read(count)
        assert len(piece) == min(count, len(expected) - len(found))
        found += piece
        if not piece:
            break
    assert found == expected
    assert file.read() == b""


@given(lines)
def test_it_can_be_measured_and_read_from_the_start_again(given_lines: list[Line]) -> None:
    expected = b"".join(map(whole, given_lines))
    file = LinesFile(given_lines)
    for _ in range(2):
        assert file.seek(0, io.SEEK_END) == file.tell() == len(expected)
        assert file.read(10) == b""
        assert file.seek(0) == file.tell() == 0
        assert file.read(7) == expected[:7]
        position = file.tell()
        assert file.seek(position) == position
        assert file.read() == expected[7:]
        assert file.tell() == len(expected)


def test_to_the_middle_there_is_no_way() -> None:
    file = LinesFile([b"abc\n", b"def\n"])
    for position, whence in [(3, io.SEEK_SET), (-1, io.SEEK_END), (1, io.SEEK_CUR)]:
        with pytest.raises(io.UnsupportedOperation):
            file.seek(position, whence)
    assert file.read() == b"abc\ndef\n"


def test_it_is_a_readable_file_without_a_name() -> None:
    file = LinesFile([b"a\n"])
    assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
    assert not hasattr(file, "name")
    with pytest.raises(OSError, match="fileno"):
        file.fileno()
    assert list(LinesFile([b"a\n", b"b\n"])) == [b"a\n", b"b\n"]


def test_a_buffered_reader_reads_it() -> None:
    kept = [large(b"x") + b"\n", b"y\n"]
    assert io.BufferedReader(LinesFile(kept)).readlines() == kept


def test_only_one_large_line_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def noted(line: SpooledLine) -> bytes:
        read.append(len(line))
        return b"x" * len(line)

    monkeypatch.setattr(SpooledLine, "read", noted)
    spool = Spool()
    file = LinesFile([spool.keep(large(b"x")) for _ in range(5)])
    assert read == []
    for number in range(1, 6):
        file.read(LARGE)
        assert len(read) == number
