"""Kernels: one scalar IR, its renderers (NumPy, LLVM, CUDA) and the engine that folds one block pair."""
