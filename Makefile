# `make train` goes from nothing to a trained model and its report; `make test` runs every test.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test clean

train: .venv/ready
	$(BIN)/bigbatch shard digits runs/digits --val-fraction 0.2
	$(BIN)/bigbatch train demo --data runs/digits
	$(BIN)/bigbatch export runs/demo runs/demo.safetensors
	$(BIN)/bigbatch evaluate runs/demo.safetensors --data runs/digits
	$(BIN)/bigbatch report runs/demo

test: .venv/ready-to-test
	$(BIN)/python -m pytest

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "bigbatch needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint constraints.txt --editable .
	touch $@

.venv/ready-to-test: .venv/ready
	$(BIN)/pip install --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
