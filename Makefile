# Each target sets up what it needs: a virtual environment in .venv with a pinned torch, and the
# compiled package in it (editable). Needs Python >= 3.10, a C++17 compiler and make.
#
#   make demo      train, poison, unlearn and retrain on MovieLens 100K; writes demo-out/
#   make test      C++ and Python tests
#   make lint      ruff, mypy, clang-format
#   make sanitize  C++ tests under AddressSanitizer and UBSan
#   make simt      CUDA kernels on the CPU, emulated and checked
#   make emulated  the Python tests of the CUDA ops on an emulated GPU
#   make mutants   whether those tests notice a wrong kernel: mutation analysis (half an hour)
#   make cubin     CUDA kernels compiled by nvcc, registers and loads against a budget; needs no GPU
#   make cuda-load the CUDA library in a CUDA build of torch (5 GB), without a GPU
#   make bench     the ops against plain torch; renews the README's tables and pictures (half an hour)
#   make bench-smoke  every benchmark on small data; whether its results are right, never how fast
#   make peers     products and solves by curvlinops, dattri and pyDVL, beside ours
#   make readme    runs the demo and renews the README's table and picture
#   make docs      the documentation, as pages in build/docs that open without a server
#   make package   sdist and wheel, installed and run in a fresh environment
#   make adapters  models that RecBole, PyTorch Geometric and LensKit train, and load again

PYTHON ?= python3
TORCH ?= torch==2.13.0
CUDA_TORCH ?= torch==2.14.1
VENV ?= .venv
BUILD ?= build/cmake
ARGS ?=
# Processes that tests run in; `ARGS="-n 0"` runs pytest's in one, where a debugger can stop them.
WORKERS ?= 2

OP_TESTS := $(addprefix python_tests/test_,device.py gpu.py gpu_solvers.py ops.py pairwise.py)

# Halves of the files, which keeps what a file's tests share in one process; then who is idle helps.
PARALLEL := -n $(WORKERS) --dist worksteal

BIN := $(VENV)/bin
# Named after the pin, so that another TORCH takes effect; there is one at a time.
ENVIRONMENT := $(BIN)/.environment-$(shell printf %s "$(TORCH)" | cksum | cut -d" " -f1)
# In the build folder, so that removing either builds again.
INSTALLED := $(BUILD)/.installed
# pip's own check for a newer pip is noise here.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Idle OpenMP threads sleep instead of spinning: on a busy machine the tests take a tenth of the time.
export OMP_WAIT_POLICY := PASSIVE
# Absolute: the build backend may run elsewhere.
export IFRU_EXT_BUILD_DIR := $(abspath $(BUILD))

NATIVE := CMakeLists.txt setup.py $(shell find csrc -type f)
CXX_FILES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')

.PHONY: all demo test test-cpp test-python emulated lint format sanitize simt mutants cubin \
	cuda-load bench bench-smoke peers readme docs package adapters clean
all: $(INSTALLED)

# The environment: torch first and pinned, so that nothing pulls another build of it.
$(ENVIRONMENT): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)" "setuptools>=77" wheel "cmake>=3.25" ninja "pybind11>=2.13"
	rm -f $(BIN)/.environment* && touch $@

# The package: --no-build-isolation builds against the torch above.
$(INSTALLED): $(ENVIRONMENT) $(NATIVE)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dev]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/ifru demo $(ARGS)

test: test-cpp test-python

test-cpp: $(INSTALLED)
	$(BIN)/cmake --build $(BUILD) --target ifru_tests
	$(BIN)/ctest --test-dir $(BUILD) --output-on-failure

test-python: $(INSTALLED)
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

sanitize: $(ENVIRONMENT)
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
		-DCMAKE_BUILD_TYPE=RelWithDebInfo -DIFRU_PYTHON=OFF -DIFRU_SANITIZE=ON \
		-DIFRU_WERROR=$(or $(IFRU_EXT_WERROR),OFF)
	$(BIN)/cmake --build build/sanitize --target ifru_tests
	$(BIN)/ctest --test-dir build/sanitize --output-on-failure

simt: $(ENVIRONMENT)
	$(BIN)/cmake -S . -B build/simt -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
		-DCMAKE_BUILD_TYPE=None -DIFRU_PYTHON=OFF -DIFRU_SIMT=ON \
		-DIFRU_WERROR=$(or $(IFRU_EXT_WERROR),OFF)
	$(BIN)/cmake --build build/simt --target simt
	$(BIN)/ctest --test-dir build/simt --output-on-failure --parallel $(WORKERS) -R simt_

# The CUDA ops on an emulated GPU, as the Python tests see them.
emulated: $(INSTALLED)
	$(BIN)/cmake --build $(BUILD) --target _ops_emulated
	$(BIN)/python -m pytest $(PARALLEL) --emulated $(BUILD)/_ops_emulated.so $(OP_TESTS) $(ARGS)

mutants: $(ENVIRONMENT)
	PATH="$(abspath $(BIN)):$$PATH" python csrc/testing/simt/mutants.py $(ARGS)

# cuobjdump and nvdisasm come from PyPI: the toolkit may lack them.
cubin: $(ENVIRONMENT)
	@command -v nvcc >/dev/null || { echo "make cubin: expected nvcc on PATH, found none" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet nvidia-cuda-cuobjdump==13.5.37 nvidia-cuda-nvdisasm==13.5.37
	$(BIN)/python benchmarks/cubin.py $(ARGS)

# The libraries as they were built beside a CPU-only torch, beside another one; 5 GB in build/cuda-load.
cuda-load: $(INSTALLED)
	$(PYTHON) -m venv build/cuda-load/venv
	build/cuda-load/venv/bin/python -m pip install --quiet "$(CUDA_TORCH)" numpy safetensors pytest hypothesis
	build/cuda-load/venv/bin/python -c "import ifru_ext; print(ifru_ext.native)"
	build/cuda-load/venv/bin/python -m pytest $(OP_TESTS) $(ARGS)

readme: $(INSTALLED)
	$(BIN)/ifru demo --out build/demo
	cp build/demo/demo.png docs/demo.png
	cp build/demo/report.json benchmarks/results/demo.json
	$(BIN)/python benchmarks/readme.py

# On two cores the first three take some 12, 7 and 4 minutes. A solve on D takes ten seconds and says what its product does.
bench: $(INSTALLED)
	$(BIN)/ifru bench hvp $(ARGS)
	$(BIN)/ifru bench propagate $(ARGS)
	$(BIN)/ifru bench cg --shapes ml-100k,A,B,C --dims 64 $(ARGS)
	$(BIN)/ifru bench scale --most 5e7
	$(BIN)/python benchmarks/readme.py

bench-smoke: $(INSTALLED)
	$(BIN)/python benchmarks/smoke.py

# In an environment of its own, with the package from the checkout.
peers: $(INSTALLED)
	$(PYTHON) -m venv build/peers/venv
	build/peers/venv/bin/python -m pip install --quiet "$(TORCH)" -r benchmarks/peers.txt
	PYTHONPATH=$(CURDIR) build/peers/venv/bin/python -W ignore benchmarks/peers.py $(ARGS)
	$(BIN)/python benchmarks/readme.py

package: $(INSTALLED)
	rm -rf build/package && mkdir -p build/package
	IFRU_EXT_BUILD_DIR= $(BIN)/python -m build --no-isolation --outdir build/package .
	$(PYTHON) -m venv build/package/venv
	build/package/venv/bin/python -m pip install --quiet "$(TORCH)" build/package/*.whl
	cd build/package && venv/bin/python -W error ../../python_tests/smoke.py

clean:
	rm -rf build dist $(VENV) ifru_ext/*.so *.egg-info

docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Each library in an environment of its own, with the package from the checkout. RecBole comes
# without what it depends on: ray, which only its tuning needs, has wheels for few Pythons.
ADAPTERS := recbole pyg lenskit
.PHONY: $(ADAPTERS:%=adapters-%)
adapters: $(ADAPTERS:%=adapters-%)

$(ADAPTERS:%=adapters-%): adapters-%: $(INSTALLED)
	$(PYTHON) -m venv build/adapters-$*
	build/adapters-$*/bin/python -m pip install --quiet "$(TORCH)" -r python_tests/adapters/$*.txt
	[ $* != recbole ] || build/adapters-recbole/bin/python -m pip install --quiet --no-deps recbole==1.2.1
	cd build && PYTHONPATH=$(CURDIR) adapters-$*/bin/python ../python_tests/adapters/$*_round_trip.py
