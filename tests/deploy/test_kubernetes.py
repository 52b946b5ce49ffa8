"""deploy/kubernetes/: the manifests by the operator's definitions and by Kubernetes' own, and what their pods run."""

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chaos.problem import until
from tests.chaos.test_hosts import started
from tests.deploy import small
from tests.deploy.environments import DASK_CUDA, install, pip, python_path
from tests.slurm.local_slurm import free_ports

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
MANIFESTS = sorted(FOLDER.glob("*.yaml"))
JOB = FOLDER / "job.yaml"
CLUSTERS = (FOLDER / "cluster.yaml", FOLDER / "cluster-gpu.yaml", JOB)


def container(path: Path, name: str) -> dict[str, Any]:
    """The container of that name, wherever it is in the manifest."""

    def search(value: Any) -> Iterator[dict[str, Any]]:
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from search(inner)
        if isinstance(value, dict) and value.get("name") == name and "image" in value:
            yield value

    (found,) = search(yaml.safe_load(path.read_text()))
    return found


# -- what they say -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_the_service_finds_the_scheduler(path):
    """The operator labels the scheduler's pod with the name of the object, and takes the rest as it is."""
    manifest = yaml.safe_load(path.read_text())
    cluster = manifest["spec"] if manifest["kind"] == "DaskCluster" else manifest["spec"]["cluster"]["spec"]
    service = cluster["scheduler"]["service"]
    assert service["selector"] == {
        "dask.org/cluster-name": manifest["metadata"]["name"],
        "dask.org/component": "scheduler",
    }
    assert service["type"] == "ClusterIP"
    named = {port["name"]: port["containerPort"] for port in container(path, "scheduler")["ports"]}
    assert {port["name"]: port["port"] for port in service["ports"]} == named


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
@pytest.mark.parametrize("name", ["scheduler", "worker"])
def test_probes_ask_the_port_that_is_listened_on(path, name):
    found = container(path, name)
    (port,) = [port["containerPort"] for port in found["ports"] if port["name"] == "http"]
    assert found["args"][found["args"].index("--dashboard-address") + 1] == f":{port}"
    for probe in ("readinessProbe", "livenessProbe"):
        assert found[probe]["httpGet"] == {"path": "/health", "port": "http"}


def test_the_clusters_differ_in_what_gpus_need_alone():
    cpu, gpu = (json.dumps(container(path, "scheduler")) for path in CLUSTERS[:2])
    assert gpu == cpu.replace("dred:cpu", "dred:cuda13")
    assert container(JOB, "worker") == container(FOLDER / "cluster.yaml", "worker")
    assert container(FOLDER / "cluster-gpu.yaml", "worker")["resources"]["limits"]["nvidia.com/gpu"] == "1"


# -- what an API server would say of them ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """A function that gives the faults of manifests."""
    folder = tmp_path_factory.mktemp("kubernetes")
    pip("download", "--quiet", "--no-deps", "--dest", folder, "dask-kubernetes")
    (wheel,) = folder.glob("dask_kubernetes-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        definitions = [name for name in archive.namelist() if "/crds/" in name and name.endswith(".yaml")]
        assert len(definitions) == 4
        archive.extractall(folder, definitions)
    packages = install(folder / "packages", "jsonschema", "kubernetes-validate", "PyYAML")
    env = {**os.environ, "PYTHONPATH": str(packages)}

    def faults(*paths: Path) -> list[str]:
        command = [sys.executable, Path(__file__).with_name("manifests.py"), (folder / definitions[0]).parent, *paths]
        done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return faults


@pytest.mark.slow
def test_manifests_are_valid(validated):
    assert validated(*MANIFESTS) == []


# Of cluster.yaml: each is found by the definitions of the operator or by the schemas of Kubernetes.
FAULTS = {
    "replicas:": ("replica:", "'replica' was unexpected"),
    "readinessProbe:": ("readynessProbe:", "'readynessProbe' was unexpected"),
    "httpGet: { path: /health, port: http }": ("httpGet: { path: /health }", "'port' is a required property"),
    "restartPolicy: Never": ("restartPolicy: [Never]", "is not of type 'string'"),
    "limits: { memory: 4Gi }": ("limits: { memory: 4 }", "is not of type 'string'"),
    "type: ClusterIP": ("typ: ClusterIP", "'typ' was unexpected"),
    "containerPort: 8786": ("containerPort: eight", "is not of type 'integer'"),
    "policyTypes: [Ingress]": ("policyType: [Ingress]", "'policyType' was unexpected"),
    "emptyDir: { sizeLimit: 20Gi }": ("emptyDir: { limit: 20Gi }", "'limit' was unexpected"),
}


@pytest.mark.slow
def test_faults_are_found(validated, tmp_path):
    copies = []
    for number, (right, (wrong, _)) in enumerate(FAULTS.items()):
        (path, *_) = [path for path in (JOB, *MANIFESTS) if right in path.read_text()]
        copies.append(tmp_path / f"{number}.yaml")
        copies[-1].write_text(path.read_text().replace(right, wrong, 1))
    found = validated(*copies)
    for copy, (_, said) in zip(copies, FAULTS.values(), strict=True):
        assert any(said in fault for fault in found if fault.startswith(f"{copy.name}: ")), (said, found)


# -- what the pods run -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_pods_of_a_job_compute_it(tmp_path):
    """The arguments of its containers, as processes here; their probes are answered."""
    small.prepare(tmp_path)
    comm, http, worker_http = free_ports(3)
    address = f"tcp://127.0.0.1:{comm}"
    elsewhere = {
        "8786": str(comm),
        ":8787": f":{http}",
        ":8788": f":{worker_http}",
        "/scratch": str(tmp_path),
        "/data/job.toml": str(tmp_path / "job.toml"),
        "$(DASK_WORKER_NAME)": "dred-job-default-worker-1",
    }
    env = {**os.environ, "DASK_SCHEDULER_ADDRESS": address, "DRED_NUM_THREADS": "1", "PYTHONPATH": python_path()}

    def command(name: str) -> list[str]:
        return [sys.executable, "-m", *(elsewhere.get(word, word) for word in container(JOB, name)["args"])]

    def healthy(port: int) -> bool:
        path = container(JOB, "worker")["livenessProbe"]["httpGet"]["path"]
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
            return answer.status == 200
        return False

    with (
        started(command("scheduler"), env, tmp_path / "scheduler.log"),
        started(command("worker"), env, tmp_path / "worker.log"),
    ):
        done = subprocess.run(command("job"), env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr + (tmp_path / "worker.log").read_text()
        assert json.loads(done.stderr.splitlines()[-1])["event"] == "done"
        until(lambda: healthy(http))
        until(lambda: healthy(worker_http))
    small.check(tmp_path / "out.npy")


@pytest.mark.slow
def test_the_options_of_workers_on_gpus(tmp_path):
    """dask-cuda takes those of the manifest, and of the unit in deploy/ssh/."""
    env = {**os.environ, "PYTHONPATH": python_path(install(tmp_path, *DASK_CUDA, dependencies=False))}
    command = [sys.executable, "-m", "dask", "cuda", "worker", "--help"]
    help_text = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    unit = (FOLDER.parent / "ssh" / "dred-gpu-worker.service").read_text()
    (line,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    for words in (container(FOLDER / "cluster-gpu.yaml", "worker")["args"], line.split()[1:]):
        options = [word for word in words if word.startswith("--")]
        assert "cuda worker" in " ".join(words)
        assert [option for option in options if f"{option} " not in help_text] == []
