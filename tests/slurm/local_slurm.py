"""A SLURM of four nodes on this machine, for tests: its own folder, ports and munge key; ended by process id.

n1 and n2 are the default; g1 and g2, in the partition "gpu", have two GPUs each, which are /dev/null and /dev/zero:
SLURM hands them out, and nothing runs on them.

As a script it stays up until Enter is pressed: `python tests/slurm/local_slurm.py`.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sinfo", "sbatch", "srun", "scontrol")
# The daemons live in sbin, which is not on the PATH of every user.
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

CONFIG = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdSpoolDir={folder}/spool.%n
StateSaveLocation={folder}/state
KillWait=5
DefMemPerCPU=1000
GresTypes=gpu
NodeName=DEFAULT CPUs=2 RealMemory=4000 State=UNKNOWN
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]}
NodeName=g1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]} Gres=gpu:2
NodeName=g2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[4]} Gres=gpu:2
PartitionName=debug Nodes=n[1-2] Default=YES MaxTime=60 State=UP
PartitionName=gpu Nodes=g[1-2] MaxTime=60 State=UP
"""

NODES = ("n1", "n2", "g1", "g2")
GPUS = "NodeName=g[1-2] Name=gpu File={folder}/nvidia[0-1] Flags=nvidia_gpu_env\n"


def missing() -> list[str]:
    """The programs of SLURM and munge that this machine lacks."""
    return [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def daemon(*command: str, env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the foreground of its own session, ended, with a moment to do it in, on leaving."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(condition, what: str, folder: Path, seconds: float = 60) -> None:
    """Return once `condition()` holds; otherwise raise with the ends of all logs."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            logs = "".join(f"\n--- {path.name}\n{path.read_text()[-2000:]}" for path in sorted(folder.glob("*.log")))
            raise TimeoutError(f"{what} did not happen in {seconds} s{logs}")
        time.sleep(0.1)


@contextlib.contextmanager
def local_slurm() -> Iterator[dict[str, str]]:
    """Yield the environment in which `sinfo`, `srun` and `sbatch` talk to that SLURM."""
    # Not under pytest's folder: a munge socket's path is at most 107 characters long, and its parents must not be
    # writable by others.
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/var/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        config = folder / "slurm.conf"
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        host = socket.gethostname().partition(".")[0]
        config.write_text(CONFIG.format(host=host, user=user, folder=folder, ports=free_ports(5)))
        for name, device in (("nvidia0", "/dev/null"), ("nvidia1", "/dev/zero")):
            (folder / name).symlink_to(device)
        (folder / "gres.conf").write_text(GPUS.format(folder=folder))
        env = {**os.environ, "PATH": PATH, "SLURM_CONF": str(config)}

        def run(*command: str) -> str:
            return subprocess.run(command, env=env, capture_output=True, text=True, check=False).stdout

        with contextlib.ExitStack() as stack:

            def start(label: str, *command: str) -> None:
                stack.enter_context(daemon(*command, env=env, log=folder / f"{label}.out.log"))

            munge = [f"--{option}={folder}/munge.{option.split('-')[0]}" for option in
                     ("key-file", "socket", "pid-file", "seed-file", "log-file")]  # fmt: skip
            start("munged", "munged", "--foreground", "--force", *munge)
            wait_until((folder / "munge.socket").exists, "the socket of munged", folder)
            start("slurmctld", "slurmctld", "-D", "-c")
            for node in NODES:
                start(node, "slurmd", "-D", "-N", node)
            idle = ("sinfo", "--Node", "--noheader", "--states=idle", "--format=%N")
            wait_until(lambda: set(run(*idle).split()) == set(NODES), "that all nodes are idle", folder)
            try:
                yield env
            finally:
                run("scancel", "--user", user)
                with contextlib.suppress(TimeoutError):
                    wait_until(lambda: not run("squeue", "-h"), "an empty queue", folder, 20)


if __name__ == "__main__":
    with local_slurm() as environment:
        print(f"export SLURM_CONF={environment['SLURM_CONF']}")
        input("Enter ends it. ")
