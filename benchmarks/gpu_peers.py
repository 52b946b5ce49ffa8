"""The peers of `gpu.py`: what each of them runs on the device for a row of the table.

    1d        one row per thread, columns by shared memory, run-time bounds: the classical scheme, in CUDA C++
    pykeops   the same formula, on torch tensors
    torch     dense blocks of rows, with the mathematics of `peers.py`
    compile   the same by torch.compile
    cuvs      brute_force of cuVS
    faiss     GpuIndexFlatL2

A peer is a function of a row; it returns a `Run`, or None where it has nothing to offer. Imports are inside: what is
not installed is found out when asked for.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from peers import BLOCKS, Task, Torch, chunks  # beside this file

BLOCK = 2048  # rows of a dense block: 2 GB of float32 at 262,144 columns

ONE_ROW_PER_THREAD = r"""
extern "C" __global__ void one_row(const float* x, const float* y, const float* b, const float* g, float* out, int M, int N) {
  extern __shared__ float columns[];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  float a[3] = {0, 0, 0}, sum = 0;
  if (i < M) for (int k = 0; k < 3; k++) a[k] = x[3 * i + k];
  for (int first = 0; first < N; first += blockDim.x) {
    const int j = first + threadIdx.x;
    if (j < N) {
      for (int k = 0; k < 3; k++) columns[4 * threadIdx.x + k] = y[3 * j + k];
      columns[4 * threadIdx.x + 3] = b[j];
    }
    __syncthreads();
    if (i < M) {
      float part = 0;
      for (int t = 0; t < (int)blockDim.x && t < N - first; t++) {
        float q = 0;
        for (int k = 0; k < 3; k++) { const float d = a[k] - columns[4 * t + k]; q += d * d; }
        part += columns[4 * t + 3] * expf(-g[0] * q);
      }
      sum += part;
    }
    __syncthreads();
  }
  if (i < M) out[i] = sum;
}
"""  # noqa: E501


class Run(NamedTuple):
    """How a rival computes a row: its own arrays from CuPy's, by name; what is timed; the result for the host."""

    prepare: Callable[[dict[str, Any]], Any]
    work: Callable[[Any], Any]
    host: Callable[[Any], Any]


def _tensors(v: dict[str, Any]) -> dict[str, Any]:
    import torch

    return {name: torch.from_dlpack(a) for name, a in v.items()}


def _numpy(result: Any) -> Any:
    return result.cpu().numpy()


def one_row(t: Task) -> Run | None:
    import cupy

    if t.name != "Gaussian" or t.D != 3 or t.expanded or t.dtype != "float32":
        return None
    kernel = cupy.RawKernel(ONE_ROW_PER_THREAD, "one_row", ("--use_fast_math",))

    def work(v: dict[str, Any]) -> Any:
        M, N, threads = len(v["x"]), len(v["y"]), 192
        out = cupy.empty((M, 1), "float32")
        args = (*(v[name] for name in "xybg"), out, cupy.int32(M), cupy.int32(N))
        kernel((-(-M // threads),), (threads,), args, shared_mem=16 * threads)
        return out

    return Run(dict, work, cupy.asnumpy)


def pykeops(t: Task) -> Run | None:
    from pykeops.torch import Genred

    if t.expanded:
        return None
    routine = Genred(t.formula, t.texts, reduction_op=t.reduction, axis=t.axis, opt_arg=t.K)
    return Run(_tensors, lambda v: routine(*v.values(), backend="GPU"), _numpy)


def torch(t: Task, compiled: bool = False) -> Run | None:
    import torch

    if t.kind not in BLOCKS:
        return None
    xp = Torch()
    function = (lambda v: BLOCKS[t.kind](xp, t, v)) if not compiled else torch.compile(
        lambda v: BLOCKS[t.kind](xp, t, v), dynamic=False)  # fmt: skip
    return Run(_tensors, chunks(t, xp, torch.cat, BLOCK, function), _numpy)


def compile(t: Task) -> Run | None:
    import torch as library

    library._dynamo.reset()  # a row's functions count as versions of the last row's
    return torch(t, compiled=True)


def cuvs(t: Task) -> Run | None:
    import cupy
    from cuvs.neighbors import brute_force

    if t.kind != "nearest":
        return None

    def work(v: dict[str, Any]) -> Any:
        _, found = brute_force.search(brute_force.build(v["y"], metric="sqeuclidean"), v["x"], t.K or 1)
        return found

    return Run(dict, work, lambda found: cupy.asnumpy(cupy.asarray(found)))


def faiss(t: Task) -> Run | None:
    import faiss
    import faiss.contrib.torch_utils

    if t.kind != "nearest":
        return None
    resources = faiss.StandardGpuResources()

    def work(v: dict[str, Any]) -> Any:
        index = faiss.GpuIndexFlatL2(resources, t.D)
        index.add(v["y"])
        return index.search(v["x"], t.K or 1)[1]

    return Run(_tensors, work, _numpy)


PEERS: dict[str, tuple[str, Callable[[Task], Run | None]]] = {  # by name: distribution, and what makes its runs
    "1d": ("", one_row),
    "pykeops": ("pykeops", pykeops),
    "torch": ("torch", torch),
    "compile": ("torch", compile),
    "cuvs": ("cuvs-cu13", cuvs),
    "faiss": ("faiss-gpu-cu12", faiss),
}
