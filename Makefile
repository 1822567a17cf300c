# Every target sets up its own environment in .venv. `make help` lists what there is.

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.ready
# One thread a process: the tests run two at a time, and their numbers must not depend on the machine.
QUIET = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 SUPPORT_PROGRESS=0
TWO = -q -n 2 --dist loadscope

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help book slides student pdf test browser lint unit pages site run sweep lab links colab bench mutants publish outputs picture samples address format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

book: $(STAMP)  ## execute what changed and render the book into _build/html
	@$(BIN)/python -m tools.build_book

slides: book  ## build the slides of the lectures into _build/html/slides, one archive a lecture
	@$(BIN)/python -m tools.slides

student: $(STAMP)  ## write the notebooks without solutions into dist/student
	@$(BIN)/python -m tools.student

pdf: browser book  ## print the whole book into dist/descent.pdf
	@$(BIN)/python -m tools.pdf

test: browser lint unit pages site  ## every check: style, tests, pages, the built book in a browser
	@echo "All checks passed."

run: $(STAMP)  ## run an experiment: NOTEBOOK=mnist_lenet ARGS="-p scale quick"
	@$(BIN)/python -m tools.run "$(NOTEBOOK)" $(ARGS)

sweep: $(STAMP)  ## run it on a cluster of dask: NOTEBOOK=mnist_lenet SCHEDULER=tcp://HOST:8786 ARGS="-p scale full"
	@$(BIN)/python -m tools.run "$(NOTEBOOK)" -p executor "$(SCHEDULER)" $(ARGS)

lab: $(STAMP)  ## open the pages in JupyterLab
	@$(BIN)/jupyter lab

colab: $(STAMP)  ## execute the pages as on Colab, with the oldest and the newest torch: ARGS="--brief"
	@$(BIN)/python -m tools.colab $(ARGS)

links: book  ## ask every address outside the book whether it answers (needs the internet)
	@$(BIN)/jupyter-book build . --builder linkcheck --quiet --path-output _build/links

bench: $(STAMP)  ## measure training loop and optimizers beside others: ARGS="--only lenet5 --rounds 5"
	@$(BIN)/python -m tools.benchmark $(ARGS)

mutants: $(STAMP)  ## put bugs into the optimizers, one at a time, and see whether the tests find them
	@$(BIN)/python -m tools.mutants $(ARGS)

publish: $(STAMP)  ## put finished runs into support/results: NOTEBOOK=mnist_lenet STORE=runs/mnist_lenet
	@$(BIN)/python -m tools.publish "$(NOTEBOOK)" "$(STORE)"

outputs: $(STAMP)  ## renew the outputs that the pages keep in git: PAGES="lectures/momentum.ipynb", or all
	@$(BIN)/python -m tools.outputs $(PAGES)

picture: $(STAMP)  ## renew the picture of the README from the executed lecture
	@$(BIN)/python -m tools.readme_picture

samples: $(STAMP)  ## renew the drawings of MNIST and CIFAR-10, which lie in the folder SUPPORT_DATA
	@$(BIN)/python -m tools.sample_pictures

address: $(STAMP)  ## set the repository's address everywhere: URL=https://github.com/NAME/REPO
	@$(BIN)/python -m tools.address "$(URL)"

format: $(STAMP)  ## correct the style of code and notebooks
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove all that was built; .venv and runs stay
	@rm -rf _build build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@cd book && rm -f claims.md errata.md glossary.md map.md optimizers.md results.md sources.md update_rules.md
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The parts of `make test`.

browser: $(STAMP)
	@$(BIN)/python -m tools.browser

lint: $(STAMP)
	@echo "Style"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

unit: $(STAMP)
	@echo "The package and the project"
	@$(QUIET) $(BIN)/python -m pytest $(TWO) tests/support tests/project

pages: $(STAMP)
	@echo "The pages, each output that they keep compared with a fresh one"
	@$(QUIET) $(BIN)/python -m pytest $(TWO) --nbval-lax --nbval-current-env lectures notebooks

site: slides
	@echo "The built book in a browser"
	@$(QUIET) $(BIN)/python -m pytest $(TWO) tests/book

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) is not there: install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this one is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12")'
	@echo "Installing what the project needs into $(VENV) (some minutes the first time)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[book,test]"
	@touch $@
