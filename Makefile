# Every verb sets itself up from nothing: it makes the virtual environment, compiles the kernels and installs what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: native
native:  ## rebuild the native kernels in place (developers)
	@mkdir -p build
	@flock build/.lock sh -c '\
	  $(BIN)/cmake -S . -B build/dev -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DPython_EXECUTABLE=$(abspath $(BIN))/python >build/configure.log 2>&1 || { cat build/configure.log; exit 1; }; \
	  $(BIN)/cmake --build build/dev && cp -u build/dev/_native*.so headrace/kernels/'
