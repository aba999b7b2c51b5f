# Everything a person or CI runs. `make help` lists it; .ci/run calls lint, test and demo.
# Stages say one line each; a second run of anything does only what changed.

VENV   := .venv
PYTHON := $(VENV)/bin/python
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.substrate-setup
SAY    := @printf '==> %s\n'

# make test PYTEST_ARGS="-k journal"
PYTEST_ARGS ?=

# Deferred: git ls-files would miss sources that are not added yet.
NATIVE_FILES = $(shell find native -name '*.[ch]' -o -name '*.inc' 2>/dev/null)
LAST_RELEASE = $(shell git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help setup build demo test conformance lint check bench bench-truth bench-worlds bench-suites fuzz fmt wheels clean soak

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml hatch_build.py scripts/setup
	@scripts/setup $(VENV)
	@touch $@

setup: $(STAMP) ## the virtual environment with everything in it

build: $(STAMP) ## stubs and native programs, in place
	$(SAY) 'build: stubs and native programs'
	@$(PYTHON) hatch_build.py all

demo: build ## the main job, on a real package
	$(SAY) 'demo'
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/demo

test: build ## the whole suite (installs Debian packages when root; SUBSTRATE_NO_APT=1 forbids)
	@scripts/debian-packages
	$(SAY) 'test'
	@export PATH="$(CURDIR)/$(BIN):$$PATH"; $(PYTHON) -m pytest $(PYTEST_ARGS) || { \
	  echo '==> test: failed. Once more, alone, to tell: what passes now is flaky, and still fails the run'; \
	  $(PYTHON) -m pytest --last-failed --last-failed-no-failures none; exit 1; }

conformance: build ## what every backend must do, clause by backend and mode, with why what is skipped is
	$(SAY) 'conformance'
	@export PATH="$(CURDIR)/$(BIN):$$PATH"; $(PYTHON) -m pytest -q tests/conformance $(PYTEST_ARGS)

test-vm: build ## tests on Debian's own kernel, systemd and cgroup v2 alone, in qemu (half an hour; VM_TESTS="-k pids tests/native/test_limits.py")
	$(SAY) 'test-vm'
	@scripts/vm scripts/vm-tests $(VM_TESTS)

lint: $(STAMP) ## every static check
	$(SAY) 'lint: native programs, warnings are errors'
	@$(PYTHON) hatch_build.py all
	$(SAY) 'lint: ruff'
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo 'not formatted: run make fmt'; exit 1; }
	$(SAY) 'lint: mypy'
	@$(BIN)/mypy
	$(SAY) 'lint: buf'
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code
	@$(if $(LAST_RELEASE),$(BIN)/buf breaking --against '.git#tag=$(LAST_RELEASE)',\
	  echo 'buf breaking: no release yet, nothing to compare with')
	$(SAY) 'lint: clang-format'
	@$(if $(strip $(NATIVE_FILES)),$(BIN)/clang-format --dry-run -Werror $(NATIVE_FILES),\
	  echo 'clang-format: no native sources')

check: lint test ## what CI will say: lint, then test

bench: build ## benchmarks: ratios against peers, in one run
	$(SAY) 'bench'
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/bench

bench-truth: build ## what the recorder captures next to strace, over real workloads
	$(SAY) 'bench-truth'
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/bench truth

bench-slowdown: build ## how much slower real work is under telemetry, next to other recorders
	$(SAY) 'bench-slowdown'
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/bench slowdown

bench-hostile: build ## how much slower a world is beside one that wants all there is
	$(SAY) 'bench-hostile'
	@$(PYTHON) -m benchmarks.bench_hostile

flood: build ## the 10 GB of output of issue 4, cut and held in constant memory
	$(SAY) 'flood'
	@SUBSTRATE_FLOOD_BYTES=10000000000 PATH="$(CURDIR)/$(BIN):$$PATH" $(PYTHON) -m pytest \
	  tests/integration/test_hostile_load.py -k flood -o timeout=1800

bench-worlds: build ## a thousand idle worlds, and ten thousand made and removed in a row
	$(SAY) 'bench-worlds'
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/bench worlds

fuzz: ## libFuzzer on the decoder, under ASan and UBSan, for FUZZ_SECONDS (300)
	$(SAY) 'fuzz'
	@native/fuzz/run

bench-suites: build ## suites of bash, python, git, node and gcc-built programs, recorded and not (an hour; SUITES=git,node SUITES_EVERY=4)
	$(SAY) 'bench-suites'
	@$(PYTHON) benchmarks/bench_suites.py

bench-faults: build ## kill -9 of host process, launcher and inits at 500 random moments (FAULT_POINTS=500)
	$(SAY) 'bench-faults'
	@$(PYTHON) benchmarks/bench_faults.py --points $(or $(FAULT_POINTS),500)

soak: build ## telemetry under a thousand kills, on full file systems, under ten million events in a world
	$(SAY) 'soak'
	@$(PYTHON) benchmarks/soak_telemetry.py --world

fmt: $(STAMP) ## format everything
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format --quiet .
	@$(BIN)/buf format --write
	@$(if $(strip $(NATIVE_FILES)),$(BIN)/clang-format -i $(NATIVE_FILES))

wheels: $(STAMP) ## the pure wheel and this machine's platform wheel, into dist/
	$(SAY) 'wheels'
	@rm -rf dist
	@SUBSTRATE_PURE=1 $(PYTHON) -m hatchling build -t wheel -d dist
	@$(PYTHON) -m hatchling build -t wheel -d dist

clean: ## what was built, and the virtual environment
	@rm -rf $(VENV) build dist substrate_sdk/_pb services/substrate_services/_native
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
