# `make help` lists what there is. Everything that is fetched goes to .tools.
SHELL := /bin/bash
.DEFAULT_GOAL := help

ENVOY_NEWEST := 1.40.0
ENVOY_OLDEST := 1.36.2
BINARIES := writ writ-ca writ-nodeagent writ-authz writ-ratelimit writ-pilot writ-pod
export CGO_ENABLED ?= 0

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build every binary into bin/
	@mkdir -p bin
	go build -ldflags '-s -w' -o bin/ $(addprefix ./cmd/,$(BINARIES))
	@go build -ldflags '-s -w' -o bin/bookinfo ./examples/bookinfo/app

.PHONY: envoy
envoy: ## fetch Envoy into .tools unless $ENVOY or PATH has a supported one
	@[ -n "$$ENVOY" ] || command -v envoy >/dev/null || hack/fetch-envoy.sh $(ENVOY_NEWEST)

.PHONY: up
up: build envoy ## run the Bookinfo mesh; Ctrl-C ends it
	@exec bin/writ up examples/bookinfo

.PHONY: demo
demo: build envoy ## run the mesh and its checks, print a table, exit non-zero on a miss
	@exec bin/writ up examples/bookinfo --check

.PHONY: test
test: build test-tools ## all tests, real Envoys and Redis included; of one service: make test only=ca
	hack/test.sh $(only)

.PHONY: repeat
repeat: build test-tools ## the tests with whole meshes, twenty times
	hack/repeat.sh 20

.PHONY: test-tools
test-tools: # what the tests need beside Go
	@hack/fetch-envoy.sh $(ENVOY_NEWEST)
	@hack/fetch-envoy.sh $(ENVOY_OLDEST)
	@hack/install-servers.sh

.PHONY: lint
lint: ## the linters
	@hack/lint.sh

.PHONY: generate
generate: ## generate code from proto/
	hack/generate.sh

.PHONY: generate-check
generate-check: generate ## fail if generated code is not what proto/ says
	git diff --exit-code -- proto

.PHONY: tidy-check
tidy-check: ## fail if go.mod is not tidy
	go mod tidy -diff

.PHONY: bench
bench: build envoy ## ours / floor / ratio for each hot path
	go run ./bench

.PHONY: images
images: build envoy ## one container image per service (needs a Docker daemon)
	deploy/images/build.sh

.PHONY: clean
clean: ## remove what was built and fetched
	rm -rf bin .tools examples/*/.writ
