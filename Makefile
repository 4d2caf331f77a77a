# `make help` lists the targets; each line is one command that can be run by itself.
# Binaries are where cargo puts them: in target/, or where CARGO_TARGET_DIR says.

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
PREFIX ?= /usr/local
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

.PHONY: help setup build demo test test-unit test-root test-k8s test-kernels kubernetes lint fmt bench bench-quick bench-k8s install clean
.DEFAULT_GOAL := help

help: ## show this text
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-14s %s\n", $$1, $$2 }'

setup: ## install what is missing for building (root on Debian 12; see .ci/setup)
	@.ci/setup build

build: setup ## build target/release/xdp-lb
	cargo build --release --package xdp-lb

demo: build ## real traffic through a lab of network namespaces (root)
	$(TARGET_DIR)/release/xdp-lb demo $(SCENARIO)

test: test-unit test-root test-k8s test-kernels ## all tests; those that cannot run here are skipped

test-unit: setup ## tests without root; those of the page need Chromium
	-@.ci/setup test
	cargo test --no-fail-fast

test-root: setup ## tests with the real data path: root and network namespaces
	cargo test --no-fail-fast --package xdp-lb --package xdp-lb-netns-tests
	cargo test --no-fail-fast --package xdp-lb-bench --lib --tests

test-k8s: setup kubernetes ## tests against a real Kubernetes: root, and Go 1.26 to build it
	cargo test --no-fail-fast --package xdp-lb --package xdp-lb-netns-tests --test 'kubernetes*' \
		--features xdp-lb-netns-tests/kubernetes-tests,xdp-lb-netns-tests/kernel-tests

test-kernels: setup ## the packet path's fixtures, and VLAN devices, under Debian's 6.1 and 6.12
	-@.ci/setup kernels
	.ci/kernels

kubernetes: ## build a control plane for tests and demo into target/kubernetes (nine minutes at first)
	@xdp-lb/kubernetes/build $(TARGET_DIR)/kubernetes

lint: setup ## formatting, clippy and documentation, warnings fatal
	@.ci/setup lint
	cargo fmt --all --check
	.ci/clippy
	RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --exclude xdp-lb-ebpf --no-deps

fmt: ## format all code
	cargo fmt --all

bench: setup ## measure everything (root): tables, target/bench/report.json and report.html
	-@.ci/setup bench
	cargo bench --package xdp-lb-bench

bench-quick: setup ## measure less, in under two minutes once it is built
	XDP_LB_BENCH_QUICK=1 cargo bench --package xdp-lb-bench --bench packets --bench control --bench path

bench-k8s: setup kubernetes ## 10,000 services of 10 endpoints followed from a real API server (root)
	XDP_LB_SERVICES=10000 cargo test --release --package xdp-lb-netns-tests --features kubernetes-tests \
		--test kubernetes_scale -- --nocapture

install: ## put the binary (build it first), man pages, completions and the systemd unit in place, under DESTDIR
	install -D -m 755 $(TARGET_DIR)/release/xdp-lb $(DESTDIR)$(PREFIX)/bin/xdp-lb
	install -d -m 755 $(DESTDIR)/etc/xdp-lb
	install -d -m 755 $(DESTDIR)$(PREFIX)/share/man/man8
	$(TARGET_DIR)/release/xdp-lb man --dir $(DESTDIR)$(PREFIX)/share/man/man8
	install -d -m 755 $(foreach dir,bash-completion/completions zsh/site-functions fish/vendor_completions.d,$(DESTDIR)$(PREFIX)/share/$(dir))
	$(TARGET_DIR)/release/xdp-lb completions bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/xdp-lb
	$(TARGET_DIR)/release/xdp-lb completions zsh > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_xdp-lb
	$(TARGET_DIR)/release/xdp-lb completions fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/xdp-lb.fish
	install -D -m 644 systemd/xdp-lb.service $(DESTDIR)$(PREFIX)/lib/systemd/system/xdp-lb.service

clean: ## remove what was built
	cargo clean
