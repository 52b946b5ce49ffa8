# Needs Python 3.11 or newer and make; everything else goes into .venv.

SHELL = /bin/sh
BIN = .venv/bin
DEMO = --cluster local --workers 2 --M 1000000 --N 50000 --output demo

.PHONY: help venv demo test test-slow soak lint format doctest docs bench bench-gpu clean

help:
	@echo "make demo       a million points by fifty thousand on a local cluster, checked (a few minutes)"
	@echo "make test       the tests (minutes)"
	@echo "make test-slow  failures, SLURM, other versions of dask (by pip), large sizes (tens of minutes)"
	@echo "make soak       the long run before a release"
	@echo "make lint       ruff and mypy;   make format   ruff format"
	@echo "make doctest    the examples in docstrings, README and docs"
	@echo "make docs       docs/operations.md and the types of LazyTensor's methods, printed from the tables"
	@echo "make bench      dred beside its peers: those of .venv (.venv/bin/pip install '.[bench]' for all of them)"
	@echo "make bench-gpu  the same on a GPU, with the rates aimed at; without one each kernel's registers and instructions"
	@echo "make clean      remove .venv, caches and the demo's output"

venv: .venv/.stamp

# An environment that is there is kept; else the first interpreter that is new enough and can make one. PYTHON=...
# overrides the search.
.venv/.stamp: pyproject.toml
	@if .venv/bin/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "environment: .venv, which is there"; exit 0; \
	fi; \
	for python in $(PYTHON) python3 python3.11 python3.12 python3.13 python3.14 python; do \
	    if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "environment: .venv, by $$python ($$("$$python" --version))"; \
	        rm -rf .venv; exec "$$python" -m venv .venv; \
	    fi; \
	done; \
	echo "dred needs Python 3.11 or newer with the venv module: install it (Debian and Ubuntu: apt install python3-venv)," >&2; \
	echo "or name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
	exit 1
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=24'
	$(BIN)/python -m pip install --quiet --editable '.[dev,plot]'
	@touch $@

demo: venv
	$(BIN)/python examples/million_points.py $(DEMO)

test: venv
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow and not soak and not gpu' --durations=10

test-slow: venv
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow --durations=15

soak: venv
	$(BIN)/python -m pytest -m soak --record=tests/soak/results -o faulthandler_timeout=0

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict dred

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

doctest: venv
	$(BIN)/python -m pytest --doctest-modules --doctest-glob='*.md' --ignore=dred/torch.py --ignore=dred/jax.py dred $(wildcard README.md docs/*.md)

docs: venv
	mkdir -p docs
	$(BIN)/python -m dred.formula.catalogue >docs/operations.tmp
	mv docs/operations.tmp docs/operations.md
	$(BIN)/python -m dred.lazy.stubs >dred/lazy/methods.tmp
	mv dred/lazy/methods.tmp dred/lazy/methods.pyi

bench: venv
	for script in $(filter-out benchmarks/peers.py benchmarks/gpu%.py,$(wildcard benchmarks/*.py)); do $(BIN)/python "$$script" || exit 1; done

bench-gpu: venv
	$(BIN)/python benchmarks/gpu.py

clean:
	rm -rf .venv demo dist build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
