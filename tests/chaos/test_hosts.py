"""Two hosts under mutual TLS: one is cut off in mid-run, and nobody without a certificate is let in."""

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.namespaces import certificates, need, need_namespaces, two_hosts
from tests.slurm.local_slurm import free_ports

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
DASK = (sys.executable, "-m", "dask")


@contextlib.contextmanager
def started(command, env, log: Path):
    """A process in the background, ended with all that it has started."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def environment(scheduler: str, tls: dict[str, str]) -> dict[str, str]:
    return {
        **os.environ,
        **tls,
        "DASK_SCHEDULER_ADDRESS": scheduler,
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "15s",
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "15s",
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1000",
        "DRED_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


def test_a_host_is_cut_off(tmp_path):
    need_namespaces()
    need("ip", "openssl")
    with two_hosts() as hosts, contextlib.ExitStack() as stack:
        (here, address), (there, far_address) = hosts.items()
        env = environment(f"tls://{address}:8786", certificates(tmp_path, "hosts"))
        enter = ("ip", "netns", "exec")
        options = ("--protocol", "tls", "--dashboard-address", ":0")

        def start(name, *command):
            stack.enter_context(started(command, {**env, "TMPDIR": str(tmp_path)}, tmp_path / f"{name}.log"))

        start("scheduler", *enter, here, *DASK, "scheduler", "--host", address, "--port", "8786", *options)
        for host in (here, there):
            for n in range(2):
                start(f"worker-{host}-{n}", *enter, host, *DASK, "worker", "--host", hosts[host], "--nthreads", "2",
                      "--no-nanny", "--death-timeout", "300", *options)  # fmt: skip
        driver = (*enter, here, sys.executable, ROOT / "tests" / "chaos" / "driver.py", tmp_path / "gate",
                  there, far_address)  # fmt: skip
        done = subprocess.run(driver, env=env, capture_output=True, text=True, check=False, timeout=500)
        logs = "".join(f"\n--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(tmp_path.glob("*.log")))
        assert done.stdout.splitlines()[-1:] == ["right"], done.stdout + done.stderr + logs


CONNECT = "from distributed import Client; Client(timeout='60 s')"


def test_nobody_without_a_certificate_is_let_in(tmp_path):
    need("openssl")
    (port,) = free_ports(1)
    address = f"tls://127.0.0.1:{port}"
    ours, strange = (certificates(tmp_path, name) for name in ("ours", "strange"))
    env = environment(address, ours)
    trusts_us = {key: ours[key] for key in ours if key.endswith("CA_FILE")}

    def connects(tls, scheduler=address) -> bool:
        bare = {key: value for key, value in environment(scheduler, tls).items() if key not in ours or key in tls}
        done = subprocess.run([sys.executable, "-c", CONNECT], env=bare, capture_output=True, text=True, check=False)
        return done.returncode == 0

    command = (*DASK, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--protocol", "tls",
               "--dashboard-address", ":0")  # fmt: skip
    with started(command, env, tmp_path / "scheduler.log"):
        until_listening(port, tmp_path / "scheduler.log")
        assert connects(ours)
        assert not connects(trusts_us)
        assert not connects({**strange, **trusts_us})
        assert not connects({}, address.replace("tls", "tcp"))
        with pytest.raises((ssl.SSLError, ConnectionError)):
            speak(port, ours["DASK_DISTRIBUTED__COMM__TLS__CA_FILE"])
        assert connects(ours)


def until_listening(port: int, log: Path) -> None:
    end = time.monotonic() + 300
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=60):
            return
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)


def speak(port: int, authority: str) -> bytes:
    """Speak to the scheduler in TLS without a certificate of one's own."""
    context = ssl.create_default_context(cafile=authority)
    context.check_hostname = False
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
        context.wrap_socket(plain) as connection,
    ):
        connection.sendall(b"let me in")
        return connection.recv(1)
