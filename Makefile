# `make demo` and `make test` need Debian (or the like), Python >= 3.10 with venv, a C++20 compiler and a package index.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
# Also the isolated build environment takes the pinned versions.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
SOURCES := $(shell find csrc fastvae kernels -name '*.py' -o -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test test-all docs lint format aot aot-all sanitize sanitize-pytorch address-extension fuzz wheel bench gpu-check gpu-rehearsal gpu-tune compat compat-python compat-aarch64 compat-compiler constraints sdist sdist-check wheels wheel-speed clean

demo: $(VENV)/installed
	$(RUN) -m fastvae demo

# One worker more than cores, as some tests wait for processes that they start. Threads that wait must not spin.
WORKERS ?= $(shell expr 1 + $$(nproc))
test: export GOMP_SPINCOUNT ?= 1000
test: $(VENV)/installed build/triton-3.6.0/installed
	$(RUN) -m pytest -n $(WORKERS) --dist worksteal
	$(RUN) -m pytest --doctest-modules fastvae

# Also what takes long and differs from the others only in its subject.
test-all: export GOMP_SPINCOUNT ?= 1000
test-all: $(VENV)/installed build/triton-3.6.0/installed
	$(RUN) -m pytest -n $(WORKERS) --dist worksteal -m ""

# The site, from the docstrings and the pages of docs/. A warning is an error.
docs: $(VENV)/installed
	rm -rf build/docs docs/api/generated
	$(RUN) -m sphinx -W --keep-going -q -j auto -b html docs build/docs

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $$(find csrc kernels tests/csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
	$(RUN) -m mypy

format: $(VENV)/installed
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(VENV)/bin/clang-format -i $$(find csrc kernels tests/csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

# Registers, memory and instructions of every Triton kernel, without a GPU: by the Triton that comes with GPU machines'
# torch for the target that the tiles are chosen for, and by the installed one for every target.
aot: $(VENV)/installed build/triton-3.6.0/installed
	$(RUN) -m fastvae.kernels.aot --triton build/triton-3.6.0 --targets sm_90
	$(RUN) -m fastvae.kernels.aot

# Also by the oldest Triton that runs the kernels. It has no products of float64.
aot-all: aot build/triton-3.4.0/installed
	$(RUN) -m fastvae.kernels.aot --triton build/triton-3.4.0 --targets sm_90 --cases '^(?!float64)'

# Every C++ kernel under AddressSanitizer and UndefinedBehaviorSanitizer, for the instruction sets ISAS.
sanitize: ISAS ?= baseline;avx2;avx512
sanitize: $(VENV)/installed
	$(VENV)/bin/cmake -S . -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(VENV)/bin/ninja \
		-DFASTVAE_SANITIZE=ON "-DFASTVAE_ISAS=$(ISAS)"
	$(VENV)/bin/ninja -C build/sanitize
	OMP_NUM_THREADS=2 build/sanitize/sanitize

address-extension: $(VENV)/installed
	$(RUN) -m pip install --quiet --no-index --no-build-isolation --no-deps --upgrade --target build/address \
		--config-settings=cmake.define.FASTVAE_ADDRESS=ON --config-settings=build-dir=build/address-objects .

# Every way in which PyTorch calls the ops, with the extension under AddressSanitizer: no address is read that is not ours.
# Leaks are those of Python and PyTorch. The C++ library is loaded with the runtime, which must find its exceptions.
sanitize-pytorch: address-extension
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0:log_path=build/address/report OMP_NUM_THREADS=2 \
		$(RUN) tests/csrc/with_extension.py build/address/fastvae tests/pytorch tests/ops/test_tensors.py -q

# Random calls, wrong calls and damaged files, with the extension under AddressSanitizer: a third of CASES on each
# instruction set. SEED numbers the first of them; a failure is printed with the command that repeats it.
fuzz: CASES ?= 10000
fuzz: SEED ?= 0
fuzz: address-extension
	$(RUN) -m tests.fuzz --cases $(CASES) --seed $(SEED) --extension build/address/fastvae

# The wheel, built offline with the tools at hand and tried outside the checkout, where fastvae/ does not shadow it.
wheel: $(VENV)/installed
	rm -rf build/wheel-check
	$(RUN) -m pip install --no-index --no-build-isolation --no-deps --target build/wheel-check .
	cp tests/wheel_smoke.py build/wheel-check/
	cd build/wheel-check && $(CURDIR)/$(RUN) -I wheel_smoke.py

# For an index, each by one command: `make wheel-pure`, `make wheel-x86_64`, `make wheel-macos`, and, where
# aarch64-linux-gnu-g++ is installed, `make wheel-aarch64`. They are in build/wheels. The tools have hashes, and PyTorch is
# none of them.
TOOLS := build/tools
THIS_WHEEL := wheel-$(if $(filter Darwin,$(shell uname -s)),macos,$(shell uname -m))
wheels: wheel-pure $(THIS_WHEEL)
wheel-%: $(TOOLS)/installed
	PATH=$(CURDIR)/$(TOOLS)/bin:$$PATH $(TOOLS)/bin/python -m wheels $*

$(TOOLS)/installed: wheels/requirements.txt
	$(PYTHON) -m venv --clear $(TOOLS)
	PIP_CONSTRAINT= $(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r $<
	touch $@

# Against the extension that is installed here, in turns with it. Nothing else should run meanwhile.
wheel-speed: $(THIS_WHEEL) $(VENV)/installed
	rm -rf build/wheel-speed
	$(PIP) --no-index --find-links build/wheels --no-deps --target build/wheel-speed fastvae-kernels
	$(PIP) --target build/wheel-speed nanobind-backend
	$(RUN) -m wheels.speed build/wheel-speed/fastvae

sdist: $(TOOLS)/installed
	mkdir -p build/wheels
	$(TOOLS)/bin/python -c "from scikit_build_core.build import build_sdist; print(build_sdist('build/wheels'))"
	$(TOOLS)/bin/python -m twine check --strict build/wheels/*

# The source distribution, installed without a network by the oldest tools that pyproject.toml allows.
sdist-check: sdist
	$(TOOLS)/bin/python -m wheels.minimums

# The wheel of this machine on the oldest and the newest PyTorch and Python that are claimed, and on some in between:
# VERSIONS of PyTorch or Python. It fetches a gigabyte for each.
compat: $(THIS_WHEEL)
	$(TOOLS)/bin/python -m tests.compat $(VERSIONS)

# Python 3.14 for it, where the system has none and is a Debian.
compat-python: $(TOOLS)/installed
	PATH=$(CURDIR)/$(TOOLS)/bin:$$PATH $(TOOLS)/bin/python -m tests.compat.debian 3.14

# The wheel for ARM on an emulated processor: qemu-aarch64-static, as Debian's package qemu-user-static has it.
compat-aarch64: wheel-aarch64
	PATH=$(CURDIR)/$(TOOLS)/bin:$$PATH $(TOOLS)/bin/python -m tests.compat.aarch64

# Every test of an op with the extension as another compiler makes it: `make compat-compiler CXX=clang++-15`.
compat-compiler: CXX := clang++
compat-compiler: $(VENV)/installed
	$(RUN) -m pip install --quiet --no-index --no-build-isolation --no-deps --upgrade --target build/$(CXX) \
		--config-settings=cmake.define.CMAKE_CXX_COMPILER=$(CXX) --config-settings=build-dir=build/$(CXX)-objects .
	$(RUN) tests/csrc/with_extension.py build/$(CXX)/fastvae tests/ops -q -m ""

# What builds wheels, with what that requires and the hashes of the files, for every Python that is claimed. The pins of
# constraints.txt must have a solution on each of them.
constraints: $(VENV)/installed
	$(PIP) uv
	for version in 3.10 3.11 3.12 3.13 3.14; do $(VENV)/bin/uv pip compile --quiet --python-version $$version \
		--constraint constraints.txt --all-extras pyproject.toml >/dev/null || exit 1; done
	$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-header --no-annotate \
		--constraint constraints.txt wheels/requirements.in --output-file wheels/requirements.txt

# Whole jobs first, then ops. Whole passes of the network for every pixel of 64 images would take five minutes a run: those
# are for one image.
bench: rows := bench/results/cpu/rows.jsonl
bench: $(VENV)/installed
	$(RUN) -m bench --device cpu --json $(rows) --op training_step,density_step,evaluation,model_sample,demo
	$(RUN) -m bench --device cpu --json $(rows) \
		--op affine_flow,attention_window,autoregressive_flow,autoregressive_inverse,bernoulli,class_linear,diag_gaussian,gated_activation,gated_stack,gaussian_merge,latent_gradient,linear_bernoulli,linear_tril_gaussian,logistic_mixture,masked_conv2d,masked_linear,mlp_bernoulli,tril_gaussian
	$(RUN) -m bench --device cpu --json $(rows) --op causal_sampler --shape 64x784 --impl fastvae,reference,forward
	$(RUN) -m bench --device cpu --json $(rows) --op causal_sampler --shape 1x784
	$(RUN) -m bench profile --json bench/results/cpu/profiles.jsonl
	$(RUN) -m bench report $(rows) --out bench/results/cpu

# On a machine with a GPU whose Python already has torch, Triton and pytest; nothing is built, and no network is needed.
# PART=second: memory checks, hardware counters, other constants than the rules of the kernels choose.
gpu-check: PART ?= first
gpu-check:
	$(PYTHON) -m bench.gpu_check $(PART)

# What both parts compile, and how long they take, without a GPU.
gpu-rehearsal: $(VENV)/installed
	$(RUN) -m bench.gpu_check --rehearse

# There too: nothing but other constants than the rules of the kernels choose.
gpu-tune:
	$(PYTHON) -m bench.gpu_check tune

clean:
	rm -rf build dist demo-out

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { echo "python3 has no venv module: on Debian, apt install python3-venv"; exit 1; }

# The extension compiles while pip brings PyTorch: it includes none of its headers. Python compiles modules when it imports
# them, which most of what comes along never is. The last line finds the objects of the first compilation.
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check --no-compile
$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt CMakeLists.txt $(SOURCES)
	$(PIP) scikit-build-core nanobind cmake ninja setuptools wheel
	$(PIP) --no-build-isolation --no-deps -e . & extension=$$!; \
		$(PIP) torch==$$(sed -n 's/^torch==//p' constraints.txt) && $(PIP) -r constraints.txt; \
		packages=$$?; wait $$extension && exit $$packages
	# With the tools at hand, so that `make wheel` finds the objects of this build too.
	$(PIP) --no-build-isolation -e '.[train,test,lint,bench,peers,ecosystem,compress,docs]'
	touch $@

# Another Triton than torch's. Only `python -m fastvae.kernels.aot --triton` imports it.
build/triton-%/installed: | $(VENV)/bin/python
	PIP_CONSTRAINT= $(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(@D) triton==$*
	touch $@
