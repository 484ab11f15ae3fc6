"""Files and folders that requests come from."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from autobatcher import BatchOpenAI
from autobatcher.jobs import InputError, Item, Template, open_source, run
from autobatcher.jobs.reading import FirstLines
from autobatcher.local import LocalConfig, serve_in_thread

CHAT = "/v1/chat/completions"
TELL = Template("m", "{text}")


def line(custom_id: str = "a", body: str = '{"model":"m"}', url: str = CHAT) -> str:
    return f'{{"custom_id":{json.dumps(custom_id)},"method":"POST","url":"{url}","body":{body}}}\n'


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def asked(path: Path, template: Template = TELL, kind: str | None = None) -> list[Any]:
    """What the requests of a table ask; the rows are as many and have the columns."""
    source = open_source(path, template, kind=kind)
    moves: list[int] = []
    items = list(source.items(moves.append))
    assert [item.custom_id for item in items] == [f"row-{n}" for n in range(1, len(items) + 1)]
    assert source.columns is not None
    rows = list(source.rows())
    assert len(rows) == len(items)
    assert all(set(row) <= set(source.columns) for row in rows)
    assert moves == sorted(moves)
    assert not items or moves[-1] == source.size
    return [json.loads(item.body)["messages"][0]["content"] for item in items]


def refused(path: Path, template: Template | None = TELL, kind: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        list(open_source(path, template, kind=kind).items())
    return str(caught.value)


# --- batch files -----------------------------------------------------------------------------------------------


def test_a_body_is_passed_on_with_the_bytes_that_it_has(tmp_path: Path) -> None:
    body = '{ "z" : 1.50, "a":123456789012345678901234567890, "e":1E2, "t":"\\u00e9é\u2028" , "a":1}'
    path = written(tmp_path / "in.jsonl", line("x", f" {body} ") + "\n  \r\n" + line("é", "{}"))
    source = open_source(path)
    moves: list[int] = []
    assert list(source.items(moves.append)) == [Item("x", CHAT, body.encode()), Item("é", CHAT, b"{}")]
    assert source.columns is None
    assert list(source.rows()) == []
    assert source.size == moves[-1] == path.stat().st_size
    assert list(source.items()) == list(source.items())


@pytest.mark.parametrize("name", ["in.jsonl", "in.ndjson", "in.txt2", "in"])
def test_a_batch_file_is_seen_by_its_first_line(tmp_path: Path, name: str) -> None:
    for start in ("", "\n", "\ufeff"):
        path = written(tmp_path / name, start + line())
        assert [item.custom_id for item in open_source(path).items()] == ["a"]


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("{", r"in.jsonl:2: not JSON: Expecting property name .* at character [23]"),
        ("[]", "in.jsonl:2: no request: Expected `object`, got `array`"),
        (line("a"), "in.jsonl:2: the custom_id 'a' is that of line 1"),
        (line("b").replace("POST", "GET"), "in.jsonl:2: the method is 'GET', not 'POST'"),
        (line("b", "[]"), "in.jsonl:2: the body is no object"),
        (line("b", '{"a":NaN}'), "in.jsonl:2: not JSON: NaN is no number in JSON"),
        (line("b", '{"a":"\\ud83d"}'), r"in.jsonl:2: not text: half of a surrogate pair \(\\ud83d\)"),
        (line("b", '{"a":1e999}'), "in.jsonl:2: not JSON: Number out of range"),
        (line(""), "in.jsonl:2: the custom_id is empty"),
        (line("b", url=""), "in.jsonl:2: the url is empty"),
        ('{"custom_id":"b","method":"POST","url":"/v1/x"}', "in.jsonl:2: no request: .*`body`"),
        (
            '{"custom_id":7,"method":"POST","url":"/v1/x","body":{}}',
            r"in.jsonl:2: .*`str`, got `int`.*custom_id",
        ),
        (line("b", "[" * 50_000), "in.jsonl:2: not JSON"),
    ],
)
def test_a_line_that_is_no_request_is_named(tmp_path: Path, second: str, said: str) -> None:
    path = written(tmp_path / "in.jsonl", line("a") + second)
    assert re.search(said, refused(path, None))


def test_bytes_that_are_no_utf8_are_named(tmp_path: Path) -> None:
    path = written(
        tmp_path / "in.jsonl", line("a").encode() + line("b", '{"a":"x"}').encode().replace(b'"x"', b'"\xff"')
    )
    assert "in.jsonl:2: not UTF-8: byte 7" in refused(path, None)


def test_what_goes_with_what_is_said(tmp_path: Path) -> None:
    batch = written(tmp_path / "batch.jsonl", line())
    table = written(tmp_path / "table.jsonl", '{"text":"hi"}\n')
    assert "leave out --model, --prompt" in refused(batch)
    assert "give --model and --prompt" in refused(table, None)
    assert "give --model and --prompt" in refused(written(tmp_path / "a.csv", "text\nhi\n"), None)
    assert "give --kind, one of batch, csv" in refused(written(tmp_path / "a.dat", "text\nhi\n"))
    assert "there is no kind 'xml'" in refused(table, kind="xml")
    assert "is a folder" in refused(tmp_path, kind="csv")
    assert "is no folder" in refused(table, kind="folder")
    with pytest.raises(FileNotFoundError):
        open_source(tmp_path / "none.csv", TELL)
    with pytest.raises(FileNotFoundError):
        open_source(tmp_path / "none", TELL, kind="folder")


def test_a_first_line_that_lacks_something_is_told_as_one_of_a_batch_file(tmp_path: Path) -> None:
    path = written(tmp_path / "in.jsonl", '{"custom_id":"a","url":"/v1/x","body":{}}\n')
    assert "in.jsonl:1: no request" in refused(path, None)


def test_a_table_may_have_a_column_custom_id(tmp_path: Path) -> None:
    path = written(tmp_path / "in.jsonl", '{"custom_id":"a","text":"hi"}\n')
    assert asked(path) == ["hi"]


@given(st.lists(st.text(max_size=3), max_size=50))
def test_the_first_line_of_every_custom_id_is_known(names: list[str]) -> None:
    seen = FirstLines()
    lines: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        assert seen.add(name, number) == lines.get(name)
        lines.setdefault(name, number)


def test_so_it_is_of_many() -> None:
    seen = FirstLines()
    assert all(seen.add(f"row-{n}", n + 1) is None for n in range(5_000))
    assert all(seen.add(f"row-{n}", 9_999_999) == n + 1 for n in range(5_000))


# --- CSV -------------------------------------------------------------------------------------------------------

CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 3).flatmap(lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), min_size=1)))
@example([["a\r\nb", 'c"d', "\u2028"], ["", "\r", "\n"]])
@example([[""]])
def test_a_csv_that_was_written_comes_back(tmp_path: Path, rows: list[list[str]]) -> None:
    names = ["text", "b", "c"][: len(rows[0])]
    for kind, dialect in (("csv", "excel"), ("tsv", "excel-tab")):
        file = io.StringIO(newline="")
        csv.writer(file, dialect).writerows([names, *rows])
        path = written(tmp_path / "in", file.getvalue())
        assert asked(path, kind=kind) == [row[0] for row in rows]
        source = open_source(path, TELL, kind=kind)
        assert list(source.rows()) == [dict(zip(names, row, strict=True)) for row in rows]


def test_a_mark_at_the_start_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    path = written(tmp_path / "in.csv", "\ufefftext,b\r\n\r\nhi,1\r\n\r\nho,2\r\n")
    assert asked(path) == ["hi", "ho"]
    assert asked(written(tmp_path / "in.tsv", "b\ttext\n1\thi\n")) == ["hi"]
    assert asked(written(tmp_path / "none.csv", "text\n")) == []


def test_a_cell_may_be_large(tmp_path: Path) -> None:
    path = written(tmp_path / "in.csv", "text\n" + "x" * 500_000)
    assert asked(path) == ["x" * 500_000]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "in.csv: is empty"),
        (b"a,a\n", "in.csv:1: the column 'a' is there twice"),
        (b"a,b\n1,2\n", "in.csv: there is no column 'text'; there are 'a', 'b'"),
        (b"text,b\n1,2\n1\n", "in.csv:3: the row has 1 cell, the header 2"),
        (b'text,b\n"1\n2",2\n1,2,3\n', "in.csv:4: the row has 3 cells, the header 2"),
        (b'text\n"a', "in.csv:2: not CSV: unexpected end of data"),
        (b'text\n"a"b\n', "in.csv:2: not CSV"),
        (b"text\nok\n\xe4\n", "in.csv:3: not UTF-8: byte 1 of the line is 0xe4"),
        ("text\n".encode("utf-16"), "in.csv:1: not UTF-8"),
    ],
)
def test_what_is_wrong_with_a_csv_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in refused(written(tmp_path / "in.csv", content))


# --- JSONL, text, Parquet --------------------------------------------------------------------------------------


def test_objects_are_rows_and_their_columns_add_up(tmp_path: Path) -> None:
    path = written(tmp_path / "in.jsonl", '\ufeff{"text":"a"}\n\n{"text":[1],"b":2}\n{"text":null,"c":3}')
    assert asked(path) == ["a", "[1]", ""]
    source = open_source(path, TELL)
    assert source.columns == ["text"]
    list(source.items())
    assert source.columns == ["text", "b", "c"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"b":1}\n', "in.jsonl: there is no column 'text'; there is 'b'"),
        ('{"text":1}\n{"b":1}\n', "in.jsonl:2: there is no column 'text'; there is 'b'"),
        ('{"text":1}\n[]\n', "in.jsonl:2: the line is no JSON object"),
        ('{"text":1}\n{"text":1,}\n', "in.jsonl:2: not JSON: "),
        ('{"text":1}\n{"text":"\\ud83d"}\n', "in.jsonl:2: not text: half of a surrogate pair"),
    ],
)
def test_what_is_wrong_with_an_object_is_named(tmp_path: Path, content: str, said: str) -> None:
    assert said in refused(written(tmp_path / "in.jsonl", content))


def test_bytes_in_an_object_that_are_no_utf8_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "in.jsonl", b'{"text":1}\n{"text":"\xff"}\n')
    assert "in.jsonl:2: not UTF-8" in refused(path)


@pytest.mark.parametrize("name", ["in.txt", "in.md"])
def test_a_line_of_text_is_a_row(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, "\ufeffone\r\n\n  two\u2028 \n\t\nthree")
    assert asked(path) == ["one", "  two\u2028 ", "three"]
    assert "in2.txt:2: not UTF-8" in refused(written(tmp_path / "in2.txt", b"a\n\xff"))


def test_parquet_is_read_by_batches(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "in.parquet"
    columns = {"text": [f"t{n}" for n in range(1_200)], "n": [None, *range(1_199)], "a.b": [{"x": 1}] * 1_200}
    parquet.write_table(pa.table(columns), path, row_group_size=700)
    assert asked(path) == columns["text"]
    assert asked(path, Template("m", "{n} {a.b}"))[:2] == [' {"x": 1}', '0 {"x": 1}']
    rows = list(open_source(path, TELL).rows())
    assert rows[1] == {"text": "t1", "n": 0, "a.b": {"x": 1}}
    assert "there is no column 'b'; there are 'text', 'n', 'a.b'" in refused(path, Template("m", "{b}"))
    assert "in2.parquet: not Parquet" in refused(written(tmp_path / "in2.parquet", "no"))


# --- folders ---------------------------------------------------------------------------------------------------


def test_a_file_of_a_folder_is_a_row(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "sub/c.txt", ".hidden", ".git/d.txt", "empty"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        written(tmp_path / name, "" if name == "empty" else f"it is\n{name}\n")
    assert asked(tmp_path, Template("m", "{file}: {text}")) == [
        "a.md: it is\na.md\n",
        "b.txt: it is\nb.txt\n",
        "empty: ",
        "sub/c.txt: it is\nsub/c.txt\n",
    ]


def test_an_image_in_a_folder_has_no_text(tmp_path: Path) -> None:
    written(tmp_path / "a.png", b"\x89PNG\r\n\x1a\n\xff")
    ((text, image),) = asked(tmp_path, Template("m", "What is on {file}? {text}", images=["file"]))
    assert text["text"] == "What is on a.png? "
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert "a.png: is an image: give --image file" in refused(tmp_path)
    written(tmp_path / "b.txt", b"x\n\xff")
    assert "b.txt:2: not UTF-8" in refused(tmp_path, Template("m", "{text}", images=["file"]))
    assert "b.txt' is no image" in refused(tmp_path, Template("m", "?", images=["file"]))


# --- what it takes ----------------------------------------------------------------------------------------------------

READ_ALL = """
import re, sys
from pathlib import Path
from autobatcher.jobs import Template, open_source

def peak():  # of this program alone: getrusage() counts what the one was that started it
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

template = None if sys.argv[1].endswith(".jsonl") else Template("m", "{text}")
source = open_source(sys.argv[1], template)  # which imports what it takes
before = peak()
count = sum(1 for _ in source.items())
print(count, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells the peak of memory only on Linux")
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_large_file_is_read_in_flat_memory(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"in.{ending}"
    count = 50_000
    texts = (f"{number} " + random.randbytes(1_000).hex() for number in range(count))
    if ending == "parquet":
        pa = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.table({"text": list(texts)}), path, row_group_size=count, compression=None)
    else:
        with path.open("w", encoding="utf-8") as file:
            file.write("text\n" if ending == "csv" else "")
            for number, text in enumerate(texts):
                file.write(
                    f"{text}\n" if ending == "csv" else line(f"c-{number}", json.dumps({"input": text}))
                )
    assert path.stat().st_size > 100_000_000
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(path)], capture_output=True, text=True, check=True
    )
    read, kilobytes = map(int, done.stdout.split())
    assert read == count
    assert kilobytes < (90_000 if ending == "parquet" else 16_000)  # pyarrow keeps what it has freed


# --- from a table to its answers -------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_table_is_answered(tmp_path: Path) -> None:
    path = written(tmp_path / "in.csv", "text,n\n" + "".join(f"é {n},{n}\n" for n in range(20)))
    with serve_in_thread(LocalConfig()) as serving:
        async with BatchOpenAI(api_key="k", base_url=serving.base_url, poll_interval_seconds=0.02) as client:
            done = await run(client, open_source(path, Template("m", "Say {text}")), tmp_path / "out.csv")
    assert (done.answered, done.failed) == (20, 0)
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["n"] for row in rows] == [str(n) for n in range(20)]
    assert all(f"Say é {n}" in row["answer"] for n, row in enumerate(rows))


@pytest.mark.anyio
async def test_a_batch_file_is_answered(tmp_path: Path) -> None:
    body = '{"model":"m","messages":[{"role":"user","content":"hi"}]}'
    path = written(tmp_path / "in.jsonl", "".join(line(name, body) for name in 'aé"'))
    with serve_in_thread(LocalConfig()) as serving:
        async with BatchOpenAI(api_key="k", base_url=serving.base_url, poll_interval_seconds=0.02) as client:
            done = await run(client, open_source(path), tmp_path / "out.jsonl")
    assert (done.answered, done.failed) == (3, 0)
    lines = (tmp_path / "out.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(each)["custom_id"] for each in lines] == ["a", "é", '"']


def test_it_takes_no_extras() -> None:
    hidden = (
        "import sys; sys.modules.update(dict.fromkeys(['typer', 'rich', 'uvicorn', 'starlette', 'pyarrow']))"
    )
    subprocess.run([sys.executable, "-c", f"{hidden}; import autobatcher.jobs"], check=True)
