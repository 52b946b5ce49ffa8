"""The benchmark of GPUs says where there is none what it would measure, and compiles its kernels."""

import subprocess
import sys
from pathlib import Path

from tests.kernel.test_cuda_source import needs_nvrtc

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def run(*arguments):
    command = [sys.executable, "-W", "error", str(SCRIPT), "--dry-run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@needs_nvrtc
def test_a_dry_run():
    done = run("--rows", "Coulomb force", "Gaussian, D = 64", "--size", "1000")
    assert done.returncode == 0, done.stderr
    assert "NVRTC" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines() if "1000 x 1000 " in line]
    assert [row[-3:] for row in rows] == [["2.52", "2.20", "-"], ["0.25", "-", "-"], ["0.50", "-", "-"]]
    for row in rows:
        registers, spilled, instructions, _ = row[-7:-3]
        assert 0 < int(registers) <= 255
        assert spilled == "0"
        assert 5 < float(instructions) < 500


def test_peers_that_are_not_known():
    done = run("--peers", "nobody")
    assert done.returncode == 2
    assert "no peers: nobody; there are 1d, pykeops" in done.stderr
