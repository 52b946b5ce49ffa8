"""Kernels: one scalar IR, its renderers (NumPy, LLVM, CUDA) and the engine that folds one block pair."""

import dred.kernel.sources  # noqa: F401  (it notes when, and which tables, this process has loaded)
