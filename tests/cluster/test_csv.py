"""Columns of csv: what is read is what float() makes of the text, and what is no number is named by row and line."""

import os
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dred.cluster import sources, stored_csv
from dred.errors import InputError, MissingPackageError


def store(folder, text, name="a.csv"):
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def values(rows, columns=3):
    rng = np.random.default_rng(0)
    return rng.standard_normal((rows, columns)) * 10.0 ** rng.integers(-300, 300, (rows, columns))


def text_of(array, sign=",", end="\n", names=None):
    lines = [sign.join(names)] if names else []
    return end.join([*lines, *(sign.join(map(repr, row)) for row in array.tolist())])


def read(path, **more):
    source = sources.open_source(path, **more)
    return sources.read(source, 0, source.rows)


def refused(path, **more):
    with pytest.raises(InputError) as caught:
        sources.open_source(path, **more)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("sign", [",", ";", "\t", " ", ", ", " ;", "   "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("names", [None, ["u", "v", "w"]])
@pytest.mark.parametrize("last", ["", "\n", "\n\n"])
def test_signs_between_fields_and_lines(tmp_path, sign, end, names, last):
    array = values(20)
    path = store(tmp_path, text_of(array, sign, end, names) + last.replace("\n", end))
    source = sources.open_source(path)
    assert (source.shape, source.dtype, source.unit) == ((20, 3), "float64", 20)
    assert sources.read(source, 3, 17).tobytes() == array[3:17].tobytes()
    assert len(pickle.dumps(source)) < 700
    assert pickle.loads(pickle.dumps(source)) == source


@pytest.mark.parametrize("quotes", [False, True])
@given(st.data())
@settings(max_examples=40)
def test_any_rows_of_any_pieces(tmp_path_factory, quotes, data):
    """Blocks end anywhere, in quotes too, and pieces are few and small."""
    array = values(data.draw(st.integers(1, 60)), 2)
    note = ',"a ""b"",\n\r\n;c"' if quotes else ""
    end = data.draw(st.sampled_from(["\n", "\r\n", "\n\n", "\r\n\r\n"]))
    text = "\n#a comment\r\n#\n\nu,v" + (",note" if quotes else "") + "\n"
    text += end.join(f"{u!r},{v!r}{note}" for u, v in array.tolist()) + data.draw(st.sampled_from(["", "\n", "\n\n"]))
    path = store(tmp_path_factory.mktemp("csv"), ("\ufeff" if data.draw(st.booleans()) else "") + text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_csv, "BLOCK", data.draw(st.integers(1, 200)))
        patch.setattr(stored_csv, "ROWS", data.draw(st.integers(1, 8)))
        patch.setattr(stored_csv, "MOST", data.draw(st.integers(1, 8)))
        source = sources.open_source(path, ["u", "v"])
        assert source.shape == array.shape
        assert len(source.details[-1]) <= 8 * (stored_csv.MOST + 1)
        start, stop = sorted(data.draw(st.tuples(*2 * [st.integers(0, len(array))])))
        assert sources.read(source, start, stop).tobytes() == array[start:stop].tobytes()


def test_numbers_are_those_of_python(tmp_path):
    words = ["1", "-0", "+1.5", ".5", "2.", "1e5", "1E-3", "nan", "inf", "-inf", "Infinity", "4.9e-324", "1e400",
             "1e-400", "0.1", "9007199254740993", '"7.5"', " 8 "]  # fmt: skip
    path = store(tmp_path, "\n".join(words))
    expected = np.array([[float(word.strip('"'))] for word in words])
    assert read(path).tobytes() == expected.tobytes()
    assert np.array_equal(read(path, dtype="float32")[:3], expected[:3].astype("f4"))


def test_columns(tmp_path):
    path = store(tmp_path, 'id,u,"v, w",id\na,1,2,3\n"b\nc",4,5,6\n')
    assert read(path, columns=["v, w", "u"]).tolist() == [[2, 1], [5, 4]]
    assert read(path, columns="u").tolist() == [[1], [4]]
    assert read(path, columns=["u", "u"]).tolist() == [[1, 1], [4, 4]]
    assert refused(path, columns=["x"]) == f"{path} has 0 columns 'x': it has id, u, v, w, id"
    assert refused(path, columns=["id"]) == f"{path} has 2 columns 'id': it has id, u, v, w, id"
    assert (
        refused(path, columns=[]) == f"{path}: no columns are chosen among id, u, v, w, id: name some by columns=[...]"
    )
    assert refused(path) == (
        f"row 0 of {path} (line 2) has 'a' in column 'id', which is no number: name the columns of numbers by "
        "columns=[...]"
    )
    path = store(tmp_path, "1,2\n3,4\n")
    assert read(path).tolist() == [[1, 2], [3, 4]]
    assert refused(path, columns=["u"]) == f"columns=['u']: {path} has no line of names, leave it out and take all 2"


def test_names_alone_are_an_array_of_no_rows(tmp_path):
    source = sources.open_source(store(tmp_path, "u,v\n"))
    assert (source.shape, source.unit) == ((0, 2), 1)
    assert sources.read(source, 0, 0).shape == (0, 2)


BAD = {
    "u,v\n1,2\n3,x\n": "row 1 of {} (line 3) has 'x' in column 'v', which is no number: name the columns of numbers by "
    "columns=[...]",
    "u,v\r\n1,2\r\n\r\n3,\r\n": "row 1 of {} (line 4) has no value in column 'v': fill it or leave the row out",
    "1,,3\n": "row 0 of {} (line 1) has no value in column '1': fill it or leave the row out",
    "#\n#\n1,2\n3\n": "row 1 of {} (line 4) has 1 fields, and the first line has 2",
    "1 2\n3 4 5\n": "row 1 of {} (line 2) has 3 fields, and the first line has 2",
    'u,v\n"1\n",2\n3,4,5\n': "row 1 of {} (line 4) has 3 fields, and the first line has 2",
    "u\n1\n0x10\n": "row 1 of {} (line 3) has '0x10' in column 'u', which is no number: name the columns of numbers by "
    "columns=[...]",
    "": "{} is empty: it has no line of numbers, nor one of names",
    "# nothing\n\n": "{} is empty: it has no line of numbers, nor one of names",
    "# nothing": "{} is empty: it has no line of numbers, nor one of names",
    '1\n"2\n3\n': "{}: the quote in the line that begins at byte 2 is not closed",
    "1\r2\n3\n": "{} has lines that end in CR alone: let them end in LF or CRLF",
    "1 2\n  \n3 4\n": "rows 0:3 of {} are 2 when they are parsed: are there lines of blanks alone, or quotes that do "
    "not close?",
    "\ufeffu\n1\n".encode("utf-16"): "{} is no text in UTF-8 (it has other bytes, such as NUL): store it as UTF-8, "
    "not packed",
    b"u,\xe4\n1,2\n": "the names in {} are not in UTF-8 ('utf-8' codec can't decode byte 0xe4 in position 2: "
    "unexpected end of data): store it as UTF-8",
}


@pytest.mark.parametrize("text", BAD, ids=map(repr, range(len(BAD))))
def test_what_is_refused(tmp_path, text):
    path = store(tmp_path, text)
    assert refused(path) == BAD[text].format(path)


def test_packed_files(tmp_path):
    path = store(tmp_path, b"\x1f\x8b", "a.csv.gz")
    assert refused(path) == f"{path} is compressed, so that no row can be read without all before it: unpack it"


def test_a_line_without_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(stored_csv, "LONGEST", 1000)
    monkeypatch.setattr(stored_csv, "BLOCK", 100)
    path = store(tmp_path, '1\n"2\n' + "3\n" * 2000 + '"\n')
    assert refused(path) == (f"{path}: the line that begins at byte 2 has no end within 1 kB: is a quote not closed?")


def test_a_bad_row_is_found_by_the_task_that_reads_it(tmp_path, monkeypatch):
    monkeypatch.setattr(stored_csv, "ROWS", 5)
    path = store(tmp_path, "# about\nu,v\n" + "1,2\n" * 23 + "3,oh\n" + "5,6\n" * 9)
    source = sources.open_source(path)
    assert (source.rows, source.unit) == (33, 5)
    assert sources.read(source, 0, 20).shape == (20, 2)
    assert sources.read(source, 25, 33).shape == (8, 2)
    with pytest.raises(InputError) as caught:
        sources.read(source, 21, 22)
    assert str(caught.value) == (
        f"row 23 of {path} (line 26) has 'oh' in column 'v', which is no number: name the columns of numbers by "
        "columns=[...]"
    )


@pytest.mark.parametrize("how", ["grown", "cut", "gone"])
def test_a_file_that_changed(tmp_path, how):
    path = store(tmp_path, text_of(values(20)))
    source = sources.open_source(path)
    if how == "gone":
        path.unlink()
    else:
        os.truncate(path, 100) if how == "cut" else path.write_bytes(path.read_bytes() + b"\n1,2,3\n")
    with pytest.raises(InputError, match=rf"^{path} (changed since it was opened|is not there)"):
        sources.read(source, 0, 20)


def test_only_pieces_with_wanted_rows_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(stored_csv, "ROWS", 5)
    source = sources.open_source(store(tmp_path, text_of(values(100))))
    seen, plain = [], stored_csv._parsed
    monkeypatch.setattr(stored_csv, "_parsed", lambda *args: seen.append(args[3]) or plain(*args))
    sources.read(source, 12, 20)
    assert seen == [10, 15]


def test_a_package_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.csv", None)
    with pytest.raises(MissingPackageError, match=r"^reading csv needs the package pyarrow, which cannot be imported"):
        sources.open_source(store(tmp_path, "1"))
