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
LAYOUT ?= 2b
BENCHMARKS := preprocessing vision generation memory second_turn loading growth

.PHONY: chat demo pictures test test-slow lint format window clean bench

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

pictures: $(VENV)/ready $(DEMO)/ready  ## The README's pictures anew
	$(RUN) docs/draw.py
	DEMO_SCREENSHOT=docs/demo.png $(OFFLINE) $(DEMO)/bin/python -m pytest -m slow tests/test_demo.py -k conversation

test: $(VENV)/ready  ## The fast tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) -m "not slow and not gpu"

test-slow: $(VENV)/ready $(DEMO)/ready  ## What is heavy
	$(RUN) -m pytest -m slow
	$(OFFLINE) $(DEMO)/bin/python -m pytest -m slow tests/test_demo.py

lint: $(VENV)/ready  ## Style
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/ready  ## Mend style
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

window:  ## The tests on the oldest, an early, a middle and the newest supported Transformers, each without torchvision
	$(PYTHON) tests/window.py --jobs $(JOBS)

bench: $(VENV)/ready $(addprefix bench-,$(BENCHMARKS))  ## All benchmarks: make bench LAYOUT=2b; one: make bench-vision
	$(RUN) -m benchmarks.report

bench-%: $(VENV)/ready
	$(RUN) -m benchmarks.$* $(if $(filter-out preprocessing,$*),--layout $(LAYOUT))

clean:
	rm -rf $(VENV) .venvs
