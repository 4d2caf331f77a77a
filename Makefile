# `make help` lists the targets; each line is one command that can be run by itself.
# Binaries are where cargo puts them: in target/, or where CARGO_TARGET_DIR says.

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
PREFIX ?= /usr/local
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

.PHONY: help setup build demo test test-unit test-root test-kernels lint fmt bench install clean
.DEFAULT_GOAL := help

help: ## show this text
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-14s %s\n", $$1, $$2 }'

setup: ## install what is missing for building (root on Debian 12; see .ci/setup)
	@.ci/setup build

build: setup ## build target/release/xdp-lb
	cargo build --release --package xdp-lb

demo: build ## real traffic through a lab of network namespaces (root)
	$(TARGET_DIR)/release/xdp-lb demo $(SCENARIO)

test: test-unit test-root test-kernels ## all tests; those that cannot run here are skipped

test-unit: setup ## tests without root
	cargo test --no-fail-fast

test-root: setup ## tests with the real data path: root and network namespaces
	cargo test --no-fail-fast --package xdp-lb --package xdp-lb-netns-tests

test-kernels: setup ## the packet path's fixtures, and VLAN devices, under Debian's 6.1 and 6.12
	-@.ci/setup kernels
	.ci/kernels

lint: setup ## formatting, clippy and documentation, warnings fatal
	@.ci/setup lint
	cargo fmt --all --check
	.ci/clippy
	RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --exclude xdp-lb-ebpf --no-deps

fmt: ## format all code
	cargo fmt --all

bench: setup ## measure
	cargo bench --workspace --exclude xdp-lb-ebpf

install: ## put the binary (build it first) and the systemd unit in place, under DESTDIR
	install -D -m 755 $(TARGET_DIR)/release/xdp-lb $(DESTDIR)$(PREFIX)/bin/xdp-lb
	install -d -m 755 $(DESTDIR)/etc/xdp-lb
	install -D -m 644 systemd/xdp-lb.service $(DESTDIR)$(PREFIX)/lib/systemd/system/xdp-lb.service

clean: ## remove what was built
	cargo clean
