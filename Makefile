# make run    environment, the whole pipeline on the embedded default, and its figures
# make test   environment, style and all tests
# make report the last run on one page
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help env run report test lint bench ui weights clean distclean

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(VENV)/.installed: requirements.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}; call make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

env: $(VENV)/.installed ## build the environment in .venv

run: env ## run the pipeline and show its figures
	dvc repro
	python -m lesionlab.summary

report: env ## one page of what the last run wrote: report/report.html, report/report.md
	python -m lesionlab.report

test: env lint ## all tests
	python -m pytest -n 2

lint: env ## style
	ruff check .
	ruff format --check .

bench: env ## each short cut against the plain way, on an idle machine (10 to 20 minutes)
	python -m benchmarks.bench

ui: env ## MLflow on http://127.0.0.1:5000
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true \
	mlflow ui --backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db} \
	  --default-artifact-root ./mlartifacts --host 127.0.0.1 --port 5000 --workers 1

weights: env ## make the bundled weights again (about 20 minutes)
	python -m lesionlab.pretext --out lesionlab/pretext/bundled/mobilenet_0.25.weights.h5

clean: ## delete cached activations; they come back when needed
	rm -rf .lesionlab/prefix .lesionlab/looks-*

distclean: clean ## downloads and the states of interrupted trainings too
	rm -rf .lesionlab
