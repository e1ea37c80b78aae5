# Builds the Python environments of mapseg and runs demo and tests in them; `make` lists the targets.
# On Debian and Ubuntu: apt-get install git make python3-venv

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SILENT:
.PHONY: help demo test test-random test-addons test-browser env env-addons clean
unexport PYTHONHOME PYTHONPATH

# All paths are relative, so the path of the checkout may contain spaces.
PYTHON := .venv/bin/python
ADDONS_PYTHON := .venv-addons/bin/python
WORKERS := 2
PYTEST := pytest -n $(WORKERS) --dist worksteal --durations=25

help:
	echo "make demo         sample data -> records -> training -> evaluation -> pictures in demo_out/"
	echo "make test         format, lint, types and the test suite, in 2 processes (WORKERS=N: in N)"
	echo "make test-random  the test suite in random order, by SEED=1, 2, ..."
	echo "make test-addons  the tests marked addons, with TensorFlow Addons (needs Python 3.11)"
	echo "make test-browser the tests marked browser (needs Chromium and its driver)"
	echo "make env          only the environment, in .venv (env-addons: in .venv-addons)"
	echo "make clean        removes everything that make has built"

demo: env
	$(PYTHON) experiments/demo.py demo_out

test: env
	echo "== ruff format"
	$(PYTHON) -m ruff format --check .
	echo "== ruff check"
	$(PYTHON) -m ruff check .
	echo "== mypy"
	$(PYTHON) -m mypy mapseg data_prep experiments benchmarks docs train_main.py infer_main.py
	echo "== pytest"
	$(PYTHON) -m $(PYTEST)

test-random: SEED ?= 1
test-random: env
	echo "== pytest, random order with seed $(SEED)"
	$(PYTHON) -m $(PYTEST) --random-order --random-order-seed=$(SEED)

test-addons: env-addons
	echo "== pytest -m addons"
	$(ADDONS_PYTHON) -m $(PYTEST) -m addons

test-browser: env
	echo "== pytest -m browser"
	$(PYTHON) -m $(PYTEST) -m browser

clean:
	rm -rf .venv .venv-addons .venv*.partial demo_out build *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache

env: folder := .venv
env: extras := test
env: versions := 3.13 3.12 3.11
env: cost := downloads 0.9 GB, takes 3.1 GB of disk and 2 to 10 minutes
env: remedy := apt-get install python3 python3-venv (Debian 12 and 13, Ubuntu 24.04)
env-addons: folder := .venv-addons
env-addons: extras := addons,test
# Given first, because pip downloads the newest TensorFlow, 0.6 GB, if it reads this limit later.
env-addons: limit := "tensorflow<2.16"
env-addons: versions := 3.11
env-addons: cost := downloads 0.8 to 1.2 GB, takes 2.7 GB of disk and 2 to 10 minutes
env-addons: remedy := apt-get install python3.11-venv (Debian 12), or install Python 3.11 in another way

# An environment is built in FOLDER.partial and renamed when pip has succeeded, so an existing one is complete. It is
# rebuilt if pyproject.toml or the path of the checkout differs from its stamp.
env env-addons:
	fail() { echo "mapseg: $$*" >&2; exit 1; }
	stamp() { pwd -P; cat pyproject.toml; }
	if stamp | cmp -s - $(folder)/stamp && $(folder)/bin/python -c "" 2> /dev/null; then exit; fi

	python= without_pip=
	for name in $(versions:%=python%) python3; do
	  "$$name" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] not in sys.argv)' \
	    $(versions) 2> /dev/null || continue
	  if "$$name" -c 'import ensurepip' 2> /dev/null; then python=$$name; break; fi
	  without_pip=$$name
	done
	if [ ! "$$python" ] && [ "$$without_pip" ]; then
	  fail "$$without_pip cannot create virtual environments. Remedy: apt-get install python3-venv"
	fi
	[ "$$python" ] || fail "Python must be one of: $(versions); got none that runs. Remedy: $(remedy)"
	free_mb=$$(df -Pm . | awk 'NR == 2 { print $$4 }')
	# The environment, and its downloads twice: in pip's cache and in a temporary folder.
	[ "$$free_mb" -ge 5000 ] || fail "free disk space must be at least 5000 MB; got $$free_mb. Remedy: free some space"

	echo "mapseg: $$("$$python" --version) builds $(folder): $(cost)"
	trap 'rm -rf $(folder).partial' EXIT
	rm -rf $(folder).partial
	"$$python" -m venv --prompt mapseg $(folder).partial || fail \
	  "$$python -m venv failed (see above). Remedy: apt-get install python3-venv"
	mkdir $(folder).partial/tmp
	TMPDIR="$$PWD/$(folder).partial/tmp" $(folder).partial/bin/python -m pip install $(limit) \
	  --editable ".[$(extras)]" || fail "pip could not install mapseg[$(extras)] (see above)." \
	  "Remedy: check the network, then run make again; completed downloads are kept"
	rm -r $(folder).partial/tmp
	# The scripts in bin/ contain the absolute path of the folder that they were installed in.
	grep -IlF "/$(folder).partial" $(folder).partial/bin/* $(folder).partial/pyvenv.cfg \
	  | xargs sed -i 's|/$(folder)\.partial|/$(folder)|g'
	stamp > $(folder).partial/stamp
	rm -rf $(folder)
	mv $(folder).partial $(folder)
