"""What a document of a job must say, and what it must not."""

import os

import pytest

from dred.errors import JobError
from dred.jobs import job as jobs
from dred.jobs.job import Data, Job, Place
from tests.jobs.cases import document

HERE = "/points"


def of(**more):
    return Job.of({k: v for k, v in document(**more).items() if v is not None}, HERE)


def test_a_document_as_a_job():
    job = of(
        dtype="float32", verify=3, report="r.html", options={"sum_scheme": "direct_sum"}, nan="error",
        cluster={"workers": 2, "memory": "1 GiB", "scheduler_file": "s.json"}, dask={"dred.plan.arity": 4},
    )  # fmt: skip
    assert job.aliases == ("x = Vi(3)", "y = Vj(3)", "b = Vj(1)", "g = Pm(1)")
    assert job.data[0] == Data("variables.x", "/points/x.npy")
    assert job.data[3] == Data("variables.g", value=0.5)
    assert job.outputs == ("/points/out.npy",)
    assert job.work == "/points/.out.npy.dred"
    assert (job.report, job.nan, job.verify, job.dtype) == ("/points/r.html", "error", 3, "float32")
    assert job.place == Place(scheduler_file="/points/s.json", workers=2, memory="1 GiB")
    assert job.routine().reduction_op == "Sum"
    assert job.formulas == "Sum, Exp(-g*SqDist(x,y))*b; axis 1"


def test_paths_are_what_they_say_and_nothing_is_expanded():
    variables = document()["variables"]
    variables["x"]["path"], variables["y"]["path"], variables["b"]["path"] = (
        "../up/x.npy",
        "~/y.npy",
        "s3://a/$HOME.npy",
    )
    job = of(variables=variables, output={"path": "/tmp/$USER/out.npy"})
    assert [data.path for data in job.data[:3]] == ["/up/x.npy", "/points/~/y.npy", "s3://a/$HOME.npy"]
    assert job.outputs == ("/tmp/$USER/out.npy",)


def test_work_of_a_url_is_in_the_present_folder():
    assert of(output={"path": "s3://bucket/out.zarr"}).work == os.path.join(os.getcwd(), ".out.zarr.dred")


def test_several_reductions_and_a_gradient():
    two = [{"formula": "SqDist(x,y)*b*g", "reduction": "KMin_ArgKMin", "opt_arg": 3}, {"formula": "x*y*b*g"}]
    job = of(formula=None, reduction=None, reductions=two, output={"paths": ["d.npy", "n.npy", "s.npy"]})
    assert job.several
    assert job.routine().reduction_op == ("KMin_ArgKMin", "Sum")
    assert job.formulas == "KMin_ArgKMin, SqDist(x,y)*b*g, 3; Sum, x*y*b*g; axis 1"
    gradient = of(gradient="y", cotangents=[{"path": "e.npy"}])
    assert gradient.data[-1] == Data("cotangents.0", "/points/e.npy")
    assert gradient.routine().axis == 0


def variables(**more):
    return {**document()["variables"], **more}


REFUSED = {
    "no axis": (
        {"axis": None},
        "the job does not say axis: 1: reduced over j, a result for each i; 0: over i, a result for each j",
    ),
    "no formula": ({"formula": None}, "the job does not say formula: the formula F(p, x_i, y_j)"),
    "no output": ({"output": None}, "the job does not say output: where results go"),
    "unknown key": ({"reducton": "Sum"}, "the job has an unknown key 'reducton': did you mean reduction?"),
    "unknown key of a table": (
        {"output": {"file": "a"}},
        "output has an unknown key 'file': there are path, paths, overwrite",
    ),
    "kind": ({"axis": "1"}, "axis of the job is a whole number, got '1': " + jobs.JOB["axis"].doc),
    "truth is no number": (
        {"verify": True},
        "verify of the job is a whole number, got True: " + jobs.JOB["verify"].doc,
    ),
    "choice": ({"nan": "ignore"}, "nan of the job is propagate or error, got 'ignore': " + jobs.JOB["nan"].doc),
    "axis 2": ({"axis": 2}, "axis of the job is 0 or 1, got 2: " + jobs.JOB["axis"].doc),
    "least": ({"cluster": {"workers": 0}}, "workers of cluster is at least 1, got 0: " + jobs.CLUSTER["workers"].doc),
    "no table": ({"variables": {"x": "x.npy"}}, "variables.x is a table of keys, got 'x.npy'"),
    "no type": (
        {"variables": {"x": {"path": "x.npy"}}},
        "variables.x does not say its type: Vi(dim), Vj(dim) or Pm(dim)",
    ),
    "two sources": (
        {"variables": variables(x={"type": "Vi(3)", "path": "x.npy", "value": 1})},
        "variables.x says either path or value",
    ),
    "no source": ({"variables": variables(x={"type": "Vi(3)"})}, "variables.x says either path or value"),
    "columns": (
        {"variables": variables(x={"type": "Vi(3)", "path": "x.csv", "columns": [1]})},
        "columns of variables.x are names of columns, got [1]",
    ),
    "both": (
        {"reductions": [{"formula": "x"}]},
        "the job says reductions and formula: put formula into the items of reductions",
    ),
    "item": (
        {"formula": None, "reduction": None, "reductions": [{"reduction": "Sum"}]},
        "reductions.0 does not say formula: the formula F(p, x_i, y_j)",
    ),
    "cotangents": (
        {"cotangents": [{"path": "e.npy"}]},
        "cotangents are for a gradient: name the variable by gradient = ..., or leave them out",
    ),
    "output twice": (
        {"output": {"path": "a.npy", "paths": []}},
        "output says either path, or the paths of several arrays",
    ),
    "output over input": (
        {"output": {"path": "x.npy"}},
        "output 0 would be written to /points/x.npy, and variables.x is /points/x.npy: name another path",
    ),
    "output around input": (
        {"output": {"path": "/points"}},
        "output 0 would be written to /points, and variables.x is /points/x.npy: name another path",
    ),
    "output within work": (
        {"work": "out.npy"},
        "work would be written to /points/out.npy, and output 0 is /points/out.npy: name another path",
    ),
    "work is a URL": ({"work": "s3://bucket/points"}, "work is a path, got s3://bucket/points"),
    "null": ({"output": {"path": "a\0.npy"}}, "path of output is no path: 'a\\x00.npy'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    more, said = REFUSED[case]
    with pytest.raises(JobError) as error:
        of(**more)
    assert str(error.value) == said


@pytest.mark.parametrize(
    "settings",
    [
        {"distributed.worker.preload": ["evil.py"]},
        {"distributed": {"scheduler": {"preload": ["evil.py"]}}},
        {"distributed.nanny.pre-spawn-environ": {"LD_PRELOAD": "evil.so"}},
        {"temporary-directory": "/elsewhere"},
        {1: 2},
    ],
)
def test_settings_that_name_code_or_places_are_refused(settings):
    with pytest.raises(
        JobError, match=r"dask says .*, which is for Dask's own files of configuration: a job may say dred"
    ):
        of(dask=settings)


def test_settings_by_their_whole_names():
    job = of(dask={"dred": {"plan": {"arity": 4}}, "distributed.worker.memory": {"spill": 0.7}})
    assert job.dask == {"dred.plan.arity": 4, "distributed.worker.memory.spill": 0.7}


def test_a_file_url_is_a_path():
    variables = document()["variables"]
    variables["x"]["path"] = "file:///data/x.npy"
    assert of(variables=variables).data[0].path == "/data/x.npy"
    with pytest.raises(JobError, match=r"output 0 would be written to /data/x\.npy, and variables\.x is /data/x\.npy"):
        of(variables=variables, output={"path": "/data/x.npy"})


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ("job.toml", r"let /points/job\.toml end in \.html"),
        ("x.npy/r.html", r"report would be written to /points/x\.npy/r"),
    ],
)
def test_a_report_replaces_nothing_else(report, said):
    with pytest.raises(JobError, match=said):
        of(report=report)
