# Everything runs in an environment of its own, made on first use from requirements.txt.
PYTHON ?= python3
VENV := .venv
DEMO := .venvs/demo
OFFLINE := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
RUN := $(OFFLINE) $(VENV)/bin/python
JOBS ?= 2
IMAGE ?=
QUESTION ?=
MODEL ?= tiny
OPTIONS ?=
WINDOW_OPTIONS ?=
LAYOUT ?= 2b
PEERS_OPTIONS ?=
BENCHMARKS := preprocessing vision generation drafts memory second_turn loading growth tokenization

.PHONY: chat demo pictures test test-slow test-demo lint pythons format window peers clean bench

$(VENV)/ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(DEMO)/ready: examples/demo/requirements.txt
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

chat: $(VENV)/ready  ## Ask about the examples, or: make chat IMAGE=path QUESTION="..." MODEL=folder
	@$(RUN) -m examples.chat --model "$(MODEL)" $(if $(IMAGE)$(QUESTION),"$(or $(IMAGE),examples/shapes.png)" "$(QUESTION)")

demo: $(DEMO)/ready  ## A page to try a checkpoint, or: make demo MODEL=folder OPTIONS="--dtype bfloat16 --port 7860"
	@$(OFFLINE) $(DEMO)/bin/python -m examples.demo --model "$(MODEL)" $(OPTIONS)

pictures: $(VENV)/ready $(DEMO)/ready  ## Draw the documents' images again
	$(RUN) docs/draw.py
	DEMO_SCREENSHOT=docs/demo.png $(OFFLINE) $(DEMO)/bin/python -m pytest -m slow tests/test_demo.py -k conversation

test: $(VENV)/ready  ## The fast tests (pytest's status 5, no test ran, is a failure like any other)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) -m "not slow and not gpu"

test-slow: $(VENV)/ready  ## The slow tests: sharded training, every benchmark, fine-tuning, the notebook
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) -m "slow and not gpu"

test-demo: $(DEMO)/ready  ## The demo in a headless browser
	$(OFFLINE) $(DEMO)/bin/python -m pytest -m slow tests/test_demo.py

lint: $(VENV)/ready  ## Style
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

pythons:  ## Compile all files with each supported Python that is installed; the summary says which ran
	$(PYTHON) tests/pythons.py

format: $(VENV)/ready  ## Fix style
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

window:  ## The fast tests on each pinned Transformers and on the newest of the day, each without torchvision
	$(PYTHON) tests/window.py --jobs $(JOBS) $(WINDOW_OPTIONS)

peers:  ## Transformers' own common tests on this package, beside the native model's: make peers PEERS_OPTIONS="--release 5.24.0"
	$(PYTHON) -m tests.peers.run --jobs $(JOBS) $(PEERS_OPTIONS)

bench: $(VENV)/ready $(addprefix bench-,$(BENCHMARKS))  ## All benchmarks: make bench LAYOUT=2b; one: make bench-vision
	$(RUN) -m benchmarks.report

bench-%: $(VENV)/ready
	$(RUN) -m benchmarks.$* $(if $(filter-out preprocessing tokenization,$*),--layout $(LAYOUT))

clean:
	rm -rf $(VENV) .venvs
