# Everything needs only Python 3.11; each target does its own set-up in .venv.
PYTHON ?= python3.11
VENV := .venv
INSTALLED := $(VENV)/.installed
ARGS ?=

.PHONY: run test lint benchmark peers clean

# 20 workers, 4 of them Byzantine, four defences side by side, each with and without the attack.
run: $(INSTALLED)
	$(VENV)/bin/robust-agg run $(ARGS)

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest $(ARGS)

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# What things cost on this machine, beside other libraries: BENCH=aggregators, train, transport,
# optim, collectives.
BENCH ?= aggregators
benchmark: peers
	$(VENV)/bin/robust-agg bench $(BENCH) $(ARGS)

# The libraries that are compared with, beside a torch that they say they cannot bear.
peers: $(VENV)/.peers

$(VENV)/.peers: $(INSTALLED) experiments/bench/peers.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --requirement experiments/bench/peers.txt
	touch $@

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable ".[all,dev]"
	touch $@

clean:
	rm -rf $(VENV)
