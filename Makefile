# Building, testing and trying Maru. `make` alone lists the targets; what they do in more than one step is in scripts/.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# A toolchain that rustup installed but that is not on the PATH yet, and what `cargo install` puts beside it.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

# There is one profile, release: what is tested is what ships.
CARGO_FLAGS := --release --workspace $(if $(CI),--locked)

# The programs, for scripts/. The target is named in .cargo/config.toml.
export MARU_BIN_DIR ?= $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)/x86_64-unknown-linux-gnu/release

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

## Try

.PHONY: demo
demo: deps build ## start three virtual hosts with VMs that talk through virtual switches, and one that outlives its host
	@scripts/demo

## Build

.PHONY: deps deps-test deps-lint deps-api deps-switch
deps: ## install what building and the lab need (Debian 12 and 13, Ubuntu 24.04)
	@scripts/install-deps

deps-test: ## the same, and what the tests need
	@scripts/install-deps test

deps-lint: ## the same, and what `make lint` needs
	@scripts/install-deps lint

deps-api: ## the same, and what `make test-api` needs
	@scripts/install-deps api

deps-switch: ## the same, and what `make bench-switch` needs
	@scripts/install-deps switch

.PHONY: build
build: ## build everything
	cargo build $(CARGO_FLAGS)

.PHONY: deb
deb: deps build ## make the Debian package, in build/deb
	@scripts/deb

.PHONY: clean
clean: ## remove what was built; fetched packages stay in build/
	cargo clean
	rm -rf book build/initramfs build/lab

## Check

.PHONY: test
test: deps-test build ## run every test, the lab's too
	cargo test $(CARGO_FLAGS) --doc
	cargo nextest run $(CARGO_FLAGS)

.PHONY: test-api
test-api: deps-api ## ask the API whatever its document allows, and what it does not (schemathesis; a few minutes)
	cargo build --release $(if $(CI),--locked) --package maru-host --package maru-switch --bins --examples
	@scripts/test-api

.PHONY: test-witness
test-witness: deps-test build ## every fault, and every pair of them, beside a guest that sees whether it runs twice (an hour and a half)
	cargo nextest run $(CARGO_FLAGS) --run-ignored only --no-capture -E 'binary(scenario_witness)'

.PHONY: test-deb
test-deb: deps build ## install the Debian package on a real Debian in a virtual machine, and use it (as root; needs mmdebstrap)
	@scripts/test-deb

.PHONY: fuzz
fuzz: ## look for inputs that do harm, a minute for each target, or FUZZ_SECONDS (needs a nightly toolchain and cargo-fuzz)
	@scripts/fuzz

.PHONY: lint lint-format lint-code lint-dependencies lint-scripts lint-docs
lint: lint-format lint-docs lint-scripts lint-dependencies lint-code ## format, docs, scripts, licences, clippy

lint-format:
	cargo fmt --all --check

lint-code:
	cargo clippy $(CARGO_FLAGS) --all-targets -- -D warnings
	@# The block layer as the monitor has it.
	cargo clippy --release --package maru-disk --no-default-features -- -D warnings

lint-dependencies:
	@scripts/lint-dependencies

lint-scripts:
	@scripts/lint-scripts

lint-docs:
	@scripts/lint-docs

.PHONY: fmt
fmt: ## format the code
	cargo fmt --all

## Measure

.PHONY: bench bench-boot bench-block bench-cluster bench-disk bench-failover bench-host bench-list bench-switch bench-uplink
bench: bench-boot bench-block bench-cluster bench-disk bench-failover bench-host bench-list bench-switch bench-uplink ## all measurements; the numbers go into SPECIFICATION.md

bench-boot: deps build ## time to a guest's init and own memory, beside QEMU's
	@scripts/bench boot

bench-block: deps build ## block throughput and requests per second in a guest, beside QEMU's
	@scripts/bench block

bench-cluster: deps build ## 128 hosts and 20,000 VMs with etcd: how long starts, failures and drains take, and what they cost
	@scripts/bench cluster

bench-disk: deps build ## what a VHDX image costs beside a raw file and beside QEMU's VHDX
	@scripts/bench disk --dir target

bench-failover: deps build ## from a host's power cut to the guest's init on another, in a cluster of three virtual hosts
	@scripts/bench failover

bench-host: deps-test build ## a hundred VMs on one host, and how exact shares, caps and limits are
	cargo nextest run $(CARGO_FLAGS) --run-ignored only --no-capture -E 'binary(scenario_hundred) | binary(scenario_limits)'

bench-list: build ## how long it takes to list 20,000 VMs
	@scripts/bench list

bench-switch: deps-switch build ## the virtual switch beside Open vSwitch with DPDK, and beside a Linux bridge; needs root and two quiet cores
	@scripts/bench switch

bench-uplink: deps build ## uplinks of the virtual switch by AF_XDP beside AF_PACKET; needs root and two quiet cores
	@scripts/bench uplink

## Document

.PHONY: docs
docs: ## make the book from docs/
	@scripts/make-book
