"""CUDA: sources compiled with NVRTC and launched through CuPy; the names that the rest of the package uses.

CuPy is imported by the modules behind this one alone, and inside functions.
"""

from dred.kernel.cuda_cache import compile_cubin, cubin, rendered, source, warm
from dred.kernel.cuda_device import architecture, bound_pool, capability, device_count
from dred.kernel.cuda_fold import adopted, fold_device, joined, placed, reduce_device
from dred.kernel.cuda_host import fold, reduce
from dred.kernel.cuda_launch import launch, panels, row_tiles, splits_of
from dred.kernel.cuda_ready import prepared, signature

__all__ = [
    "adopted",
    "architecture",
    "bound_pool",
    "capability",
    "compile_cubin",
    "cubin",
    "device_count",
    "fold",
    "fold_device",
    "joined",
    "launch",
    "panels",
    "placed",
    "prepared",
    "reduce",
    "reduce_device",
    "rendered",
    "row_tiles",
    "signature",
    "source",
    "splits_of",
    "warm",
]
