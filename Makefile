# make demo | app | reproduce | lint | test | install | clean
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo app reproduce lint test chromium clean

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python 3.10 or newer is needed, $(PYTHON) is older; try: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "error: could not create $(VENV); on Debian/Ubuntu: sudo apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check --editable ".[all]"
	@touch $@

SAMPLE := data/sample
# On a CPU the launcher gives a process one thread unless it is told otherwise.
LAUNCH := OMP_NUM_THREADS=$$(nproc) $(BIN)/accelerate launch --config_file configs/accelerate/one_gpu.yaml train.py

# A finished run is kept unless its configuration or its start is newer, an interrupted one goes on, anything else starts anew.
define train_and_score
	@test runs/$(1)/metrics.json -nt configs/$(1).yaml -a runs/$(1)/metrics.json -nt $(SAMPLE)/weights/made_from.json || $(LAUNCH) --config configs/$(1).yaml \
	    $$(ls -d runs/$(1)/states/step-*[0-9] >/dev/null 2>&1 && echo --resume || echo --overwrite)
	@test -f runs/$(1)/best/results/$(2).json || $(BIN)/python evaluate.py --checkpoint runs/$(1)/best $(3)
endef

demo: install
	@echo "--- sample corpus"
	@$(BIN)/python data_prep/make_sample_corpus.py --output $(SAMPLE)
	@echo "--- Arrow cache and text encoder"
	@$(BIN)/python data_prep/build_clotho.py --root $(SAMPLE) --sample-rate 16000 \
	    $$(test $(SAMPLE)/cache/cache.json -nt $(SAMPLE)/clotho_moments_evaluation.csv || echo --overwrite)
	@$(BIN)/python data_prep/make_text_encoder.py --captions $(SAMPLE)/clotho_captions_development.csv --output $(SAMPLE)/text_encoder
	@echo "--- encoders' weights"
	@$(BIN)/python -m retrieval.pretraining --cache $(SAMPLE)/cache --text-encoder $(SAMPLE)/text_encoder --output $(SAMPLE)/weights
	@echo "--- mean pooling"
	$(call train_and_score,sample_mean,evaluation/metrics)
	@echo "--- text-aware attention pooling (TAP)"
	$(call train_and_score,sample_tap,evaluation/metrics)
	@echo "--- moments: a head on TAP's frames learns when a caption is heard"
	@test ! -f runs/sample_moments/metrics.json -o runs/sample_moments/metrics.json -nt runs/sample_tap/metrics.json || rm -r runs/sample_moments
	$(call train_and_score,sample_moments,evaluation_moments/moments,--moments)
	@echo "--- text to audio, evaluation split of the sample corpus"
	@$(BIN)/python -m benchmarks.compare_runs mean=runs/sample_mean/best TAP=runs/sample_tap/best
	@echo "--- the same, captions that name one event of a longer scene"
	@$(BIN)/python -m benchmarks.compare_runs mean=runs/sample_mean/best TAP=runs/sample_tap/best --scenes $(SAMPLE)/scenes.json
	@echo "--- index of the evaluation split's recordings, for make app"
	@$(BIN)/python -m retrieval.search index $(SAMPLE)/evaluation --checkpoint runs/sample_moments/best --index $(SAMPLE)/index \
	    $$(test $(SAMPLE)/index/index.sqlite -nt runs/sample_moments/metrics.json || echo --overwrite)
	@echo "search them in the browser: make app"
	@echo "see the curves, attention pictures and sounds: $(BIN)/tensorboard --logdir runs"

# The search page on the sample's recordings; the demo comes first where it has not run.
PORT ?= 7860
app: install
	@test -f $(SAMPLE)/index/index.sqlite || $(MAKE) demo
	$(BIN)/python -m retrieval.app --index $(SAMPLE)/index --port $(PORT)

# Reproduce the thesis's experiments on Clotho, with options: make reproduce ARGS="--experiments tap"
ARGS ?=
reproduce: install
	@$(BIN)/python -m benchmarks.reproduce $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Processes that share the tests, each with one thread: make test WORKERS=8
WORKERS ?= 2
test: lint chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

# The browser of the page's tests, which are skipped without it: Debian's, where it can be installed without a password.
INSTALL_CHROMIUM := apt-get install -y --no-install-recommends chromium
chromium:
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "installing chromium for the tests of the page" && \
	    DEBIAN_FRONTEND=noninteractive timeout 240 sh -c "$(INSTALL_CHROMIUM) || { apt-get update && $(INSTALL_CHROMIUM); }" >/dev/null 2>&1; } || \
	    echo "no chromium, so the tests of the page in a browser are skipped; on Debian: apt install chromium"

clean:
	rm -rf data/sample runs/sample_mean runs/sample_tap build dist *.egg-info
