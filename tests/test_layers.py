"""Imports point down one list of modules, and what is heavy or optional is imported in one place."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each module may import those above it in this list. A package stands below its modules: it only hands on their names.
ORDER = [
    "dred.errors",
    "dred.reductions",
    "dred.formula.node",
    "dred.formula.syntax",
    "dred.formula.op",
    "dred.formula.table.arithmetic",
    "dred.formula.table.functions",
    "dred.formula.table.vectors",
    "dred.formula.table.tensors",
    "dred.formula.table.complex",
    "dred.formula.table.curves",
    "dred.formula.table",
    "dred.formula.ops",
    "dred.formula.construct",
    "dred.formula.rewrite",
    "dred.formula.expand",
    "dred.formula.derive",
    "dred.formula.language",
    "dred.formula.linear",
    "dred.formula.oracle",
    "dred.formula.pullback",
    "dred.formula.reduced",
    "dred.formula.catalogue",
    "dred.formula",
    "dred.kernel.primitives",
    "dred.kernel.sources",
    "dred.kernel.disk",
    "dred.kernel.environment",
    "dred.kernel.threads",
    "dred.kernel.machine",
    "dred.kernel.work",
    "dred.kernel.ir",
    "dred.kernel.spec",
    "dred.kernel.pattern",
    "dred.kernel.batches",
    "dred.kernel.cost",
    "dred.kernel.scales",
    "dred.kernel.hoist",
    "dred.kernel.exponents",
    "dred.kernel.pieces",
    "dred.kernel.lower",
    "dred.kernel.flat",
    "dred.kernel.output",
    "dred.kernel.centre",
    "dred.kernel.interpret",
    "dred.kernel.cpu_schedule",
    "dred.kernel.coefficients",
    "dred.kernel.llvm_lanes",
    "dred.kernel.ceiling",
    "dred.kernel.llvm_exponentials",
    "dred.kernel.llvm_angles",
    "dred.kernel.llvm_math",
    "dred.kernel.llvm_values",
    "dred.kernel.llvm_state",
    "dred.kernel.llvm_staging",
    "dred.kernel.llvm_records",
    "dred.kernel.llvm_large",
    "dred.kernel.llvm_chains",
    "dred.kernel.llvm",
    "dred.kernel.cpu_memory",
    "dred.kernel.cpu_calls",
    "dred.kernel.cpu",
    "dred.kernel.cpu_ready",
    "dred.kernel.cuda_schedule",
    "dred.kernel.cuda_text",
    "dred.kernel.cuda_state",
    "dred.kernel.cuda_tiles",
    "dred.kernel.cuda_slices",
    "dred.kernel.cuda_source",
    "dred.kernel.cuda_device",
    "dred.kernel.cuda_launch",
    "dred.kernel.cuda_cache",
    "dred.kernel.cuda_ceiling",
    "dred.kernel.cuda_fold",
    "dred.kernel.cuda_ready",
    "dred.kernel.cuda_streams",
    "dred.kernel.cuda_host",
    "dred.kernel.cuda",
    "dred.kernel.engine",
    "dred.kernel",
    "dred.sweeps",
    "dred.inputs",
    "dred.cluster.files",
    "dred.cluster.stored",
    "dred.cluster.stored_npy",
    "dred.cluster.stored_zarr",
    "dred.cluster.stored_parquet",
    "dred.cluster.stored_csv",
    "dred.cluster.stored_hdf5",
    "dred.cluster.sources",
    "dred.cluster.sink_zarr",
    "dred.cluster.sink_parquet",
    "dred.cluster.sinks",
    "dred.cluster.cuts",
    "dred.cluster.settings",
    "dred.cluster.sizes",
    "dred.cluster.limits",
    "dred.cluster.plan",
    "dred.cluster.config",
    "dred.cluster.panels",
    "dred.cluster.rows",
    "dred.cluster.store",
    "dred.cluster.tasks",
    "dred.cluster.centre",
    "dred.cluster.backend",
    "dred.cluster.explain",
    "dred.cluster.collection",
    "dred.cluster.spool",
    "dred.cluster.arrays",
    "dred.cluster.inputs",
    "dred.cluster.graph",
    "dred.cluster.progress",
    "dred.cluster.runs",
    "dred.cluster.batch",
    "dred.cluster.compute",
    "dred.cluster.solver",
    "dred.cluster.plugin",
    "dred.cluster.nans",
    "dred.cluster.connect",
    "dred.cluster",
    "dred.options",
    "dred.ranges",
    "dred.run",
    "dred.ready",
    "dred.targets",
    "dred.cotangents",
    "dred.routine",
    "dred.genred",
    "dred.generic",
    "dred.autodiff",
    "dred.conjugate",
    "dred.preconditioners",
    "dred.vectors",
    "dred.solve_options",
    "dred.solve",
    "dred.lazy.pairs",
    "dred.lazy.given",
    "dred.lazy.call",
    "dred.lazy.kinds",
    "dred.lazy.indexing",
    "dred.lazy.refused",
    "dred.lazy.base",
    "dred.lazy.solve",
    "dred.lazy.made",
    "dred.lazy.methods",
    "dred.lazy.tensor",
    "dred.lazy.stubs",
    "dred.lazy",
    "dred.torch",
    "dred.jax",
    "dred.jobs.document",
    "dred.jobs.job",
    "dred.jobs.inputs",
    "dred.jobs.manifest",
    "dred.jobs.log",
    "dred.jobs.verify",
    "dred.jobs.report",
    "dred.jobs.runner",
    "dred.jobs.check",
    "dred.jobs.bench",
    "dred.jobs",
    "dred",
    "dred.jobs.cli",
    "dred.__main__",
]
# They need a package that not every machine has, and import it when they are imported.
OPTIONAL = ("dred.torch", "dred.jax")
LEVEL = {module: level for level, module in enumerate(ORDER)}

CUDA = tuple(f"dred.kernel.cuda_{part}" for part in ("device", "cache", "ceiling", "fold", "ready", "streams", "host"))

# Third-party package -> modules, or packages with all they hold, that may import it.
ONLY_IN = {
    "cupy": CUDA,
    "cupy_backends": CUDA,
    "llvmlite": ("dred.kernel.cpu", "dred.kernel.machine"),
    "dask": ("dred.cluster",),
    "distributed": ("dred.cluster",),
    "dask_cuda": ("dred.cluster",),
    "zarr": ("dred.cluster.stored_zarr", "dred.cluster.sink_zarr"),
    "pyarrow": ("dred.cluster.stored_parquet", "dred.cluster.stored_csv", "dred.cluster.sink_parquet"),
    "h5py": ("dred.cluster.stored_hdf5",),
    "fsspec": ("dred.cluster.files",),
    "click": ("dred.jobs.cli",),
    "yaml": ("dred.jobs.document",),
    "torch": ("dred.torch",),
    "jax": ("dred.jax",),
}

# Lines: a module that needs more has its reason here.
LONGEST = 500
LONGER: dict[str, int] = {}


def files() -> dict[str, Path]:
    """Every module of the package by its name."""
    found = {}
    for path in sorted((ROOT / "dred").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(module: str, text: str, is_package: bool = False) -> list[str]:
    """All that `text` imports, anywhere in it: in functions, under TYPE_CHECKING, by `import_module("...")`."""
    package = module if is_package else module.rpartition(".")[0]
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                parents = parts[: len(parts) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            # `from package import name` imports the module `package.name` where there is one.
            names = [f"{base}.{alias.name}" for alias in node.names]
            found += [name if name in LEVEL else base for name in names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            found += [str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant)]
    return found


def violations(module: str, text: str, is_package: bool = False) -> list[str]:
    """What `module`, with source `text`, imports against the rules."""
    wrong = []
    for name in imports(module, text, is_package):
        top = name.partition(".")[0]
        if top == "dred" and LEVEL.get(name, len(ORDER)) >= LEVEL[module]:
            wrong.append(f"{module} imports {name}, which does not stand above it in ORDER")
        allowed = ONLY_IN.get(top)
        if allowed is not None and not any(module == place or module.startswith(place + ".") for place in allowed):
            wrong.append(f"{module} imports {name}, which is only for {', '.join(allowed)}")
    return wrong


def test_every_module_has_its_place():
    assert sorted(files()) == sorted(ORDER)


@pytest.mark.parametrize("module", files())
def test_imports_point_down(module):
    path = files()[module]
    assert violations(module, path.read_text(), path.name == "__init__.py") == []


@pytest.mark.parametrize(
    "text",
    [
        "import dred.kernel.engine",
        "from dred.kernel import engine",
        "from dred.kernel.engine import fold",
        "from .engine import fold",
        "from . import engine",
        "from .. import genred",
        "from dred import Genred",
        "def late():\n    from dred.genred import Genred",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from dred.kernel.engine import State",
        "import importlib\nimportlib.import_module('dred.kernel.engine')",
        "import dred.kernel.lower",
        "import dred.nowhere",
        "import cupy",
        "from cupy.cuda import nvrtc",
        "def late():\n    import llvmlite.binding",
        "import dask.array as da",
        "from distributed import get_client",
    ],
)
def test_a_wrong_import_is_found(text):
    assert violations("dred.kernel.lower", text)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("dred.kernel.lower", "from dred.formula.node import Node\nfrom . import ir\nfrom .spec import KernelSpec"),
        ("dred.kernel.lower", "from .. import errors\nimport numpy as np\nimport functools"),
        ("dred.kernel.cuda_host", "import cupy\nfrom dred.kernel.cuda_source import render"),
        ("dred.cluster.graph", "import dask\nfrom distributed import get_client"),
        ("dred.routine", "def late():\n    from dred.cluster import graph"),
    ],
)
def test_a_right_import_is_let_pass(module, text):
    assert violations(module, text) == []


@pytest.mark.parametrize("module", files())
def test_modules_are_small_and_say_what_they_are_for(module):
    text = files()[module].read_text()
    assert len(text.splitlines()) <= LONGER.get(module, LONGEST)
    assert not text.strip() or text.startswith('"""'), "the first line says the module's one responsibility"


def python(code: str) -> str:
    """What a fresh interpreter prints for `code`."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_dred_is_light():
    heavy = (
        "dask.array",
        "distributed",
        "llvmlite",
        "cupy",
        "numba",
        "zarr",
        "pyarrow",
        "h5py",
        "fsspec",
        "torch",
        "jax",
    )
    loaded = python("import sys, dred; print(*sys.modules)").split()
    assert "dred" in loaded
    assert [name for name in heavy if name in loaded] == []


def test_everything_imports_without_cupy():
    names = [name for name in ORDER if name not in OPTIONAL]
    code = f"""
import importlib, sys
sys.modules["cupy"] = None  # any import of it raises
for name in {names!r}:
    importlib.import_module(name)
print("imported")
"""
    assert python(code).split() == ["imported"]
