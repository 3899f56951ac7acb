# Two commands do everything: `make run` tries the gateway, `make test` passes all tests. Both install what they need (scripts/bootstrap.sh says what).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
export PATH := $(HOME)/.cargo/bin:$(PATH)
TARGET := $(or $(CARGO_TARGET_DIR),target)
# Namespaces, mounts and cgroups are root's.
ROOT := $(if $(filter 0,$(shell id -u)),,sudo -E)
.DEFAULT_GOAL := help

help: ## Show the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

run: ## Build the gateway, send it a handful of real messages, show what happened, and keep serving until Ctrl-C
	@scripts/bootstrap.sh run
	cargo build --release -p sekimori-mta -p sekimori-e2e
	@$(TARGET)/release/sekimori-e2e demo --gateway $(TARGET)/release/sekimori-mta --manifests manifests/quickstart

cluster: ## A local Kubernetes of two nodes, both charts, mail flowing; until Ctrl-C (DETACH=1: leave it running; needs root)
	@scripts/bootstrap.sh cluster
	cargo build --release --workspace --bins
	@$(ROOT) $(TARGET)/release/sekimori-e2e cluster quickstart --binaries $(TARGET)/release --charts helm $(if $(DETACH),--detach)

cluster-down: ## Take down what `make cluster` left running
	@$(ROOT) $(TARGET)/release/sekimori-e2e cluster down --name dev

e2e-long: ## The scenarios on a real cluster, by themselves (FILTER=engines: some of them; needs root)
	@scripts/bootstrap.sh cluster
	SEKIMORI_E2E_ALL=1 cargo test --workspace --test cluster -- $(FILTER)

test: ## Every check and every test that fits CI's time
	@scripts/bootstrap.sh test
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	cargo deny --all-features check bans licenses sources
	cargo test --workspace

test-long: ## The rest: 10,000 seeds of the spool simulator, 50 rounds of kill -9 in each delivery mode, advisories
	@scripts/bootstrap.sh test
	SIM_SEEDS=10000 cargo test --config 'profile.dev.package.sekimori-mta.opt-level=2' -p sekimori-mta --test it spool_sim
	GATEWAY_SEEDS=2000 cargo test --config 'profile.dev.package.sekimori-mta.opt-level=2' -p sekimori-mta --test it gateway::faults
	cargo build --release -p sekimori-mta -p sekimori-e2e
	$(TARGET)/release/sekimori-e2e crash --gateway $(TARGET)/release/sekimori-mta --rounds 50
	cargo deny check advisories

bench: ## Measure the gateway beside Postfix in one run; figures go to BENCHMARKS.md
	@scripts/bootstrap.sh test
	cargo build --release -p sekimori-mta -p sekimori-e2e
	$(TARGET)/release/sekimori-e2e bench --gateway $(TARGET)/release/sekimori-mta --write BENCHMARKS.md

bench-cluster: ## Measure the whole at 100,000 tenants on a cluster of its own; most of an hour; figures go to BENCHMARKS.md (needs root)
	@scripts/bootstrap.sh cluster
	cargo build --release --workspace --bins
	@$(ROOT) $(TARGET)/release/sekimori-e2e cluster scale --binaries $(TARGET)/release --charts helm --write BENCHMARKS.md

generate: ## Rewrite what is generated: CRDs, reference pages, golden files
	UPDATE=1 cargo test -p sekimori-crds
	UPDATE=1 cargo test -p sekimori-mta --test it reference
	UPDATE=1 cargo test -p sekimori-operator --test it the_page_of
	UPDATE=1 cargo test --workspace --test chart manifests

fuzz: ## Fuzz each target for a minute (needs a nightly toolchain and cargo-fuzz)
	cd mta/fuzz && for target in $$(cargo +nightly fuzz list); do cargo +nightly fuzz run $$target -- -max_total_time=60; done

.PHONY: help run cluster cluster-down e2e-long test test-long bench bench-cluster generate fuzz
