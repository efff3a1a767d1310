package authz

import (
	"fmt"
	"strings"
	"sync"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/writ-mesh/writ/authz/decisionlog"
	"github.com/writ-mesh/writ/authz/rego"
)

// The parts of the input that the decision log tells by name. Method, path, host and
// the like are in every record; bodies are in none.
const (
	readsHeader = "input.attributes.request.http.headers"
	readsClaim  = "input.jwt.claims"
)

// inputNames knows which headers and claims a policy reads.
type inputNames struct {
	mu    sync.Mutex
	known map[*rego.Program]named
}

type named struct{ headers, claims []string }

// maxKnownPrograms bounds what is remembered of policies that are gone.
const maxKnownPrograms = 4096

func (n *inputNames) of(p *rego.Program) named {
	n.mu.Lock()
	defer n.mu.Unlock()
	if have, ok := n.known[p]; ok {
		return have
	}
	var out named
	for _, path := range p.Reads() {
		if name, ok := partOf(path, readsHeader); ok {
			out.headers = append(out.headers, name)
		} else if name, ok := partOf(path, readsClaim); ok {
			out.claims = append(out.claims, name)
		}
	}
	if n.known == nil || len(n.known) >= maxKnownPrograms {
		n.known = map[*rego.Program]named{}
	}
	n.known[p] = out
	return out
}

// partOf gives the first name of a reference below a prefix: .name or ["name"].
func partOf(path, prefix string) (string, bool) {
	rest, ok := strings.CutPrefix(path, prefix)
	if !ok || rest == "" {
		return "", false
	}
	if rest, ok := strings.CutPrefix(rest, `["`); ok {
		name, _, ok := strings.Cut(rest, `"]`)
		return name, ok
	}
	rest, ok = strings.CutPrefix(rest, ".")
	if i := strings.IndexAny(rest, ".["); i >= 0 {
		rest = rest[:i]
	}
	return rest, ok && rest != ""
}

// read gives what the policies that were asked read of a request, without secrets.
func (n *inputNames) read(req *authv3.CheckRequest, programs []*rego.Program, redact *decisionlog.Redactor) map[string]string {
	var out map[string]string
	put := func(key, value string) {
		if out == nil {
			out = map[string]string{}
		}
		out[key] = value
	}
	headers := req.GetAttributes().GetRequest().GetHttp().GetHeaders()
	for _, p := range programs {
		names := n.of(p)
		for _, h := range names.headers {
			if v, ok := headers[h]; ok {
				put("header "+h, redact.Header(h, v))
			}
		}
		if len(names.claims) == 0 {
			continue
		}
		claims := envoyPayload(req).GetFields()
		for _, c := range names.claims {
			if v, ok := claims[c]; ok {
				put("claim "+c, fmt.Sprint(redact.Claim(c, v.AsInterface())))
			}
		}
	}
	return out
}
