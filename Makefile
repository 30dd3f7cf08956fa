# Each target builds what it needs; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help setup train evaluate generate smollm2 test test-slow test-resume test-fuzz test-gpu test-soak golden golden-compare test-newest test-oldest lock docs pictures lint format bench speedrun experiment-memory experiment-facts experiment-art experiment-plasticity clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  make %-22s %s\n", $$1, $$2}'

PIP_INSTALL := -m pip install -q --disable-pip-version-check
LOCKED := $(BIN)/python $(PIP_INSTALL) -c constraints.txt

.venv/user: requirements.txt constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(LOCKED) -r requirements.txt
	touch $@

.venv/dev: .venv/user requirements-dev.txt
	$(LOCKED) -r requirements.txt -r requirements-dev.txt
	touch $@

.venv/docs: .venv/user requirements-docs.txt
	$(LOCKED) -r requirements.txt -r requirements-docs.txt
	touch $@

.venv/bench: .venv/dev
	$(LOCKED) --no-deps litgpt==0.5.13 # its own bounds contradict requirements.txt
	touch $@

setup: .venv/dev ## build .venv with everything for users and developers

train: .venv/user ## the main job: Article GPT on the articles in data/ (about 9 minutes on 2 cores)
	$(BIN)/python main.py fit --config configs/article_gpt.yaml
	$(MAKE) evaluate

evaluate: .venv/user ## test the best checkpoint of the last `make train` on the articles in data/articles/val
	$(BIN)/python main.py test --config configs/article_gpt.yaml --ckpt_path best

generate: .venv/user ## continue PROMPT with the best checkpoint of the last `make train`
	$(BIN)/python main.py generate --ckpt_path best --runs_dir runs/article_gpt --prompt "$(or $(PROMPT),Backpropagation is)"

smollm2: .venv/user ## SmolLM2-135M-Instruct as a Hugging Face directory in models/smollm2 (93 MB to download, 40 s)
	$(BIN)/python -m lightning_app.models.smollm2

# Without bytecode each worker would compile all tests anew, and each process that a test starts the package.
test: export PYTHONDONTWRITEBYTECODE :=
test: .venv/user ## the tests (about 4 minutes on 2 cores)
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: .venv/user ## the slow tests too
	$(BIN)/python -m pytest -m "slow or not slow"

golden: .venv/user ## write the golden values anew (CONTRIBUTING.md says when)
	$(BIN)/python -m tests.golden

golden-compare: .venv/user ## the golden runs of REV and of this tree side by side: the largest difference
	$(BIN)/python -m tests.golden compare $(or $(REV),HEAD)

test-resume: .venv/user ## kill, stop and resume 32 runs of 8 kinds at random moments: each ends as if it had not been stopped (RESUME_SEED=0)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow or not slow" tests/test_interruptions.py tests/training/callbacks/test_interruption.py

test-fuzz: .venv/user ## N damaged files, odd requests and mutants of the configs (N=10000 SEED=0; about 15 minutes)
	$(BIN)/python -m tests.fuzz --n $(or $(N),10000) --seed $(or $(SEED),0)

test-gpu: .venv/user ## what only a CUDA device can show: golden runs, exact resume, surgery, memory, compile, NCCL, throughput
	@if $(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then \
	  $(BIN)/python -m pytest -n 0 -m gpu tests && $(BIN)/python -m benchmarks.cuda; else echo "not run: there is no CUDA device"; fi

test-soak: .venv/dev ## 2,000 steps with everything on: what grows without end shows (3 minutes)
	$(BIN)/python -m tests.soak

# Environments beside .venv, without the lock: each is built anew, and may fail loudly.
test-newest: ## the tests with the newest versions that the bounds allow; fails at a new line for tests/library_news.txt
	rm -rf .venv-newest && $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python $(PIP_INSTALL) -r requirements.txt
	.venv-newest/bin/python -m pytest -n 2 --dist worksteal --library-news=check # =write writes the file anew

test-oldest: .venv/lock/bin/uv ## the tests with the lowest versions that the bounds allow (of torch: that of the lock)
	rm -rf .venv-oldest && $(PYTHON) -m venv .venv-oldest
	grep '^torch==' constraints.txt > .venv-oldest/torch.txt
	.venv/lock/bin/uv pip compile -q --no-config --python .venv-oldest/bin/python --resolution lowest-direct -c .venv-oldest/torch.txt requirements.txt -o .venv-oldest/lowest.txt
	.venv-oldest/bin/python $(PIP_INSTALL) -c .venv-oldest/lowest.txt -r requirements.txt
	.venv-oldest/bin/python -m pytest -n 2 --dist worksteal

# uv, since pip writes versions as they are on this machine: torch==2.13.0+cpu, and paths of its folders.
.venv/lock/bin/uv:
	mkdir -p .venv && $(PYTHON) -m venv .venv/lock
	.venv/lock/bin/python $(PIP_INSTALL) uv==0.13.9

lock: .venv/lock/bin/uv ## write constraints.txt anew: the newest versions that the bounds allow
	.venv/lock/bin/uv pip compile -q --no-config --universal --python-version 3.11 --upgrade --annotation-style line --custom-compile-command "make lock" requirements.txt requirements-dev.txt requirements-docs.txt -o constraints.txt

docs: .venv/docs ## build the docs site into build/docs: a dead link or an orphan is an error (2 minutes)
	$(BIN)/python -m sphinx -W --keep-going -n -q -j auto -b html docs build/docs

pictures: .venv/dev ## draw the diagrams of the docs, and photograph pages (ARGS="--run RUN --compare RUN RUN")
	$(BIN)/python docs/site_parts/pictures.py $(ARGS)

lint: .venv/dev ## ruff, mypy, prettier (where npx is there)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	if command -v npx >/dev/null; then npx --yes prettier@3.6.2 --check .; else echo "no npx: prettier skipped"; fi

format: .venv/dev ## bring all files into shape
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .
	if command -v npx >/dev/null; then npx --yes prettier@3.6.2 --write .; fi

bench: .venv/bench ## measure speed side by side with Hugging Face, litgpt and FAISS into docs/benchmarks.md (PARTS="memory text": some)
	$(BIN)/python -m benchmarks $(PARTS)

speedrun: .venv/bench ## who learns most of a text in so many CPU seconds? into docs/speedrun.md (hours; goes on where it was stopped; ARGS="--quick": minutes)
	$(BIN)/python -m benchmarks.speedrun $(ARGS)

# TRAIN is learned, HELDOUT chosen on, TEST scored (without it the second half of HELDOUT); none: the articles in data/.
TEXTS = $(if $(or $(TRAIN),$(FIRST)),--train "$(or $(TRAIN),$(FIRST))") $(if $(HELDOUT),--heldout "$(HELDOUT)") $(if $(TEST),--test "$(TEST)")
SEED_LIST = $(if $(SEEDS),--seeds $(SEEDS))
SECOND_TEXT = $(if $(or $(SECOND),$(UNSEEN)),--second "$(or $(SECOND),$(UNSEEN))")

experiment-memory: .venv/user ## does a memory help? TRAIN=text HELDOUT=text TEST=text SEEDS="0 1", into docs/memory.md (twice 3 CPU hours at most are planned)
	$(BIN)/python -m experiments.memory $(TEXTS) $(SEED_LIST) $(ARGS)
	$(BIN)/python -m experiments.newer $(TEXTS) $(SEED_LIST) $(ARGS)

experiment-facts: .venv/user models/smollm2 ## does a model know what only its memory was told? SEED=0, into docs/facts.md (3 CPU hours at most are planned)
	$(BIN)/python -m experiments.facts $(if $(SEED),--seed $(SEED)) $(ARGS)

models/smollm2:
	$(MAKE) smollm2

experiment-art: .venv/user models/smollm2 ## does ART keep its promises? TRAIN= HELDOUT= TEST= SECOND=text, into docs/art.md (4 and 3 CPU hours at most are planned)
	$(BIN)/python -m experiments.continual $(TEXTS) $(SECOND_TEXT) $(ARGS)
	$(BIN)/python -m experiments.novelty $(TEXTS) $(SECOND_TEXT) $(ARGS)
	$(BIN)/python -m experiments.continual_lora $(TEXTS) $(SECOND_TEXT) $(ARGS)

experiment-plasticity: .venv/user ## what do pruned heads cost? TRAIN= HELDOUT= TEST=text, into docs/plasticity.md (3 CPU hours for SmolLM2 and 4 for small models at most are planned)
	$(BIN)/python -m experiments.plasticity_smollm2 $(TEXTS) $(ARGS)
	$(BIN)/python -m experiments.plasticity $(TEXTS) $(ARGS)

clean: ## remove caches, not runs and .venv
	rm -rf .venv-newest .venv-oldest .cache .pytest_cache .ruff_cache .mypy_cache build *.egg-info
