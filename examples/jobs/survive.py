"""A job whose worker and whose client are killed on the way, byte for byte the same as one that was left in peace.

    python examples/jobs/survive.py [--M 2000000] [--N 100000] [--folder demo/survive]

Runs `dred run sum.toml` on points of its own: once undisturbed; once with a worker process killed when a fifth of the
blocks is finished and the client killed, with all its workers, when half of them are; and then again, which continues.
"""

import argparse
import filecmp
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from points import write  # beside this file

JOB = Path(__file__).with_name("sum.toml")
BLOCKS = 64  # of x: what a job chooses where it says nothing


def command(folder: Path, output: str) -> list[str]:
    paths = [f"variables.{name}.path={folder / name}.zarr" for name in "xya"]
    return [sys.executable, "-m", "dred", "run", str(JOB), *paths, f"output.path={folder / output}"]


def finished(folder: Path, output: str) -> int:
    """Blocks of results that are kept."""
    return len(list((folder / f".{output}.dred" / "blocks").rglob("rows-*.bin")))


def workers(client: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The worker processes of a client that has started a cluster of this machine."""
    children = psutil.Process(client.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def wait(client: subprocess.Popen[bytes], condition: Callable[[], bool], what: str) -> None:
    while not condition():
        if client.poll() is not None:
            sys.exit(f"the job ended with {client.returncode} before {what}")
        time.sleep(0.02)


def same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files."""
    names = [sorted(p.relative_to(top) for p in top.rglob("*") if p.is_file()) for top in (one, other)]
    return names[0] == names[1] and all(filecmp.cmp(one / name, other / name, shallow=False) for name in names[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--M", type=int, default=2_000_000, help="rows of x")
    parser.add_argument("--N", type=int, default=100_000, help="rows of y")
    parser.add_argument("--folder", type=Path, default=Path("demo/survive"))
    args = parser.parse_args()
    folder = args.folder.absolute()
    write(folder, args.M, args.N)
    for name in ("quiet.zarr", "killed.zarr"):
        for path in (folder / name, folder / f"{name}.json", folder / f".{name}.dred"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    start = time.monotonic()
    subprocess.run(command(folder, "quiet.zarr"), check=True)
    print(f"in peace: {time.monotonic() - start:.1f} s")

    start = time.monotonic()
    client = subprocess.Popen(command(folder, "killed.zarr"))
    wait(client, lambda: finished(folder, "killed.zarr") >= BLOCKS // 5, "a fifth was finished")
    victim = workers(client)[0]
    victim.kill()
    print(f"killed worker {victim.pid} at {finished(folder, 'killed.zarr')} blocks", flush=True)
    wait(client, lambda: finished(folder, "killed.zarr") >= BLOCKS // 2, "half was finished")
    children = workers(client)
    client.kill()
    client.wait()
    psutil.wait_procs(children)  # they end by themselves when their client is gone
    kept = finished(folder, "killed.zarr")
    print(f"killed the client at {kept} blocks", flush=True)
    subprocess.run(command(folder, "killed.zarr"), check=True)
    print(f"killed and continued: {time.monotonic() - start:.1f} s")

    assert same(folder / "quiet.zarr", folder / "killed.zarr"), "the results differ"
    print(f"{args.M:,} x {args.N:,} pairs: the same bytes, of which {kept} of {BLOCKS} blocks were not computed again")


if __name__ == "__main__":
    main()
