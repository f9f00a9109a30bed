# `make train` goes from nothing to a trained model and its report; `make check` reads the code; `make test` runs every test.
PYTHON ?= python3
BIN := .venv/bin

# A real SLURM cluster for the tests in tests/slurm.
SLURM_PACKAGES := slurmctld slurmd slurm-client slurmdbd mariadb-server munge

.PHONY: train check test slurm clean

train: .venv/ready
	$(BIN)/bigbatch shard digits shards/digits --val-fraction 0.2
	$(BIN)/bigbatch train demo --data shards/digits
	$(BIN)/bigbatch export runs/demo runs/demo.safetensors
	$(BIN)/bigbatch evaluate runs/demo.safetensors --data shards/digits
	$(BIN)/bigbatch report runs/demo

check: .venv/ready-to-develop
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

test: .venv/ready-to-develop slurm
	$(BIN)/python -m pytest --numprocesses 3 --no-loadscope-reorder

# Installed where that is possible, as root on Debian; elsewhere the tests that need it skip and say so.
slurm:
	@if [ "$$(id -u)" = 0 ] && [ -f /etc/debian_version ] && ! dpkg -s $(SLURM_PACKAGES) > /dev/null 2>&1; then \
	  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $(SLURM_PACKAGES) \
	  || echo "SLURM could not be installed: its tests will be skipped"; \
	fi

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("bigbatch needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint constraints.txt --editable .
	touch $@

.venv/ready-to-develop: .venv/ready
	$(BIN)/pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
