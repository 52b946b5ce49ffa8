"""Jobs as processes of their own, and what kills them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from tests.jobs.cases import TOML

ROWS, COLUMNS = 65_536, 8_000
BLOCKS = 64
SECONDS = 300  # after which a test gives up; nothing is measured


def prepare(folder: Path) -> None:
    """Points and a job over them that takes some seconds."""
    rng = np.random.default_rng(3)
    for name, shape in {"x": (ROWS, 3), "y": (COLUMNS, 3), "b": (COLUMNS, 1)}.items():
        np.save(folder / f"{name}.npy", rng.random(shape, dtype=np.float32))
    (folder / "job.toml").write_text(TOML)


def start(folder: Path, output: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dred", "run", "job.toml", f"output.path={output}", *more]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)


def run(folder: Path, output: str, *more: str) -> str:
    """What a job says that is run to its end."""
    client = start(folder, output, *more)
    _, said = client.communicate(timeout=SECONDS)
    assert client.returncode == 0, said
    return said


def finished(folder: Path, output: str) -> int:
    return len(list((folder / f".{output}.dred" / "blocks").rglob("rows-*.bin")))


def workers(client: subprocess.Popen[str]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(client.pid).children(recursive=True):
        try:
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def until(client: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert client.poll() is None, f"ended with {client.returncode}: {client.stderr.read()}"
        assert time.monotonic() < end
        time.sleep(0.01)


def kill(client: subprocess.Popen[str], whom: str) -> None:
    """SIGKILL: "client", "worker" (one of them), "both"."""
    there = workers(client)
    if whom != "client":
        there[0].kill()
    if whom != "worker":
        client.kill()
        client.communicate()
        _, alive = psutil.wait_procs(there, timeout=SECONDS)
        assert not alive


def terminate(client: subprocess.Popen[str]) -> tuple[int, str]:
    os.kill(client.pid, signal.SIGTERM)
    _, said = client.communicate(timeout=SECONDS)
    return client.returncode, said


def disturbed(folder: Path, output: str, whom: str, moment: int) -> int:
    """Run a job, kill when so many blocks are finished, and run it to its end; how many blocks were kept."""
    client = start(folder, output)
    until(client, lambda: finished(folder, output) >= moment)
    kill(client, whom)
    if whom == "worker":
        _, said = client.communicate(timeout=SECONDS)
        assert client.returncode == 0, said
        return 0
    kept = finished(folder, output)
    said = run(folder, output)
    if kept:
        assert f"going on in {folder}/.{output}.dred: {kept} files of finished blocks" in said
    return kept
