# make run | make test | make lint | make image | make clean. Every target but the images installs what it needs into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

# Of the images; what is empty is left to docker/Dockerfile. BUILD_ARGS are further options of docker build.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGE ?= calm-python:$(VERSION)
BASE_IMAGE ?=
BUILD_IMAGE ?=
TORCH_INDEX_URL ?=
BUILD_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run test lint format compile image image-cuda clean

help:
	@echo "make run    install, and run the whole pipeline on real text (ARGS='--set seed=1' passes options on)"
	@echo "make test   install, and run the tests"
	@echo "make lint   check lint, format, types and import boundaries"
	@echo "make format format the code"
	@echo "make compile  write the compiled pipeline, the components' READMEs and the schema of evaluations anew"
	@echo "make image  build the image for CPUs with docker (IMAGE=NAME:TAG); make image-cuda for NVIDIA's GPUs. See docs/image.md"
	@echo "make clean  remove the environment and all that runs have made"

# DS_BUILD_OPS=0: no compiler is needed. constraints.txt pins every version.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name one: make PYTHON=python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned dependencies into $(VENV) (a few minutes the first time) ..."
	@DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: $(VENV)/installed
	@$(BIN)/calm run $(ARGS)

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/Dockerfile

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

compile: $(VENV)/installed
	$(BIN)/python -m pipelines.compile
	$(BIN)/python -m components.readme
	$(BIN)/python -m calm_core.evaluation.schema

image: ACCELERATOR := cpu
image-cuda: ACCELERATOR := cuda
image-cuda: IMAGE := $(IMAGE)-cuda
image image-cuda:
	docker build --file docker/Dockerfile --tag $(IMAGE) --build-arg ACCELERATOR=$(ACCELERATOR) \
		--build-arg VERSION=$(VERSION) --build-arg REVISION=$(shell git rev-parse HEAD 2> /dev/null) \
		$(foreach name,BASE_IMAGE BUILD_IMAGE TORCH_INDEX_URL,$(if $($(name)),--build-arg $(name)=$($(name)))) $(BUILD_ARGS) .

clean:
	rm -rf $(VENV) .calm build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
