"""The claim: a table that is damaged, odd or made to harm is read right, or refused in one line
that says where and why. None crashes, hangs or loses a row."""

import bz2
import gzip
import io
import lzma
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.cli.compose import compose
from runner.config.schema import parse
from runner.data import table_files
from runner.errors import ConfigError

NUL = r"has the control character '\x00'; remove it"
NO_NUMBER = "where other cells are numbers"
NO_COLUMN = "has no column besides the target"
ONE_CLASS = "has a single class"
UTF_8 = "cannot be read as CSV in UTF-8: line "


def text(*cells: str, label: str = "uv", header: str = "a,y") -> bytes:
    """A row for each cell, with the labels u and v by turns."""
    rows = [f"{cell},{label[i % 2]}" for i, cell in enumerate(cells)]
    return "\n".join([header, *rows, ""]).encode()


def labels(*names: str) -> bytes:
    """The rows 1, 2, ... with these labels."""
    return "\n".join(["a,y", *(f"{i},{name}" for i, name in enumerate(names, 1)), ""]).encode()


def zipped(*files: tuple[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return content.getvalue()


PLAIN = text("1", "2")
GZIP = gzip.compress(PLAIN, mtime=0)

# The values of a and the labels; the expected values are what a reader of the bytes writes down
READ: dict[str, tuple[bytes, list[float], list[str]]] = {
    name: (content, values, ["u", "v"])
    for name, (content, values) in {
        "as it is": (PLAIN, [1, 2]),
        "a byte order mark": (b"\xef\xbb\xbf" + PLAIN, [1, 2]),
        "CRLF": (PLAIN.replace(b"\n", b"\r\n"), [1, 2]),
        "CR": (PLAIN.replace(b"\n", b"\r"), [1, 2]),
        "mixed line ends": (b"a,y\r\n1,u\n2,v\r", [1, 2]),
        "no last line end": (PLAIN[:-1], [1, 2]),
        "blank lines": (b"\n\na,y\n\n1,u\n\n2,v\n\n", [1, 2]),
        "blank lines, CRLF": (b"\r\na,y\r\n\r\n1,u\r\n2,v\r\n", [1, 2]),
        "spaces around cells": (b"a , y \n 1 , u \n 2 , v \n", [1, 2]),
        "tabs": (PLAIN.replace(b",", b"\t"), [1, 2]),
        "semicolons": (PLAIN.replace(b",", b";"), [1, 2]),
        "pipes": (PLAIN.replace(b",", b"|"), [1, 2]),
        "UTF-16": (PLAIN.decode().encode("utf-16"), [1, 2]),
        "UTF-16, big endian": (b"\xfe\xff" + PLAIN.decode().encode("utf-16-be"), [1, 2]),
        "quotes": (b'"a","y"\n"1","u"\n"2","v"\n', [1, 2]),
        "spaces of another kind": (labels("\u00a0u", "v"), [1, 2]),
        "the header is numbers": (b"1,2\n3,u\n4,v\n", [3, 4]),
        "an underflow": (text("1e-400", "2"), [0, 2]),
        "the least number": (text("5e-324", "2"), [5e-324, 2]),
        "the largest number": (text("1.7976931348623157e308", "2"), [1.7976931348623157e308, 2]),
        "beyond int64": (text("9223372036854775808", "2"), [2.0**63, 2]),
        "beyond uint64": (text("18446744073709551616", "2"), [2.0**64, 2]),
        "a hundred digits": (text("9" * 100, "2"), [1e100, 2]),
        "a number between doubles": (text("9007199254740993", "2"), [9007199254740992, 2]),
        "hexadecimal": (text("0x10", "2"), [16, 2]),
        "leading zeros": (text("010", "2"), [10, 2]),
        "a plus": (text("+1", "2"), [1, 2]),
        "points without digits": (text(".5", "2."), [0.5, 2]),
        "minus zero": (text("-0.0", "0"), [-0.0, 0]),
        "decimal commas": (b"a;y\n1,5;u\n2,5;v\n", [1.5, 2.5]),
        "Arabic digits": (text("\u0661", "\u0662"), [1, 2]),
        "wide digits": (text("\uff11", "\uff12"), [1, 2]),
        "words of truth": (text("True", "false"), [1, 0]),
        "a word of truth and a number": (text("True", "1"), [1, 1]),
        "dates": (text("2024-02-29", "2024-03-01"), [19782, 19783]),
        "times of days": (text("2024-01-01 12:00:00", "2024-01-02 00:00:00"), [19723.5, 19724]),
        "zones": (text("2024-01-01T12:00:00Z", "2024-01-02T02:00:00+02:00"), [19723.5, 19724]),
        "the year 0": (text("0000-01-01", "1970-01-01"), [-719528, 0]),
        "the year 9999": (text("9999-12-31", "1970-01-01"), [2932896, 0]),
        "times": (text("12:00:00", "13:30:00"), [0.5, 0.5625]),
        "gzip": (GZIP, [1, 2]),
        "bzip2": (bz2.compress(PLAIN), [1, 2]),
        "xz": (lzma.compress(PLAIN), [1, 2]),
        "zip": (zipped(("a.csv", PLAIN)), [1, 2]),
        "zip with a folder": (zipped(("d/", b""), ("d/a.csv", PLAIN)), [1, 2]),
        "a name of 100,000 letters": (text("1", "2", header="a" * 100_000 + ",y"), [1, 2]),
    }.items()
} | {
    name: (labels(*written), [1.0, 2.0], expected)
    for name, (written, expected) in {
        "a line end in quotes": (('"u\nx"', "v"), ["u\nx", "v"]),
        "a CRLF in quotes": (('"u\r\nx"', "v"), ["u\r\nx", "v"]),
        "a separator in quotes": (('"u,x"', "v"), ["u,x", "v"]),
        "doubled quotes": (('"u""x"', "v"), ['u"x', "v"]),
        "a quote within a cell": (('u"x', "v"), ['u"x', "v"]),
        "text after a quote": (('"u"x', "v"), ["ux", "v"]),
        "a space before a quote": ((' "u"', "v"), ['"u"', "v"]),
        "a backslash": (('"u\\"', "v"), ["u\\", "v"]),
        "a label that means missing elsewhere": (("NA", "v"), ["NA", "v"]),
        "labels of equal numbers": (("1", "1.0"), ["1", "1.0"]),
        "labels in two cases": (("u", "U"), ["u", "U"]),
        "an emoji": (("\U0001f600", "v"), ["\U0001f600", "v"]),
        "composed and decomposed": (("e\u0301", "\u00e9"), ["e\u0301", "\u00e9"]),
        "an invisible space": (("u\u200b", "u"), ["u\u200b", "u"]),
        "a cell of 100,000 letters": (("u" * 100_000, "v"), ["u" * 100_000, "v"]),
    }.items()
}  # fmt: skip
READ["two members of gzip"] = (GZIP + gzip.compress(b"3,u\n"), [1, 2, 3], ["u", "v", "u"])

REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is empty"),
    "a line end": (b"\n", "is empty"),
    "a byte order mark alone": (b"\xef\xbb\xbf", "is empty"),
    "spaces": (b"   ", NO_COLUMN),
    "a header": (b"a,y\n", "holds no rows"),
    "a header without a line end": (b"a,y", "holds no rows"),
    "one row": (labels("u"), ONE_CLASS),
    "one column": (b"y\nu\nv\n", NO_COLUMN),
    "one cell": (b"a", NO_COLUMN),
    "one class": (labels("u", "u"), ONE_CLASS),
    "one class but for spaces": (labels(" u", "u "), ONE_CLASS),
    "NUL in the header": (b"a\x00,y\n1,u\n2,v\n", f"line 1 {NUL}"),
    "NUL in a cell": (b"a,y\n1\x00,u\n2,v\n", f"line 2 {NUL}"),
    "NUL in a label": (b"a,y\n1,u\n2,v\x00\n", f"line 3 {NUL}"),
    "NUL at the end": (PLAIN + b"\x00", f"line 4 {NUL}"),
    "nothing but NUL": (b"\x00" * 100, f"line 1 {NUL}"),
    "UTF-16 without a mark": (PLAIN.decode().encode("utf-16-le"), f"line 1 {NUL}"),
    "UTF-32": (PLAIN.decode().encode("utf-32"), f"line 1 {NUL}"),
    "half of a UTF-16 letter": (PLAIN.decode().encode("utf-16")[:-1], "cannot be read in utf-16"),
    "the end of a DOS file": (PLAIN + b"\x1a", r"line 4 has the control character '\x1a'"),
    "an escape": (labels("\x1b[31mu", "v"), r"column y has the control character '\x1b'"),
    "an escape in the header": (b"\x1b[31m" + PLAIN, r"line 1 has the control character '\x1b'"),
    "a bell": (labels("u\x07", "v"), r"column y has the control character '\x07'"),
    "delete": (labels("u\x7f", "v"), r"column y has the control character '\x7f'"),
    "a C1 character": (labels("u\x85", "v"), r"column y has the control character '\x85'"),
    "a line separator": (labels("u\u2028x", "v"), r"column y has the control character '\u2028'"),
    "latin-1": (b"a,y\n1,\xfc\n2,v\n", f"{UTF_8}2 has the byte 0xfc"),
    "latin-1, lines of CR": (b"a,y\r1,v\r2,\xfc\r", f"{UTF_8}3 has the byte 0xfc"),
    "latin-1 in the header": (b"\xfc,y\n1,u\n2,v\n", f"{UTF_8}1 has the byte 0xfc"),
    "half of a UTF-8 letter": (b"a,y\n1,u\n2,\xc3\n", f"{UTF_8}3 has the byte 0xc3"),
    "a surrogate": (b"a,y\n1,\xed\xa0\x80\n2,v\n", f"{UTF_8}2 has the byte 0xed"),
    "an overlong letter": (b"a,y\n1,\xc0\xaf\n2,v\n", f"{UTF_8}2 has the byte 0xc0"),
    "a quote that is not closed": (labels('"u', "v", "u"), "line 2 has a quote that is not closed"),
    "the last one is not closed": (labels("u", '"v', "u"), "line 3 has a quote that is not closed"),
    "a name that is not closed": (b'"a,y\n1,u\n2,v\n', "contains a line break"),
    "a line break in a name": (b'"a\nb",y\n1,u\n2,v\n', "contains a line break"),
    "single quotes": (labels("'u,x'", "v"), "line 2 has 3 cells, the header has 2"),
    "empty quotes": (labels('""', "v"), "line 2, column y is empty"),
    "a short row": (b"a,b,y\n1,2,u\n3,v\n", "line 3 has 2 cells, the header has 3"),
    "a long row": (b"a,y\n1,u,9\n2,v\n", "line 2 has 3 cells, the header has 2"),
    "separators at the ends": (b"a,y,\n1,u,\n2,v,\n", 'line 2, column "" is empty (2 such rows)'),
    "separators at the rows' ends": (b"a,y\n1,u,\n2,v,\n", "line 2 has 3 cells"),
    "a name that is empty": (b",y\n1,u\n2,v\n", "column 1 has no name"),
    "two names that are empty": (b",,y\n1,2,u\n3,4,v\n", 'repeats column names: ""'),
    "two equal names": (b"a,a,y\n1,2,u\n3,4,v\n", "repeats column names: a"),
    "equal names but for a space": (b"a, a,y\n1,2,u\n3,4,v\n", "repeats column names: a"),
    "a comment": (b"# made by x\n" + PLAIN, NO_COLUMN),
    "a separator line": (b"sep=;\na;y\n1;u\n2;v\n", f"is 'a' {NO_NUMBER}"),
    "a title": (b"My table\n\n" + PLAIN, NO_COLUMN),
    "a line of units": (b"a,y\nm,kind\n1,u\n2,v\n", f"line 2, column a is 'm' {NO_NUMBER}"),
    "a sum": (PLAIN + b"Total: 3\n", "line 4 has 1 cell, the header has 2"),
    "a sum in a column": (PLAIN + b"Total,\n", "line 4, column y is empty"),
    "a repeated header": (b"a,y\n1,u\na,y\n2,v\n", f"line 3, column a is 'a' {NO_NUMBER}"),
    "HTML": (b"<html><body>404</body></html>", NO_COLUMN),
    "JSON": (b'[{"a":1,"y":"u"}]', "holds no rows"),
    "PDF": (b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", NO_COLUMN),
    "SQLite": (b"SQLite format 3\x00" + b"\x00" * 80, NUL),
    "a pickle": (b"\x80\x04\x95\x10\x00\x00\x00.", NUL),
    "NPY": (b"\x93NUMPY\x01\x00v\x00{'descr': '<f8'", NUL),
    "a workbook": (zipped(("[Content_Types].xml", b"x"), ("xl/a.xml", b"y")), "must hold one file"),
    "1e400": (text("1", "1e400"), "line 3, column a is inf; all values must be finite"),
    "-1e400": (text("-1e400", "2"), "line 2, column a is -inf; all values must be finite"),
    "infinity": (text("inf", "2"), "line 2, column a is inf"),
    "minus infinity": (text("-Infinity", "2"), "line 2, column a is -inf"),
    "400 digits": (text("9" * 400, "2"), "line 2, column a is inf"),
    "NaN": (text("nan", "2"), "missing cells in a (1, first in line 2)"),
    "None": (text("1", "None"), "missing cells in a (1, first in line 3)"),
    "a space for a number": (text(" ", "2"), "missing cells in a (1, first in line 2)"),
    "an empty column": (b"a,b,y\n,1,u\n,2,v\n", "column a is empty"),
    "a label that is empty": (labels("", "v"), "line 2, column y is empty"),
    "a dash": (text("-", "2"), f"line 2, column a is '-' {NO_NUMBER}"),
    "a question mark": (text("?", "2"), f"line 2, column a is '?' {NO_NUMBER}"),
    "an underscore": (text("1_000", "2"), f"is '1_000' {NO_NUMBER}"),
    "a thousands separator": (text('"1,000"', "2"), f"is '1,000' {NO_NUMBER}"),
    "thousands separators": (text('"1,000"', '"2,000"'), "must have no thousands separator"),
    "half of an exponent": (text("1e", "2"), f"is '1e' {NO_NUMBER}"),
    "two signs": (text("--1", "2"), f"is '--1' {NO_NUMBER}"),
    "two points": (text("1.2.3", "2"), f"is '1.2.3' {NO_NUMBER}"),
    "the sign of typesetters": (text("\u22121", "2"), NO_NUMBER),
    "a word": (text("1", "x"), f"line 3, column a is 'x' {NO_NUMBER}"),
    "a date and a number": (text("2024-01-01", "5"), f"is '2024-01-01' {NO_NUMBER}"),
    "a formula": (text("=1+1", "2"), f"is '=1+1' {NO_NUMBER}"),
    "gzip, cut off": (GZIP[:-9], "cannot be decompressed as gzip"),
    "gzip with a wrong sum": (GZIP[:-8] + b"\x00" * 8, "cannot be decompressed as gzip: CRC"),
    "gzip with more after it": (GZIP + b"junk", "cannot be decompressed as gzip"),
    "gzip in gzip": (gzip.compress(GZIP, mtime=0), NUL),
    "bzip2, cut off": (bz2.compress(PLAIN)[:-5], "cannot be decompressed as bzip2"),
    "xz, cut off": (lzma.compress(PLAIN)[:-5], "cannot be decompressed as xz"),
    "zip, cut off": (zipped(("a.csv", PLAIN))[:-10], "cannot be decompressed as zip"),
    "zip of two files": (zipped(("a.csv", PLAIN), ("b.csv", PLAIN)), "must hold one file, got 2"),
    "zstd of noise": (b"\x28\xb5\x2f\xfd" + b"x" * 30, "cannot be decompressed as zstd"),
    "Parquet of noise": (b"PAR1" + b"x" * 50 + b"PAR1", "cannot be read as Parquet"),
    "four bytes of Parquet": (b"PAR1", "cannot be read as Parquet"),
    "Arrow of noise": (b"ARROW1" + b"x" * 50, "cannot be read as Arrow"),
    "a stream of noise": (b"\xff\xff\xff\xff" + b"\x00" * 20, "cannot be read as Arrow"),
    "old Feather": (b"FEA1", "is in the first version of Feather"),
}


@pytest.fixture(scope="module")
def section() -> Any:
    keys = ["data.val_fraction=0", "data.test_fraction=0", "data.split=chronological"]
    keys += ["data=table", "data.path=x", "data.standardize=false"]
    return parse(compose(keys)).data


def test_odd_tables_are_read_right(section: Any, tmp_path: Path) -> None:
    path = tmp_path / "table"
    for name, (content, values, expected) in READ.items():
        path.write_bytes(content)
        data = section.model_copy(update={"path": str(path)}).load()
        np.testing.assert_array_equal(data.train.x[:, 0], values, err_msg=name)
        assert [data.classes[i] for i in data.train.y] == expected, name


def test_what_cannot_be_read_is_refused_in_one_line(section: Any, tmp_path: Path) -> None:
    path = tmp_path / "table"
    for name, (content, message) in REFUSED.items():
        path.write_bytes(content)
        with pytest.raises(ConfigError) as refused:
            section.model_copy(update={"path": str(path)}).load()
        assert message in str(refused.value), (name, str(refused.value))
        assert len(str(refused.value).splitlines()) == 1, name


def test_a_sparse_file_and_a_bomb_do_not_fill_the_memory(
    section: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of 2 GiB without content is refused at its first byte. What is larger than a quarter
    of the memory, as it is or decompressed, is not read on."""
    path = tmp_path / "table"
    with path.open("wb") as file:
        file.truncate(2**31)
    monkeypatch.setattr(table_files, "memory", lambda: 2**34)
    with pytest.raises(ConfigError, match=re.escape(f"line 1 {NUL}")):
        section.model_copy(update={"path": str(path)}).load()
    monkeypatch.setattr(table_files, "memory", lambda: 2**22)
    with pytest.raises(ConfigError, match="more than a quarter of this machine's"):
        section.model_copy(update={"path": str(path)}).load()
    bomb = b"a,y\n" + b"1,u\n2,v\n" * 2**18  # 2 MiB
    for content in (gzip.compress(bomb), bz2.compress(bomb), zipped(("a.csv", bomb))):
        path.write_bytes(content)
        assert len(content) < 2**16
        with pytest.raises(ConfigError, match="GiB, a quarter of this machine's memory"):
            section.model_copy(update={"path": str(path)}).load()
