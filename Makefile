# Lockstep: from an idea to a small chat model in a GGUF file.
#
#   make full-pipeline        two commands do everything: this one builds the demo model,
#   make test                 this one checks the code

PROFILE ?= demo
# a profile without stage 120 ends with its merged checkpoint
MODEL ?= checkpoints/$(PROFILE)/$(if $(wildcard config/$(PROFILE)/120_convert_gguf.json),gguf/model-q8_0.gguf,merged)
ARGS ?=
VENV := .venv
PYTHON := $(VENV)/bin/python
BASE_PYTHON ?= python3
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup full-pipeline sample plan status verify chat serve generate corpus tokenizer pack pretrain sft-data sft \
        preference-data preferences evaluate merge gguf schemas test lint format clean-builds clean-profile \
        clean-records clean-venv

help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  variables: PROFILE=$(PROFILE) (a folder of config/), ARGS='--force' (passed to a stage)"

setup: $(VENV)/.ready ## make the virtual environment .venv (about 6 minutes: llama.cpp is compiled)

$(VENV)/.ready: requirements.txt
	$(BASE_PYTHON) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --upgrade pip
	$(PYTHON) -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.txt
	$(PYTHON) -m pip install --quiet -r requirements-dev.txt
	@touch $@

full-pipeline: setup ## run every stage of PROFILE that is not up to date, then show a conversation
	@$(PYTHON) tools/pipeline.py run $(PROFILE)
	@$(MAKE) --no-print-directory sample

sample: setup ## print a short conversation with the finished model
	@$(PYTHON) tools/chat.py --model $(MODEL) --sample data/$(PROFILE)/sft --questions 5
	@echo "talk to it:  make chat PROFILE=$(PROFILE)      where it came from:  make verify PROFILE=$(PROFILE)"

plan: setup ## what full-pipeline would do now, and why
	@$(PYTHON) tools/pipeline.py plan $(PROFILE)

status: setup ## the verdict on every artifact of PROFILE
	@$(PYTHON) tools/pipeline.py status $(PROFILE)

verify: setup ## prove the GGUF down to the raw inputs
	@$(PYTHON) tools/pipeline.py verify $(MODEL)

chat: setup ## talk to the finished model
	@$(PYTHON) tools/chat.py --model $(MODEL)

serve: setup ## answer in the shape of OpenAI's API on 127.0.0.1 (ARGS='--port 8081 --slots 8')
	@$(PYTHON) tools/serve.py --model $(MODEL) $(ARGS)

generate: setup ## stage 10: synthetic text, chats and preference pairs
	$(PYTHON) scripts/10_generate.py --config config/$(PROFILE)/10_generate.json $(ARGS)

corpus: setup ## stage 20: read, clean, deduplicate, split, shard
	$(PYTHON) scripts/20_prepare_corpus.py --config config/$(PROFILE)/20_prepare_corpus.json $(ARGS)

tokenizer: setup ## stage 30: train and freeze the tokenizer
	$(PYTHON) scripts/30_train_tokenizer.py --config config/$(PROFILE)/30_train_tokenizer.json $(ARGS)

pack: setup ## stage 40: tokenize and pack
	$(PYTHON) scripts/40_pack_dataset.py --config config/$(PROFILE)/40_pack_dataset.json $(ARGS)

pretrain: setup ## stage 50: train the base model
	$(PYTHON) scripts/50_pretrain.py --config config/$(PROFILE)/50_pretrain.json $(ARGS)

sft-data: setup ## stage 60: chats to token ids with a loss mask
	$(PYTHON) scripts/60_prepare_sft.py --config config/$(PROFILE)/60_prepare_sft.json $(ARGS)

sft: setup ## stage 70: fine-tune on chats
	$(PYTHON) scripts/70_train_sft.py --config config/$(PROFILE)/70_train_sft.json $(ARGS)

preference-data: setup ## stage 80: preference pairs to token ids
	$(PYTHON) scripts/80_prepare_preferences.py --config config/$(PROFILE)/80_prepare_preferences.json $(ARGS)

preferences: setup ## stage 90: align with DPO
	$(PYTHON) scripts/90_train_preferences.py --config config/$(PROFILE)/90_train_preferences.json $(ARGS)

evaluate: setup ## stage 100: all models side by side
	$(PYTHON) scripts/100_evaluate.py --config config/$(PROFILE)/100_evaluate.json $(ARGS)

merge: setup ## stage 110: adapter into weights
	$(PYTHON) scripts/110_merge_lora.py --config config/$(PROFILE)/110_merge_lora.json $(ARGS)

gguf: setup ## stage 120: write, quantise and verify the GGUF
	$(PYTHON) scripts/120_convert_gguf.py --config config/$(PROFILE)/120_convert_gguf.json $(ARGS)

schemas: setup ## write config/schema/*.schema.json from utils/config
	$(PYTHON) tools/schemas.py

test: $(VENV)/.ready-dev lint ## lint, then every test
	$(PYTHON) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.ready-dev ## ruff
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.ready-dev ## let ruff format and fix
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean-builds: setup ## name the abandoned build folders of PROFILE (ARGS=--yes removes them)
	@$(PYTHON) tools/pipeline.py gc $(PROFILE) $(ARGS)

clean-profile: ## delete data/PROFILE and checkpoints/PROFILE
	@case "$(PROFILE)" in ""|*/*|.*) echo "PROFILE=$(PROFILE) is not the name of a profile"; exit 2;; esac
	@test -d "config/$(PROFILE)" || { echo "there is no profile config/$(PROFILE); nothing was deleted"; exit 2; }
	@echo "deleting data/$(PROFILE) and checkpoints/$(PROFILE)"
	rm -rf "data/$(PROFILE)" "checkpoints/$(PROFILE)"

clean-records: ## delete data/.lockstep (locks, digest cache, archived manifests; costs explanations only)
	@echo "deleting data/.lockstep"
	rm -rf data/.lockstep

clean-venv: ## delete .venv
	@echo "deleting $(VENV)"
	rm -rf $(VENV)
