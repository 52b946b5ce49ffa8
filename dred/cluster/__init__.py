"""Reductions of chunked arrays on Dask: plan, graph and tasks. The only package of dred that imports dask.

`graph.reduce` builds a lazy `dask.array.Array`, `compute` waits for the numbers.
`plan.Plan` says beforehand what it will consist of.
"""
