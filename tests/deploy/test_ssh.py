"""deploy/ssh/: the units are well formed, and what they start on two hosts computes for those who have a key alone."""

import contextlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.namespaces import need, need_namespaces, run, two_hosts
from tests.chaos.test_hosts import started
from tests.deploy.environments import python_path
from tests.deploy.units import SSH, UNITS, command, directives, environment_file, mistakes

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ROLES = ("scheduler", "worker", "client")


# -- units -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_units_say_what_systemd_understands(unit):
    assert mistakes(unit.read_text()) == []
    assert [section for section, *_ in directives(unit.read_text())][0::100] == ["Unit"]


def test_a_misspelt_directive_is_found():
    text = UNITS[0].read_text()
    for right, wrong in (("RestartSec=", "RestartSecs="), ("=always", "=allways"), ("[Install]", "[Instal]"),
                         ("NoNewPrivileges=yes", "NoNewPrivileges=please")):  # fmt: skip
        assert len(mistakes(text)) < len(mistakes(text.replace(right, wrong)))


def test_the_units_differ_in_what_they_start_alone():
    shared = [
        {line for line in directives(unit.read_text()) if line[1] not in ("Description", "ExecStart")} for unit in UNITS
    ]
    assert len(shared) == 3
    assert shared[0] == shared[1] == shared[2]


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_finds_no_fault_with_a_unit(unit, tmp_path):
    if shutil.which("systemd-analyze") is None:
        return  # what the table above says of it is all that can be said here
    text = unit.read_text().replace("/opt/dred/bin/dask", sys.executable)
    copy = tmp_path / unit.name
    copy.write_text(text)
    verify = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no"]
    done = subprocess.run([*verify, copy], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert unit.name not in done.stderr
    copy.write_text(text.replace("Restart=", "Restrat="))
    assert "Restrat" in subprocess.run([*verify, copy], capture_output=True, text=True).stderr


def test_the_commands_are_words_that_dask_takes():
    """Each option of them is in the help of its command."""
    for unit in UNITS:
        (line,) = [value for _, name, value in directives(unit.read_text()) if name == "ExecStart"]
        _, *words = line.split()
        if words[0] == "cuda":
            continue  # dask-cuda's: tests/test_versions.py
        help_text = subprocess.run(
            [sys.executable, "-m", "dask", words[0], "--help"], capture_output=True, text=True, check=True
        ).stdout
        assert [word for word in words if word.startswith("--") and f"{word} " not in help_text] == []


# -- certificates ------------------------------------------------------------------------------------------------------


def say(*words: object) -> str:
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True).stdout


def test_certificates(tmp_path):
    need("openssl")
    folder = tmp_path / "tls"
    names = ("scheduler.example.org", "10.0.0.1", "fe80::1")
    say(SSH / "certificates.sh", folder, *names)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    authority = folder / "authority.pem"
    files = {path.name for path in folder.iterdir()} - {"authority.srl", "authority.key"}
    assert files == {"authority.pem", *(f"{role}.{end}" for role in ROLES for end in ("pem", "key"))}
    for role in ROLES:
        signed = folder / f"{role}.pem"
        say("openssl", "verify", "-x509_strict", "-CAfile", authority, "-purpose", "sslclient", signed)
        text = say("openssl", "x509", "-in", signed, "-noout", "-text")
        assert f"Subject: CN = dred {role}\n" in text
        assert ("TLS Web Server Authentication" in text) == (role != "client")
        alternatives = "DNS:scheduler.example.org, IP Address:10.0.0.1, IP Address:FE80:0:0:0:0:0:0:1"
        assert (alternatives in text) == (role == "scheduler")


def test_certificates_that_are_there_are_kept(tmp_path):
    need("openssl")
    say(SSH / "certificates.sh", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for end in ("pem", "key"):
        (tmp_path / f"worker.{end}").unlink()
    say(SSH / "certificates.sh", tmp_path)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"worker.pem", "worker.key", "authority.srl"}
    say("openssl", "verify", "-CAfile", tmp_path / "authority.pem", tmp_path / "worker.pem")


def test_certificates_say_how_they_are_called_and_what_went_wrong(tmp_path):
    need("openssl")
    done = subprocess.run([SSH / "certificates.sh"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "certificates.sh FOLDER" in done.stderr
    env = {**os.environ, "DAYS": "many"}
    done = subprocess.run([SSH / "certificates.sh", tmp_path], env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert "many" in done.stderr


# -- a cluster ---------------------------------------------------------------------------------------------------------

CONNECT = "from distributed import Client; Client(timeout='30 s')"
# A TLS client that trusts the authority and has no key of its own; to have been let in is to get an answer.
SPEAK = """
import socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[1])
context.check_hostname = False
with context.wrap_socket(socket.create_connection((sys.argv[2], 8786))) as connection:
    connection.sendall(b"let me in")
    sys.exit(0 if connection.recv(1) else "nothing was answered")
"""


@pytest.mark.slow
def test_the_units_on_two_hosts(tmp_path):
    """The commands of the units, the script's keys, of which each process has its own, and the environment file."""
    need_namespaces()
    need("ip", "openssl")
    with two_hosts() as hosts, contextlib.ExitStack() as stack:
        (here, address), (there, _) = hosts.items()
        run(SSH / "certificates.sh", tmp_path / "all", address)
        text = (SSH / "dred.env").read_text().replace("scheduler.example.org", address)

        def environment(role: str, **more: str) -> dict[str, str]:
            """That of a process which finds the authority and the key of its role, and no others."""
            etc = tmp_path / role
            etc.mkdir(exist_ok=True)
            for name in ("authority.pem", f"{role}.pem", f"{role}.key"):
                shutil.copy(tmp_path / "all" / name, etc)
            settings = environment_file(text.replace("/etc/dred/tls", str(etc)))
            return {**os.environ, **settings, "DRED_NUM_THREADS": "1", "PYTHONPATH": python_path(), **more}

        def start(unit: str, host: str, **specifiers: str) -> None:
            env = environment("scheduler" if "scheduler" in unit else "worker")
            words = command((SSH / unit).read_text(), env, specifiers)
            words = [word.replace("/opt/dred/bin", str(BIN)).replace("/var/lib/dred", str(tmp_path)) for word in words]
            log = tmp_path / f"{unit}-{host}.log"
            stack.enter_context(started(("ip", "netns", "exec", host, *words), env, log))

        def client(host: str, env: dict[str, str], *words: object) -> "subprocess.CompletedProcess[str]":
            inside = ["ip", "netns", "exec", host, sys.executable, *map(str, words)]
            return subprocess.run(inside, env=env, capture_output=True, text=True, timeout=300)

        start("dred-scheduler.service", here)
        for host in (here, there):
            start("dred-worker@.service", host, H=host, i="1")
        ours = environment("client")
        scheduler = ours["DASK_SCHEDULER_ADDRESS"]
        done = client(
            there, ours, ROOT / "tests" / "slurm" / "node_script.py", "--workers", 2, "--scheduler", scheduler
        )
        logs = "".join(f"\n--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(tmp_path.glob("*.log")))
        assert "threads 1 1\n" in done.stdout, done.stdout + done.stderr + logs
        assert done.stdout.endswith("error below 1e-12 True\n")

        assert client(here, ours, "-c", CONNECT).returncode == 0
        run(SSH / "certificates.sh", tmp_path / "strange")
        keys = {key: str(tmp_path / "strange" / Path(value).name)
                for key, value in ours.items() if "__CLIENT__" in key}  # fmt: skip
        assert len(keys) == 2
        for refused in (
            client(here, ours | keys, "-c", CONNECT),
            client(here, ours, "-c", SPEAK, tmp_path / "all" / "authority.pem", address),
        ):
            assert refused.returncode != 0
            assert "unknown ca" in refused.stderr or "certificate required" in refused.stderr, refused.stderr
        plain = {key: value for key, value in ours.items() if "__COMM__" not in key}
        plain["DASK_SCHEDULER_ADDRESS"] = scheduler.replace("tls:", "tcp:")
        assert client(here, plain, "-c", CONNECT).returncode != 0
        assert client(here, ours, "-c", CONNECT).returncode == 0
