"""Job files as nested dictionaries."""

import pytest

from dred.errors import JobError
from dred.jobs.document import load, override


def written(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_toml_and_yaml_say_the_same(tmp_path):
    toml = written(
        tmp_path, "a.toml", 'axis = 1\nformula = "x*y"\n[output]\npath = "o.npy"\n[variables.x]\ntype = "Vi(1)"\n'
    )
    yaml = written(tmp_path, "a.yaml", "axis: 1\nformula: x*y\noutput: {path: o.npy}\nvariables:\n  x: {type: Vi(1)}\n")
    assert load(toml) == load(yaml) == {
        "axis": 1, "formula": "x*y", "output": {"path": "o.npy"}, "variables": {"x": {"type": "Vi(1)"}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "{}", "a.json is no job file: its name ends in .toml, .yaml, .yml"),
        ("a.toml", "axis = ", "a.toml cannot be read: Invalid value (at end of document)"),
        ("a.toml", "axis = 1\naxis = 2\n", "a.toml cannot be read: Cannot overwrite a value (at line 2, column 9)"),
        ("a.yaml", "- 1\n- 2\n", "a.yaml holds no table of keys, but list"),
        ("a.yml", "", "a.yml holds no table of keys, but NoneType"),
    ],
)
def test_what_is_no_job_file_is_refused(tmp_path, name, text, said):
    with pytest.raises(JobError) as error:
        load(written(tmp_path, name, text))
    assert str(error.value) == f"{tmp_path}/{said}"


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(JobError, match=r"none\.toml cannot be read: .*No such file"):
        load(tmp_path / "none.toml")


def test_yaml_makes_no_objects(tmp_path):
    ran = tmp_path / "ran"
    path = written(tmp_path, "a.yaml", f"axis: !!python/object/apply:os.mkdir ['{ran}']\n")
    with pytest.raises(JobError, match="could not determine a constructor"):
        load(path)
    assert not ran.exists()


def test_values_are_read_as_in_toml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"axis": 1, "reductions": [{"formula": "x"}], "output": {"path": "a.npy"}}
    texts = ["axis=0", "verify = 3", "nan=error", "formula=Exp(x+y)", 'dtype="float32"', "output.path=sub/b.npy",
             "reductions.0.opt_arg=5", "variables.p.value=[1.5, 2]", "cluster.workers=4", "output.overwrite=true",
             "report=r.html", "variables.x.path=s3://bucket/x.npy"]  # fmt: skip
    assert override(given, texts) == {
        "axis": 0, "verify": 3, "nan": "error", "formula": "Exp(x+y)", "dtype": "float32", "cluster": {"workers": 4},
        "output": {"path": f"{tmp_path}/sub/b.npy", "overwrite": True}, "report": f"{tmp_path}/r.html",
        "reductions": [{"formula": "x", "opt_arg": 5}],
        "variables": {"p": {"value": [1.5, 2]}, "x": {"path": "s3://bucket/x.npy"}},
    }  # fmt: skip
    assert given == {"axis": 1, "reductions": [{"formula": "x"}], "output": {"path": "a.npy"}}  # as it was


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("axis", "'axis' is no KEY=VALUE, such as axis=1 or output.path=out.npy"),
        ("=1", "'=1' is no KEY=VALUE, such as axis=1 or output.path=out.npy"),
        ("a..b=1", "'a..b=1' is no KEY=VALUE, such as axis=1 or output.path=out.npy"),
        ("axis.b=1", "'axis.b=1': there is no axis.b, what it would be in is 1"),
        (
            "reductions.1.opt_arg=1",
            "'reductions.1.opt_arg=1': there is no reductions.1, what it would be in is a list of 1",
        ),
        ("reductions.x=1", "'reductions.x=1': there is no reductions.x, what it would be in is a list of 1"),
    ],
)
def test_what_cannot_be_overridden(text, said):
    with pytest.raises(JobError) as error:
        override({"axis": 1, "reductions": [{}]}, [text])
    assert str(error.value) == said


def test_a_value_cannot_say_more_than_its_key():
    assert override({}, ["formula=1\naxis = 0"]) == {"formula": "1\naxis = 0"}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("j.yaml", "a: &a [*a]", r"\*a in line 1 is an alias: write it out"),
        ("j.yaml", "a: " + "[" * 500 + "]" * 500, "it nests too deeply"),
        ("j.toml", "a = " + "[" * 3000 + "]" * 3000, "it nests too deeply"),
    ],
)
def test_what_is_small_and_stands_for_much_is_refused(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(JobError, match=f"{name} cannot be read: {said}"):
        load(tmp_path / name)


def test_paths_within_tables_are_relative_to_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = override({}, ['variables={x={type="Vi(1)", path="x.npy"}}', 'cotangents=[{path="e.npy", columns=["a"]}]'])
    assert found["variables"]["x"] == {"type": "Vi(1)", "path": f"{tmp_path}/x.npy"}
    assert found["cotangents"] == [{"path": f"{tmp_path}/e.npy", "columns": ["a"]}]
    assert override({}, ["work=2026-01-01"]) == {"work": f"{tmp_path}/2026-01-01"}
