# make install · demo · test · check · bench · study · board. Needs Python 3.11 or newer, make, and a package index that pip reaches.

# The default index serves a build of torch with CUDA (several GB). For the CPU build give PyTorch's index of CPU wheels, whose
# address stands on PyTorch's own "Get started" page:  make install TORCH_INDEX=<address of the CPU index>
TORCH_INDEX ?=
PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test check bench study board clean
.DELETE_ON_ERROR:

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "edgecompress needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Give another one: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "No virtual environment could be made. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0 || $(call no_index,torch==2.13.0)
	$(BIN)/python -m pip install --quiet -e '.[tflite,dev]' || $(call no_index,the package and its extras)
	@touch $@

no_index = { echo "pip could not install $(1): see its message above. It needs a package index (network, or a mirror in pip's configuration) and about 3 GB of disk." >&2; exit 1; }

demo: $(STAMP)
	$(BIN)/edgecompress run profiles/studies/quickstart.yaml

# The agent's and the boards' tests wait in real time: one after the other. The rest computes: two at once, a thread each, the longest first.
test: $(STAMP)
	$(BIN)/python -m pytest tests/agent tests/board
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/end_to_end tests/contract tests/unit

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2 -m "not heavy and not sshd and not slow"

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

# All of studies/, one after the other (hours; each goes on where it was stopped), or one with its own options:
# make study STUDY="mnist_lookahead --seeds 3"
study: $(STAMP)
	$(BIN)/python studies/run.py $(STUDY)

# An emulated arm64 board with an INA219, under qemu: built once (needs root, Debian 12 and its archive; it says which packages are
# missing), then resumed. BOARD_OUT: a folder for the raw figures, such as docs/results/boards. EDGECOMPRESS_BOARD_CACHE: where the
# image lies (6 GB).
BOARD_OUT ?=
board: $(STAMP)
	$(BIN)/python -m tests.board.emulated.guest
	EDGECOMPRESS_BOARD=1 EDGECOMPRESS_BOARD_OUT=$(BOARD_OUT) $(BIN)/python -m pytest tests/board/test_emulated_board.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
