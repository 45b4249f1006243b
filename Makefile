# Everything sets itself up: `make demo` and `make test` work on a machine with Python 3.11+ and nothing else installed.
#
#   TORCH="torch>=2.6"   another PyTorch requirement
#   TORCH_ARGS="..."     more arguments for the pip call that installs it, e.g. --index-url of PyTorch's CPU builds
#   PYTHON=python3.12    another interpreter
#   PROCESSES=8          so many tests at a time

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_ARGS ?=
VENV ?= .venv
SEEDS ?= 0-2
PROCESSES ?= 2

BIN := $(VENV)/bin
DEMO := demo
DATASET := om2p/cooperative-navigation/medium-v0

.PHONY: demo docs test lint clean

# PyTorch first and on its own, so that the build can be chosen: pip's default on Linux brings gigabytes of GPU libraries.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or newer is needed, $(PYTHON) is older; set PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH_ARGS) "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

# A behaviour team is trained online and rolled out into a data set; BC and OM2P learn from that data set alone.
demo: export OM2P_HOME := $(DEMO)/behaviour
demo: export MINARI_DATASETS_PATH := $(DEMO)/datasets
demo: $(VENV)/.installed
	rm -rf $(DEMO)
	$(BIN)/om2p-data generate --env cn --tier medium --fresh --transitions 100000
	$(BIN)/om2p-train run --algo bc --dataset $(DATASET) --seeds $(SEEDS) --out $(DEMO)/runs/bc
	$(BIN)/om2p-train run --algo om2p --dataset $(DATASET) --seeds $(SEEDS) --out $(DEMO)/runs/om2p
	$(BIN)/om2p-train render $(DEMO)/runs/om2p/policies/seed0.safetensors --episodes 4 --out $(DEMO)/episode.gif
	$(BIN)/om2p-train report $(DEMO)/runs/bc $(DEMO)/runs/om2p --out $(DEMO)

# The site, in docs/_build/html; whatever Sphinx warns of is an error.
docs: $(VENV)/.installed
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

test: lint
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) $(DEMO) build dist docs/_build *.egg-info
