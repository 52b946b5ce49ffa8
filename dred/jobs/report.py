"""The report of a job as one HTML file: what was computed, its plan, what was verified, and Dask's own page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dred.cluster.explain import Explanation
from dred.jobs.job import Job
from dred.jobs.verify import Checked

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem}
th{text-align:left;padding-right:1.5rem;vertical-align:top;font-weight:600}td{text-align:left}
table{margin-bottom:1rem}iframe{width:100%;height:48rem;border:1px solid #aaa}.wrong{color:#b00020;font-weight:600}"""


def page(
    job: Job, explanation: Explanation, record: Mapping[str, Any], checked: Sequence[Checked], performance_page: str
) -> str:
    """The text of the file.

    Parameters
    ----------
    record : mapping
        What is written beside the results.
    performance_page : str
        Path of Dask's report; where it is not there, the page says how to have it.
    """
    identity = record["identity"]
    rate = record["pairs"] / max(record["seconds"], 1e-9)
    what = {
        "computed": identity["formula"],
        "variables": "; ".join(identity["variables"]),
        **{f"input {name.partition('.')[2]}": text for name, text in identity["inputs"].items()},
        "outputs": ", ".join(job.outputs),
        "time": f"{record['seconds']:.1f} s; {record['pairs']:.3g} pairs, {rate:.3g} per second",
        "resumed": f"from {record['files_before']} files of finished blocks" if record["files_before"] else "no",
        "versions": ", ".join(f"{name} {number}" for name, number in record["versions"].items()),
    }
    verified = "".join(
        f"<p{'' if each.right else ' class=wrong'}>{html.escape(str(each))}<br>rows {html.escape(str(each.rows))}</p>"
        for each in checked
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>dred: {html.escape(job.outputs[0])}</title>'
        f"<style>{_STYLE}</style><h1>dred: {html.escape(', '.join(job.outputs))}</h1>{_table(what)}"
        f"<h2>Plan</h2>{explanation._repr_html_()}"
        f"<h2>Verification</h2>{verified or '<p>No rows were computed again.</p>'}"
        f"<h2>Dask</h2>{_dask(performance_page)}</html>\n"
    )


def _table(rows: Mapping[str, str]) -> str:
    each = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows.items())
    return f"<table>{''.join(each)}</table>"


def _dask(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError:
        return "<p>Dask's performance report needs the package bokeh: pip install bokeh</p>"
    return f'<iframe title="Dask performance report" srcdoc="{html.escape(text, quote=True)}"></iframe>'
