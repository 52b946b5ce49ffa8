"""What tests of hosts and disks need of this machine, and two network namespaces that stand for hosts."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.units import SSH, environment_file

PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def need_namespaces() -> None:
    """Skip the test where namespaces cannot be made: it takes root, and in a container more."""
    if run("unshare", "--net", "--mount", "true", check=False):
        pytest.skip("no namespaces")


def need(*tools: str) -> None:
    """Skip the test where a tool is missing."""
    for tool in tools:
        if shutil.which(tool, path=PATH) is None:
            pytest.skip(f"no {tool}")


def run(*command: object, check: bool = True) -> int:
    """Exit status of a command, of which nothing is heard unless it fails and should not."""
    try:
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=False, env={**os.environ, "PATH": PATH}
        )
    except FileNotFoundError:
        return 127
    assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.returncode


@contextlib.contextmanager
def two_hosts() -> Iterator[dict[str, str]]:
    """Namespaces with an address each, on one bridge that lies in a third: their names and addresses."""
    switch, *hosts = (f"dred-{os.getpid()}-{name}" for name in ("switch", "a", "b"))
    addresses = {host: f"10.83.0.{n}" for n, host in enumerate(hosts, 1)}
    with contextlib.ExitStack() as stack:
        for name in (switch, *hosts):
            run("ip", "netns", "add", name)
            stack.callback(run, "ip", "netns", "delete", name, check=False)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", switch, "link", "set", "bridge", "up")
        for n, (host, address) in enumerate(addresses.items()):
            run("ip", "-n", host, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{n}", "netns", switch)
            run("ip", "-n", switch, "link", "set", f"port{n}", "master", "bridge")
            run("ip", "-n", switch, "link", "set", f"port{n}", "up")
            run("ip", "-n", host, "address", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", host, "link", "set", "eth0", "up")
        yield addresses


def unplug(host: str) -> None:
    """Take the host off the network; nobody is told."""
    run("ip", "-n", host, "link", "set", "eth0", "down")


def certificates(folder: Path, name: str) -> dict[str, str]:
    """An authority and keys that it has signed, as dask's environment for mutual authentication."""
    run(SSH / "certificates.sh", folder / name)
    settings = environment_file((SSH / "dred.env").read_text().replace("/etc/dred/tls", str(folder / name)))
    return {key: value for key, value in settings.items() if "__COMM__" in key}
