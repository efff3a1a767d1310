# `make help` lists what there is. Everything that is fetched goes to .tools.
SHELL := /bin/bash
.DEFAULT_GOAL := help

ENVOY_NEWEST := 1.40.0
ENVOY_OLDEST := 1.36.2
BINARIES := writ writ-ca writ-nodeagent writ-authz writ-ratelimit writ-pilot writ-pod
export CGO_ENABLED ?= 0
# No path of the machine that builds gets into a binary, and what one checkout
# compiled serves the next.
export GOFLAGS += -trimpath

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# go build puts the example's program, whose folder is called app, beside ours.
build = go build -ldflags '-s -w' -o bin/ $(addprefix ./cmd/,$(1)) ./examples/bookinfo/app && mv bin/app bin/bookinfo

.PHONY: build
build: ## build every binary into bin/
	@mkdir -p bin
	$(call build,$(BINARIES))

.PHONY: envoy
envoy: ## fetch Envoy into .tools unless ENVOY or PATH has a supported one
	@hack/fetch-envoy.sh --unless-found $(ENVOY_NEWEST)

# What `make up` needs, Envoy being fetched meanwhile.
.PHONY: up-tools
up-tools:
	@mkdir -p bin
	@[ -x bin/writ ] || echo "building Writ (the first time about two minutes)"
	@hack/fetch-envoy.sh --unless-found $(ENVOY_NEWEST) & fetch=$$!; \
	  $(call build,$(filter-out writ-pod,$(BINARIES))); built=$$?; \
	  wait $$fetch && exit $$built

.PHONY: up
up: up-tools ## run the Bookinfo mesh; Ctrl-C ends it
	@exec bin/writ up examples/bookinfo

.PHONY: demo
demo: up-tools ## run the mesh and its checks, print a table, exit non-zero on a miss
	@exec bin/writ up examples/bookinfo --check

.PHONY: test
test: build test-tools ## all tests, real Envoys and Redis included; of one service, quickly: make test only=ca
	hack/test.sh $(only)

.PHONY: repeat
repeat: build test-tools ## the tests with whole meshes, twenty times
	hack/repeat.sh 20

.PHONY: fetch
fetch: # what the tests need from others
	@hack/fetch-envoy.sh $(ENVOY_NEWEST)
	@hack/fetch-envoy.sh $(ENVOY_OLDEST)
	@hack/install-servers.sh
	@hack/fetch-compose.sh

.PHONY: test-tools
test-tools: fetch # what the tests need beside Go
	@hack/build-tool.sh step-ca

.PHONY: kubernetes-tools
kubernetes-tools: ## build a real Kubernetes API for the tests that have one if it is there
	@hack/build-kubernetes.sh

.PHONY: lint
lint: ## the linters
	@hack/lint.sh

.PHONY: generate
generate: ## generate code from proto/
	hack/generate.sh

.PHONY: generate-check
generate-check: ## fail if generated code is not what proto/ says
	hack/generate.sh --check

.PHONY: tidy-check
tidy-check: ## fail if go.mod is not tidy
	go mod tidy -diff

.PHONY: failovers
failovers: ## twenty orders to change Redis's master and twenty deaths of it under load, each over within two seconds
	WRIT_FAILOVERS=20 go test -count=1 -timeout 20m -run 'TestSentinel|TestCluster' -v ./ratelimit/redisstore

.PHONY: bench
bench: build envoy ## ours / floor / ratio for each hot path
	go run ./bench

.PHONY: images
images: build envoy ## one container image per service (needs a Docker daemon)
	deploy/images/build.sh

.PHONY: clean
clean: ## remove what was built and fetched
	rm -rf bin .tools examples/*/.writ
