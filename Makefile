# `make help` lists what there is. The environment is made by tools/env.py; the kernels are compiled here.

.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules
.SUFFIXES:
.DELETE_ON_ERROR:
# With -j too, targets are made one after the other, for some make the same files; what each compiles, JOBS at a time.
ifeq ($(MAKELEVEL),0)
.NOTPARALLEL:
endif

# Python: the environment's own, made when needed; or PYTHON=, used as it is, and then no environment is made.
ifdef PYTHON
ENV :=
export PYTHONPATH := $(CURDIR)$(addprefix :,$(PYTHONPATH))
else
PYTHON := .venv/bin/python
ENV := env
CLANG_FORMAT ?= .venv/bin/clang-format
endif
CLANG_FORMAT ?= clang-format

# ---- kernels -------------------------------------------------------------------------------------
# The whole definition of the library: setup.py calls `make kernels` too.
CXX      ?= g++
OPTIMIZE ?= -O3
WERROR   ?= -Werror
JOBS     ?= $(shell nproc)
OBJECTS  ?= build/kernels
LIBRARY  ?= hvd_qsgd/libhvd_qsgd.so

# No contraction and no -ffast-math: docs/wire_format.md fixes every rounding. No -march: the library
# picks its instruction set when it runs; only the files named for one are compiled for one.
KERNEL_FLAGS := -std=c++17 $(OPTIMIZE) -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno \
                -pthread -Wall -Wextra -Wno-psabi $(WERROR) -Ikernels
ifneq ($(filter x86_64 amd64 i686,$(shell uname -m)),)
$(OBJECTS)/%_avx2.o: KERNEL_FLAGS += -mavx2 -mf16c -mbmi2
# GCC's own AVX-512 header: _mm512_undefined_*() is no mistake, and _mm512_reduce_add_epi64() wraps.
$(OBJECTS)/%_avx512.o: KERNEL_FLAGS += -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mf16c \
                                       -Wno-uninitialized -Wno-maybe-uninitialized -fno-sanitize=signed-integer-overflow
endif

KERNEL_SOURCES := $(wildcard kernels/*.cpp kernels/cpu/*.cpp)
KERNEL_OBJECTS := $(KERNEL_SOURCES:kernels/%.cpp=$(OBJECTS)/%.o)

.PHONY: kernels library asan-kernels
kernels:                             ## compile the kernel library into hvd_qsgd/
	@$(MAKE) --no-print-directory -j$(JOBS) library

library: $(LIBRARY)
	@:

$(LIBRARY): $(KERNEL_OBJECTS)
	@mkdir -p $(@D)
	@echo link $@
	@$(CXX) -shared $(OPTIMIZE) -pthread $(LDFLAGS) -o $@.tmp $^
	@mv $@.tmp $@

$(OBJECTS)/%.o: kernels/%.cpp Makefile
	@mkdir -p $(@D)
	@echo compile $<
	@$(CXX) $(CPPFLAGS) $(KERNEL_FLAGS) $(CXXFLAGS) -MMD -MP -c -o $@ $<

-include $(KERNEL_OBJECTS:.o=.d)

# ---- CUDA kernels --------------------------------------------------------------------------------
# A library of its own, which links to no other: loaded where a tensor lies on a GPU. For every architecture of
# CUDA_ARCH="80 90" or, by default, those that nvcc knows of CUDA_ARCHS, and as PTX for what comes after.
NVCC       ?= nvcc
CUDA_ARCHS := 70 75 80 86 89 90 100 110 120
CUDA_ARCH  ?= $(filter $(CUDA_ARCHS),$(patsubst compute_%,%,$(shell $(NVCC) --list-gpu-arch)))
CUDA_LIBRARY ?= hvd_qsgd/libhvd_qsgd_cuda.so
CUDA_SOURCES := $(wildcard kernels/cuda/*.cu)
CUDA_OBJECTS := $(CUDA_SOURCES:kernels/cuda/%.cu=build/cuda/%.o)
CUDA_CODE     = $(foreach a,$(CUDA_ARCH),-gencode arch=compute_$a,code=sm_$a) \
                -gencode arch=compute_$(lastword $(CUDA_ARCH)),code=compute_$(lastword $(CUDA_ARCH))
# Older ones spill a register here and there, which is no mistake.
CUDA_WERROR   = $(if $(and $(WERROR),$(findstring release 13.,$(shell $(NVCC) --version))),-Werror all-warnings)
# Every operation is rounded by itself, and subnormal numbers count: docs/wire_format.md. (No -lineinfo, which is more
# than nvcc 11.8 can bear; for a profiler: NVCCFLAGS=-lineinfo.)
CUDA_FLAGS    = -std=c++17 -O3 -fmad=false -ftz=false -prec-div=true -prec-sqrt=true $(CUDA_WERROR) \
                -Xptxas -warn-spills,-warn-lmem-usage -Xcompiler -fPIC,-fvisibility=hidden -Ikernels $(NVCCFLAGS)

.PHONY: cuda cuda-if-there cuda-library cuda-emulated cuda-emulate-test cuda-sanitize-test always
cuda:                                ## compile the CUDA kernels into hvd_qsgd/ with nvcc; CUDA_ARCH="80 90"
	@$(NVCC) --version >/dev/null 2>&1 || { echo "cuda: $(NVCC) was not found; install the CUDA toolkit, or name nvcc:" \
	    "make cuda NVCC=/usr/local/cuda/bin/nvcc" >&2; exit 1; }
	@$(MAKE) --no-print-directory -j$(JOBS) cuda-library

cuda-if-there:
	@if $(NVCC) --version >/dev/null 2>&1; then $(MAKE) --no-print-directory cuda; fi

cuda-library: $(CUDA_LIBRARY)
	@:

$(CUDA_LIBRARY): $(CUDA_OBJECTS)
	@mkdir -p $(@D)
	@echo link $@
	@$(NVCC) -shared --cudart static -o $@.tmp $^
	@mv $@.tmp $@

build/cuda/%.o: kernels/cuda/%.cu Makefile build/cuda/architectures
	@echo compile $< for $(CUDA_ARCH)
	@$(NVCC) $(CUDA_FLAGS) $(CUDA_CODE) -MMD -MF $(@:.o=.d) -c -o $@ $<

# Changes when CUDA_ARCH does: what was compiled for other GPUs does not run on these.
build/cuda/architectures: always
	@mkdir -p $(@D)
	@echo $(CUDA_ARCH) | cmp -s - $@ || echo $(CUDA_ARCH) >$@

# The same sources as C++, on a GPU that is emulated (tests/cuda_emulation/): no blocks but three, so that each takes
# several turns.
EMULATED         := build/cuda-emulated
EMULATED_OBJECTS := $(CUDA_SOURCES:kernels/cuda/%.cu=$(EMULATED)/%.o) $(EMULATED)/emulation.o
EMULATED_FLAGS    = -std=c++17 -O1 -g -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -DQSGD_CUDA_MOST_BLOCKS=3 \
                    -Wall -Wextra -Wno-unknown-pragmas -Wno-psabi $(WERROR) $(EMULATION_CHECKS) -Itests/cuda_emulation -Ikernels
cuda-emulated:
	@$(MAKE) --no-print-directory -j$(JOBS) $(EMULATED)/libhvd_qsgd_cuda.so

cuda-emulate-test: $(ENV) kernels cuda-emulated ## run the CUDA kernels' tests on the processor
	$(PYTHON) -m pytest -q $(wildcard tests/test_cuda*.py) $(ARGS)

# Under ThreadSanitizer threads of the emulated GPU are threads (tests/cuda_emulation/races.h): a missing barrier shows.
# It does not see the scheduler, which runs them one at a time.
CUDA_CHECKS ?= thread address,undefined
cuda-sanitize-test: $(ENV) kernels   ## run them under the sanitizers: races, addresses, undefined behaviour; takes long
	@for checks in $(CUDA_CHECKS); do \
	    $(MAKE) --no-print-directory cuda-emulated EMULATED=build/cuda-$$checks WERROR= \
	        EMULATION_CHECKS="-fsanitize=$$checks -fno-sanitize-recover=all -fno-omit-frame-pointer" || exit 1; \
	    case $$checks in thread) runtime=libtsan;; *) runtime=libasan;; esac; \
	    LD_PRELOAD="$$($(CXX) -print-file-name=$$runtime.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	    ASAN_OPTIONS=detect_leaks=0 TSAN_OPTIONS=halt_on_error=1 HVD_QSGD_CUDA_EMULATION=build/cuda-$$checks/libhvd_qsgd_cuda.so \
	    $(PYTHON) -m pytest -q -p no:cacheprovider --capture=sys --timeout=0 $(wildcard tests/test_cuda*.py) $(ARGS) || exit 1; \
	done

$(EMULATED)/libhvd_qsgd_cuda.so: $(EMULATED_OBJECTS)
	@echo link $@
	@$(CXX) -shared $(EMULATION_CHECKS) -o $@.tmp $^
	@mv $@.tmp $@

$(EMULATED)/%.o: kernels/cuda/%.cu Makefile
	@mkdir -p $(@D)
	@echo compile $< as C++
	@$(CXX) -x c++ $(EMULATED_FLAGS) -MMD -MP -c -o $@ $<

$(EMULATED)/%.o: tests/cuda_emulation/%.cpp Makefile
	@mkdir -p $(@D)
	@echo compile $<
	@$(CXX) $(EMULATED_FLAGS) -fno-sanitize=thread -MMD -MP -c -o $@ $<

-include $(CUDA_OBJECTS:.o=.d) $(EMULATED_OBJECTS:.o=.d)

# ---- TensorFlow ops ------------------------------------------------------------------------------
# Built for the TensorFlow that PYTHON imports, whose version is in the library's name: another one needs another.
.PHONY: tensorflow tensorflow-if-there ops pretended-gpu
tensorflow: $(ENV) kernels           ## compile the TensorFlow ops into hvd_qsgd/
	@version=$$($(PYTHON) tools/tensorflow_version.py) || \
	    { echo "tensorflow: $(PYTHON) has no TensorFlow; name one that has: make tensorflow PYTHON=" >&2; exit 1; }; \
	$(MAKE) --no-print-directory -j$(JOBS) ops TENSORFLOW=$$version

tensorflow-if-there: $(ENV) kernels
	@version=$$($(PYTHON) tools/tensorflow_version.py) || exit 0; \
	$(MAKE) --no-print-directory -j$(JOBS) ops $(ALSO) TENSORFLOW=$$version

ifdef TENSORFLOW
OPS_LIBRARY := hvd_qsgd/libhvd_qsgd_tensorflow-$(TENSORFLOW).so
OPS_OBJECTS := $(patsubst kernels/tensorflow/%.cpp,build/tensorflow-$(TENSORFLOW)/%.o,$(wildcard kernels/tensorflow/*.cpp))
# Asked once, and only if something is to be compiled: importing TensorFlow takes seconds.
sysconfig = $(shell $(PYTHON) -c 'import tensorflow as tf; print(*tf.sysconfig.get_$(1)_flags())' 2>/dev/null)
TF_COMPILE = $(eval TF_COMPILE := $(patsubst -I%,-isystem%,$(call sysconfig,compile)))$(TF_COMPILE)
# tensorflow::Status, which old versions know, is deprecated in new ones.
OPS_FLAGS := -O2 -fPIC -fvisibility=hidden -pthread -Wall -Wextra -Wno-deprecated-declarations $(WERROR) -Ikernels

ops: $(OPS_LIBRARY)
	@:

$(OPS_LIBRARY): $(OPS_OBJECTS) | $(LIBRARY)
	@echo link $@
	@$(CXX) -shared $(LDFLAGS) -o $@.tmp $^ -L$(dir $(LIBRARY)) -l:$(notdir $(LIBRARY)) -Wl,-rpath,'$$ORIGIN' \
	    $(call sysconfig,link)
	@mv $@.tmp $@

build/tensorflow-$(TENSORFLOW)/%.o: kernels/tensorflow/%.cpp Makefile
	@mkdir -p $(@D)
	@echo compile $<
	@$(CXX) $(CPPFLAGS) $(TF_COMPILE) $(OPS_FLAGS) $(CXXFLAGS) -MMD -MP -c -o $@ $<

-include $(OPS_OBJECTS:.o=.d)

# A GPU for the tests, of TensorFlow's and the emulated CUDA kernels'.
pretended-gpu: build/tensorflow-$(TENSORFLOW)/pretended_gpu.so
	@:

build/tensorflow-$(TENSORFLOW)/pretended_gpu.so: tests/tensorflow_device/pretended_gpu.cpp $(EMULATED)/libhvd_qsgd_cuda.so
	@mkdir -p $(@D)
	@echo compile $<
	@$(CXX) -shared $(CPPFLAGS) $(TF_COMPILE) $(OPS_FLAGS) $(CXXFLAGS) -o $@.tmp $< -Wl,--no-as-needed -L$(EMULATED) \
	    -l:libhvd_qsgd_cuda.so -Wl,-rpath,'$$ORIGIN/../cuda-emulated' $(call sysconfig,link)
	@mv $@.tmp $@
endif

ASAN_LIBRARY := $(CURDIR)/build/asan/libhvd_qsgd.so
# -O0: with the checks in, optimizing the unrolled loops takes GCC many minutes and gigabytes.
asan-kernels:                        ## the kernel library with address and undefined-behaviour checks, in build/asan/
	@$(MAKE) --no-print-directory kernels WERROR= OBJECTS=build/asan LIBRARY=$(ASAN_LIBRARY) \
	    OPTIMIZE='-O0 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all'

# Every decoder on mutated frames, with address checks in, for each instruction set there is: FUZZ= executions each.
# FUZZ_CHECKS="-O0 -fsanitize=address,undefined" has more checks, and runs ten times as long.
# With clang: the same target under libFuzzer (CXX=clang++ FUZZER=-fsanitize=fuzzer).
FUZZ ?= 1000000
FUZZ_SEED ?= 1
FUZZ_CHECKS ?= -O1 -fsanitize=address
FUZZER ?= -fsanitize-coverage=trace-pc
FUZZ_SOURCES := tests/fuzz/decode.cpp $(if $(findstring fuzzer,$(FUZZER)),,tests/fuzz/run.cpp)
.PHONY: fuzz
fuzz:                                ## run mutated frames through the decoders, under the sanitizers; FUZZ=executions
	@$(MAKE) --no-print-directory kernels WERROR= OBJECTS=build/fuzz LIBRARY=$(CURDIR)/build/fuzz/libhvd_qsgd.so \
	    OPTIMIZE='$(FUZZ_CHECKS) -g1 -fno-omit-frame-pointer -fno-sanitize-recover=all' CXXFLAGS='$(FUZZER)'
	$(CXX) -std=c++17 -g $(FUZZ_CHECKS) -fno-sanitize-recover=all $(filter -fsanitize=fuzzer,$(FUZZER)) \
	    -Ikernels $(FUZZ_SOURCES) build/fuzz/libhvd_qsgd.so -Wl,-rpath,'$$ORIGIN' -o build/fuzz/decode
	for isa in avx512 avx2 baseline; do HVD_QSGD_ISA=$$isa build/fuzz/decode \
	    $(if $(findstring fuzzer,$(FUZZER)),-runs=$(FUZZ) -max_len=8192,$(FUZZ) $(FUZZ_SEED)) || exit 1; done

# ---- tests, checks, examples ---------------------------------------------------------------------
.PHONY: env test asan-test gpu-check lint format bench demo paper lock clean distclean help
env:                                 ## make .venv: pinned packages, Horovod built from source (once; minutes)
	@p=$$(for p in $(BASE_PYTHON) python3.11 python3; do \
	    $$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo $$p && break; done); \
	test -n "$$p" || { echo "env: Python 3.11 is needed and was not found; on Debian or Ubuntu:" \
	    "apt install python3.11-venv; if it is elsewhere: make BASE_PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	$$p tools/env.py

test: ALSO := pretended-gpu
test: $(ENV) kernels tensorflow-if-there cuda-if-there cuda-emulated ## run the tests; ARGS='-k name' passes options to pytest
	$(PYTHON) -m pytest tests -q $(ARGS)

# Not the tests of distributions: they take long, and no other path through the code.
SANITIZED_TESTS = $(filter-out %_statistics.py,$(wildcard tests/test_kernels*.py tests/test_frame*.py tests/test_token.py))
asan-test: $(ENV) asan-kernels       ## run the kernel tests under the sanitizers
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 HVD_QSGD_LIBRARY=$(ASAN_LIBRARY) \
	$(PYTHON) -m pytest -q -p no:cacheprovider --capture=sys $(SANITIZED_TESTS) $(ARGS)

gpu-check:                           ## with a GPU: build for it, test, measure; PYTHON= one with PyTorch
	@command -v $(PYTHON) >/dev/null || { echo "gpu-check: $(PYTHON) is not there; name a Python with PyTorch for" \
	    "the GPU, NumPy and pytest: make gpu-check PYTHON=python3" >&2; exit 1; }
	$(PYTHON) tools/gpu_check.py $(ARGS)

KERNEL_FILES = $(wildcard tests/fuzz/*.cpp tests/cuda_emulation/* tests/tensorflow_device/* kernels/*.h kernels/*.cpp kernels/*/*.h kernels/*/*.cpp kernels/*/*.cu kernels/*/*.cuh)
lint: $(ENV)                         ## ruff, mypy --strict, clang-format: change nothing
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy --strict hvd_qsgd $(wildcard tools/*.py)
	$(if $(KERNEL_FILES),$(CLANG_FORMAT) --dry-run -Werror $(KERNEL_FILES))

format: $(ENV)                       ## let ruff and clang-format rewrite
	$(PYTHON) -m ruff check --fix-only .
	$(PYTHON) -m ruff format .
	$(if $(KERNEL_FILES),$(CLANG_FORMAT) -i $(KERNEL_FILES))

bench: $(ENV) kernels                ## measure the kernels
	$(PYTHON) -m benchmarks.kernels $(ARGS)

FRAMEWORK ?= torch
NP ?= 2
demo: $(ENV) kernels tensorflow-if-there ## train with and without compression: FRAMEWORK=torch NP=2 ARGS=
	$(PYTHON) examples/demo.py --framework $(FRAMEWORK) --np $(NP) $(ARGS)

EXPERIMENTS := bucket_sizes effective_floats onebit bits parallel convex tradeoff variance_reduction
paper: $(ENV) kernels                ## run the papers' experiments: ARGS='--data-dir DIR --images-dir DIR', ARGS=--quick
	for e in $(EXPERIMENTS); do $(PYTHON) -m experiments.$$e $(ARGS) || exit 1; done

lock: $(ENV)                         ## pin the newest versions that requirements/env.in allows
	$(PYTHON) tools/lock.py

clean:                               ## remove what was compiled
	rm -rf build dist *.egg-info hvd_qsgd/*.so hvd_qsgd/*.so.tmp .pytest_cache .mypy_cache .ruff_cache

distclean: clean                     ## remove .venv as well
	rm -rf .venv

help:                                ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | while IFS="$$(printf '\t')" read -r t d; do \
	    printf '  make %-18s %s\n' "$$t" "$$d"; done
