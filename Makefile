# make run: everything from drawing the data to the report of a PPO run.   make test: lint, types, all tests.
# make scrub-demo: biometric information out of training data, and what a model trained on the result tells.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PY := .venv/bin/python
TINY := runs/tiny
CONFIGS := jobs/configs/tiny
export RAY_AUTH_MODE := token
export SAFEVL_HOME := $(CURDIR)
FRESH :=

.PHONY: run test check setup ppo clean bench scrub-demo vlguard-demo guard-demo ppo-guard-demo

run: setup
	@began=$$SECONDS; owned=; \
	if cluster/local.sh running; then echo "using the Ray head that is running"; else owned=1; fi; \
	trap '[ -z "$$owned" ] || cluster/local.sh stop' EXIT; \
	$(MAKE) --no-print-directory world & world=$$!; \
	address=$$(cluster/local.sh start); wait $$world; \
	RAY_ADDRESS=auto $(MAKE) --no-print-directory stages; \
	RAY_ADDRESS=$$address .venv/bin/ray job submit --working-dir . -- \
	    python jobs/ppo_spa_vl.py --config $(CONFIGS)/ppo.yaml $(if $(FRESH),--fresh); \
	echo "make run took $$((SECONDS - began)) s"

setup:
	@cluster/install.sh

# Each stage is a file that the next one needs; a stage that died goes on from its last checkpoint.
.PHONY: stages world
world: $(TINY)/world/untrained_model/config.json
stages: $(TINY)/reward_model/COMPLETE

$(TINY)/world/untrained_model/config.json: $(CONFIGS)/world.yaml
	$(PY) jobs/make_tiny_world.py --config $<

$(TINY)/pretrain/COMPLETE: $(CONFIGS)/pretrain.yaml $(TINY)/world/untrained_model/config.json
	$(PY) jobs/pretrain_safe_llava.py --config $<

$(TINY)/sft/COMPLETE: $(CONFIGS)/sft.yaml $(TINY)/pretrain/COMPLETE
	$(PY) jobs/sft_safe_llava.py --config $<

$(TINY)/reward_model/COMPLETE: $(CONFIGS)/reward_model.yaml $(TINY)/sft/COMPLETE
	$(PY) jobs/train_reward_model.py --config $<

# Safe-LLaVA on embedded data: leaky files, their scrubbed twins, a model trained on each, PRISM's questions to both.
scrub-demo: setup
	@began=$$SECONDS; owned=; \
	if ! cluster/local.sh running; then owned=1; fi; \
	trap '[ -z "$$owned" ] || cluster/local.sh stop' EXIT; \
	$(PY) jobs/make_tiny_world.py --config $(CONFIGS)/safe_world.yaml & world=$$!; \
	cluster/local.sh start > /dev/null; wait $$world; export RAY_ADDRESS=auto; \
	$(PY) jobs/scrub_safe_llava.py --config $(CONFIGS)/safe_scrub.yaml; \
	$(PY) -c "import os, webbrowser; os.environ.get('DISPLAY') and webbrowser.open('file://$(CURDIR)/$(TINY)/safe_scrubbed/report.html')"; \
	$(PY) jobs/pair_safe_llava.py --config $(CONFIGS)/safe_pair.yaml $(if $(FRESH),--fresh); \
	echo "before and after, turn by turn: $(CURDIR)/$(TINY)/safe_scrubbed/report.html"; \
	echo "make scrub-demo took $$((SECONDS - began)) s"

# VLGuard on the tiny world: a model that answers everything, fine-tuned after the fact and from the start.
vlguard-demo: setup
	@began=$$SECONDS; owned=; \
	if ! cluster/local.sh running; then owned=1; fi; \
	trap '[ -z "$$owned" ] || cluster/local.sh stop' EXIT; \
	$(MAKE) --no-print-directory world & world=$$!; \
	cluster/local.sh start > /dev/null; wait $$world; export RAY_ADDRESS=auto; \
	$(MAKE) --no-print-directory $(TINY)/sft/COMPLETE; \
	$(PY) jobs/prove_vlguard.py --config $(CONFIGS)/vlguard_proof.yaml $(if $(FRESH),--fresh); \
	echo "make vlguard-demo took $$((SECONDS - began)) s"

# A guard of the tiny world: pictures and policies, a model that learns to read both, and what it flags under which policy.
guard-demo: setup
	@began=$$SECONDS; owned=; \
	if ! cluster/local.sh running; then owned=1; fi; \
	trap '[ -z "$$owned" ] || cluster/local.sh stop' EXIT; \
	$(if $(FRESH),rm -rf $(TINY)/guard;) \
	$(PY) jobs/make_tiny_world.py --config $(CONFIGS)/guard_world.yaml & world=$$!; \
	cluster/local.sh start > /dev/null; wait $$world; export RAY_ADDRESS=auto; \
	$(MAKE) --no-print-directory guard; \
	$(PY) jobs/evaluate.py --benchmark guard --config $(CONFIGS)/guard_evaluate.yaml; \
	echo "summary: $(CURDIR)/$(TINY)/guard/summary.json"; \
	echo "make guard-demo took $$((SECONDS - began)) s"

# The tiny guard, in the Ray cluster of RAY_ADDRESS; what is finished is not done again.
.PHONY: guard
guard:
	$(PY) jobs/make_tiny_world.py --config $(CONFIGS)/guard_world.yaml
	$(PY) jobs/pretrain_safe_llava.py --config $(CONFIGS)/guard_pretrain.yaml
	$(PY) jobs/sft_safe_llava.py --config $(CONFIGS)/guard_sft.yaml

# The guard of guard-demo as the reward of PPO, with a bound on over-refusal and without.
ppo-guard-demo: setup
	@began=$$SECONDS; owned=; \
	if ! cluster/local.sh running; then owned=1; fi; \
	trap '[ -z "$$owned" ] || cluster/local.sh stop' EXIT; \
	$(MAKE) --no-print-directory world & world=$$!; \
	cluster/local.sh start > /dev/null; wait $$world; export RAY_ADDRESS=auto; \
	$(MAKE) --no-print-directory stages; \
	$(MAKE) --no-print-directory guard; \
	$(PY) jobs/sft_safe_llava.py --config $(CONFIGS)/guard_answers_sft.yaml; \
	$(PY) jobs/evaluate.py --benchmark guard --config $(CONFIGS)/guard_answers.yaml; \
	$(PY) jobs/prove_guard_reward.py --config $(CONFIGS)/guard_reward_proof.yaml $(if $(FRESH),--fresh); \
	echo "summary: $(CURDIR)/$(TINY)/ppo_guard/summary.json"; \
	echo "make ppo-guard-demo took $$((SECONDS - began)) s"

check: setup
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

# What needs the Ray head runs beside the rest, whose output comes at the end.
PYTEST := $(PY) -m pytest tests
test: check
	@rest=$$(mktemp); OMP_NUM_THREADS=1 $(PYTEST) -m "not ray" > $$rest 2>&1 & other=$$!; \
	failed=0; $(PYTEST) -m ray || failed=1; \
	wait $$other || failed=1; cat $$rest; rm $$rest; exit $$failed

# TRL is what the trainers are compared with and Presidio what scrubbing is; needed for nothing else.
bench: setup
	@$(PY) -c "import trl" 2> /dev/null || $(PY) -m pip install --quiet --no-deps trl==1.16.0
	@$(PY) -c "import presidio_analyzer" 2> /dev/null || { \
	    $(PY) -m pip install --quiet --target .venv/bench presidio-analyzer==2.2.366; \
	    echo "$(CURDIR)/.venv/bench" > $$($(PY) -c "import sysconfig; print(sysconfig.get_path('purelib'))")/bench.pth; }
	$(PY) -m tests.bench.run

clean:
	rm -rf runs
