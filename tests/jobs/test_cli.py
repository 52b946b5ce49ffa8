"""The command line: what it says, and what it ends with."""

import html.parser
import json
import logging
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from dred.jobs import cli, runner, verify
from dred.jobs.cli import main
from dred.jobs.job import CLUSTER, JOB
from dred.jobs.log import Log
from tests.cluster.local import threads
from tests.jobs.cases import TOML, gaussian_sum, points


@pytest.fixture(scope="module")
def client():
    with threads(1, 2) as client:
        yield client


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    (tmp_path / "job.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    return points(tmp_path)


def call(*args):
    return CliRunner().invoke(main, list(map(str, args)), catch_exceptions=False)


def test_run(client, arrays, tmp_path):
    done = call("run", "job.toml")
    assert done.exit_code == 0
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0] == "dred: Sum, Exp(-g*SqDist(x,y))*b; axis 1"
    assert "dred: 100% of 7.5e+05 pairs" in done.stderr
    assert lines[-2] == f"dred: {tmp_path}/out.npy: float32 (2500, 1)"
    assert lines[-1].startswith("dred: 7.5e+05 pairs in ")
    np.testing.assert_allclose(np.load("out.npy"), gaussian_sum(arrays), rtol=2e-6)


def test_keys_and_options_override_the_file(client, arrays, tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "job.toml").rename(tmp_path / "jobs" / "job.toml")
    paths = [f"variables.{name}.path={name}.npy" for name in "xyb"]  # relative to here, not to the file
    done = call("run", "jobs/job.toml", *paths, "variables.g.value=0.25", "output.path=other.npy", "--verify", 2, "-q")
    assert (done.exit_code, done.output) == (0, "")
    np.testing.assert_allclose(np.load("other.npy"), gaussian_sum(arrays, 0.25), rtol=2e-6)
    assert json.loads((tmp_path / "other.npy.json").read_text())["verified"][0].startswith("Sum: 2 rows")


def test_a_log_of_json(client, arrays):
    done = call("run", "job.toml", "--log-json")
    events = [json.loads(line) for line in done.stderr.splitlines()]
    names = [event["event"] for event in events]
    assert names[0] == "plan"
    assert names[-3:] == ["verified", "written", "done"]
    assert set(names[1:-3]) == {"progress"}
    assert all({"time", "event", "text"} <= set(event) for event in events)
    last = events[-4]
    assert (last["pairs_done"], last["pairs"], last["seconds_left"]) == (750000, 750000, 0.0)
    assert events[-2]["shape"] == [2500, 1]
    assert events[-3]["relative_error"] < 1e-6


def test_a_log_of_json_is_json(capsys):
    """Whatever is said, or warned of."""
    log = Log(as_json=True)
    log.say("verified", "x", relative_error=float("inf"), rows=(1,))
    with warnings.catch_warnings(), log.alone():
        warnings.simplefilter("always")
        warnings.warn("odd", stacklevel=1)
        logging.getLogger("distributed.client").error("lost")
    lines = capsys.readouterr().err.splitlines()
    events = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [(event["event"], event["text"]) for event in events] == [("verified", "x"), ("warning", "odd")]
    assert events[0]["relative_error"] is None


def test_refused_jobs_end_with_2(client, arrays):
    done = call("run", "job.toml", "formula=Exp(x+z)")
    assert done.exit_code == 2
    assert done.stderr == ("dred: unknown name 'z'\n    Exp(x+z)\n          ^\nthe aliases are: x, y, b, g\n")
    done = call("run", "job.toml", "axes=1", "--log-json")
    assert done.exit_code == 2
    assert json.loads(done.stderr) | {"time": ""} == {
        "time": "", "event": "refused", "text": "the job has an unknown key 'axes': did you mean axis?",
        "type": "JobError",
    }  # fmt: skip
    assert call("run", "none.toml").exit_code == 2
    assert call("run", "job.toml", "--nan", "no").exit_code == 2


def test_failing_jobs_end_with_1(client, arrays):
    arrays["x"][3] = np.nan
    np.save("x.npy", arrays["x"])
    done = call("run", "job.toml", "--nan", "error", "-q")
    assert done.exit_code == 1
    assert done.stderr.startswith("dred: variables.x has 3 NaN, the first in row 3: leave these rows out, or let them")


def test_wrong_rows_end_with_3(client, arrays, monkeypatch, tmp_path):
    monkeypatch.setattr(verify, "dense", lambda *args: 1.01 * dense(*args))
    done = call("run", "job.toml", "-q", "--report", "r.html")
    assert done.exit_code == 3
    assert "relative error 9.9e-03, MORE THAN 0.001" in done.stderr
    assert (tmp_path / "out.npy").exists()
    assert "class=wrong" in (tmp_path / "r.html").read_text()
    again = call("run", "job.toml", "-q")
    assert again.exit_code == 3
    assert again.stderr == (
        f"dred: {tmp_path}/out.npy is done, of equal inputs, but rows that were computed again are others: nothing to "
        "do\n"
    )


dense = verify.dense


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (runner.Terminated(), 75)])
def test_ended_before_anything_ran(client, arrays, monkeypatch, error, code):
    def ending(job, log):
        raise error

    monkeypatch.setattr(cli.runner, "run", ending)
    done = call("run", "job.toml")
    assert (done.exit_code, done.stderr) == (code, "dred: ended before anything was computed\n")


class Tags(html.parser.HTMLParser):
    """The tags of a page, opened and closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.frames = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.frames += [value for name, value in attrs if name == "srcdoc"]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_report(client, arrays, tmp_path):
    assert call("run", "job.toml", "-q", "--report", "r.html").exit_code == 0
    page = Tags()
    page.feed((tmp_path / "r.html").read_text())
    assert page.open == []
    assert page.seen.count("table") == 2
    text = (tmp_path / "r.html").read_text()
    for part in ("Exp(-g*SqDist(x,y))*b", "each of 28 operations", "5 rows in float64", f"{tmp_path}/x.npy", "numpy"):
        assert part in text
    (frame,) = page.frames  # Dask's own page
    assert "bokeh" in frame
    assert "dred-sum" in frame


def test_texts_of_a_job_are_no_markup(client, arrays, tmp_path):
    (tmp_path / "<b>out.npy").write_bytes(b"")
    done = call("run", "job.toml", "-q", "--report", "r.html", "formula=(SqDist(x,y)<g)*b")
    assert done.exit_code == 0
    assert "(SqDist(x,y)&lt;g)*b" in (tmp_path / "r.html").read_text()


def test_help_names_the_codes():
    text = call("run", "--help").stdout
    for code in runner.Code:
        assert f"\n    {code.value:<3d} " in text
    assert call("--version").stdout == "dred, version 0.1.0\n"


def test_the_commands_return_their_codes(client, arrays):
    assert main(["run", "job.toml", "-q"], standalone_mode=False) == 0
    assert main(["run", "none.toml", "-q"], standalone_mode=False) == 2


def test_it_is_a_command_of_dask():
    from importlib.metadata import entry_points

    (command,) = entry_points(group="dask_cli", name="dred")
    assert command.load() is main
    assert isinstance(main, click.Group)
    done = subprocess.run([sys.executable, "-m", "dask", "dred", "--help"], capture_output=True, text=True, check=True)
    assert "Compute the results of the job file JOB" in done.stdout


def test_every_key_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "jobs.md").read_text()
    missing = [name for name in {**JOB, **CLUSTER} if f"`{name}`" not in text]
    assert missing == []


def test_sigterm_ends_it_once():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(runner.Terminated), runner.terminable():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
