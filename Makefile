# The only entry points; CI calls these and nothing else.

CARGO ?= cargo
# Programs that `tools/install` unpacked come before the machine's own.
export PATH := $(CURDIR)/.tools/bin:$(PATH)

.PHONY: help demo up down test lint bench k8s-check compose-check test-gpu bench-gpu

help:
	@echo "make demo    records in, a served adapter out: installs, builds, runs the whole pipeline, stops"
	@echo "make up      the topology of deploy/compose.yaml as processes of this machine; make down ends it"
	@echo "make test    every test"
	@echo "make lint    formatting, clippy, licences, duplicate and unused dependencies, the wire contract"
	@echo "make bench   one table of speeds on this machine"
	@echo "make k8s-check      the Kubernetes manifests against the API's schemas and our rules"
	@echo "make compose-check  deploy/compose.yaml brought up for real in its own Docker engine; needs root"
	@echo "make test-gpu, make bench-gpu: the same of the engine on an NVIDIA GPU, with the driver and libraries of CUDA 13"

demo:
	@tools/install nats
	$(CARGO) build --package togi
	$(CARGO) run --quiet --package togi -- demo

up:
	@tools/install test
	$(CARGO) build --workspace --bins
	@tools/up start

down:
	@tools/up stop

test:
	@tools/install test
	@tools/install k8s
	@tools/install kernels
	$(CARGO) test --workspace
	LD_LIBRARY_PATH=$(CURDIR)/.tools/cuda $(CARGO) test --package togi-model --features cuda --lib every_kernel_compiles

lint:
	@tools/install test
	@tools/install lint
	@tools/install k8s
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- --deny warnings
	$(CARGO) clippy --package togi-model --package togi-trainer --package togi-inference --package togi --all-targets --features togi/cuda,togi-model/bench -- --deny warnings
	$(CARGO) machete
	cargo-deny --log-level error check --hide-inclusion-graph licenses bans sources
	buf lint proto
	hadolint deploy/Dockerfile

bench:
	@tools/install nats
	tools/bench

k8s-check:
	@tools/install k8s
	$(CARGO) build --workspace --bins
	$(CARGO) test --workspace --test manifests

compose-check:
	@tools/install test
	@tools/install k8s
	$(CARGO) build --workspace --bins
	tools/compose-check

test-gpu:
	TOGI_NEEDS_CUDA=1 $(CARGO) test --package togi-model --features cuda --test model

bench-gpu:
	@tools/install nats
	tools/bench-gpu
	tools/bench-serving
