PYTHON ?= python3
RUN := .venv/bin/python
PACKAGES := cuda-matmul-f32 custom-gelu-ext mini-llm-server dist-playground
READMES := README.md $(PACKAGES:=/README.md) $(wildcard docs/*/*.md)

.PHONY: bench test slow check readme setup
bench: setup  ## run all four benchmarks; one table, one report in bench-report/
	$(RUN) -m infra_bench run $(PACKAGES) --quick --out bench-report

test: setup  ## the fast tests
	$(RUN) -m pytest

slow: setup  ## the tests that take minutes: real model, four processes, nvcc
	$(RUN) -m pytest -m "slow and not gpu and not multigpu" --timeout 900

check: setup  ## figures in READMEs against results, lint, types
	$(RUN) -m infra_bench readme --check $(READMES)
	.venv/bin/ruff check . && .venv/bin/ruff format --check .
	.venv/bin/mypy infra_bench $(PACKAGES:=/src)
	git ls-files '*.cu' '*.cuh' '*.cpp' '*.h' | xargs .venv/bin/clang-format --dry-run --Werror

readme: setup  ## rewrite the READMEs' tables, figures and plots from the results
	$(RUN) -m infra_bench readme $(READMES)

setup:
	@$(PYTHON) bootstrap.py
