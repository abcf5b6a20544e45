# Two commands: `make serve` runs the daemon on the embedded demo model, `make test` runs every check.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup serve test lint types contracts pytest format clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

serve: setup
	$(BIN)/colocate serve $(ARGS)

test: setup lint types contracts pytest

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

contracts: setup
	$(BIN)/lint-imports

# What only computes runs on two processes, and so do live tests that keep no two processes waiting for each other's
# time; the other live tests have the machine to themselves.
PURE_TESTS := tests/unit tests/property tests/sim tests/contract tests/cuda tests/gpu
CROWD_TESTS := $(addprefix tests/integration/test_,bench_client.py bench_command.py bench_prompts.py cuda_keeper.py \
	doctor_gpu.py dummy_model.py fake_gpu.py gpu_memory_plan.py gpu_suite_smoke.py peers.py recall.py sweep.py \
	sweep_recall.py timeline_run.py)
LIVE_TESTS := tests/integration tests/fault $(addprefix --ignore=,$(CROWD_TESTS))

pytest: setup
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	$(BIN)/python -m pytest -n 2 $(PURE_TESTS)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(CROWD_TESTS)
	$(BIN)/python -m pytest $(LIVE_TESTS)
endif

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
