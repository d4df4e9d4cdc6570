# The only entry points; CI calls these and nothing else.

CARGO ?= cargo
# Programs that `tools/install` unpacked come before the machine's own.
export PATH := $(CURDIR)/.tools/bin:$(PATH)

.PHONY: help demo test lint bench test-gpu bench-gpu

help:
	@echo "make demo    records in, a served adapter out: installs, builds, runs the whole pipeline, stops"
	@echo "make test    every test"
	@echo "make lint    formatting, clippy, licences and duplicate versions, the wire contract"
	@echo "make bench   one table of speeds on this machine"
	@echo "make test-gpu, make bench-gpu: the same of the engine on a card of NVIDIA, with a driver and libraries of CUDA 13"

demo:
	@tools/install nats
	$(CARGO) build --package togi
	$(CARGO) run --quiet --package togi -- demo

test:
	@tools/install test
	$(CARGO) test --workspace

lint:
	@tools/install test
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- --deny warnings
	$(CARGO) clippy --package togi-model --package togi-trainer --package togi-inference --package togi --all-targets --features togi/cuda -- --deny warnings
	cargo-deny --log-level error check --hide-inclusion-graph licenses bans sources
	buf lint proto

bench:
	@tools/install nats
	tools/bench

test-gpu:
	TOGI_NEEDS_CUDA=1 $(CARGO) test --package togi-model --features cuda --test model

bench-gpu:
	tools/bench-gpu
