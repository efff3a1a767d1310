// Package replay tries policies on requests that were recorded: what a mesh would do
// with them (package explain of pilot decides), which decisions flip, whom a policy that
// only observes would refuse, and which policy would be enough for what was seen. It
// reads no directory and asks nobody.
//
// What hangs on something that is not in the recording is unknown, and never guessed.
package replay

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/authz/decisionlog"
	"github.com/writ-mesh/writ/authz/recording"
	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/pilot/condition"
	"github.com/writ-mesh/writ/pilot/explain"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
)

// The outcomes.
const (
	allowed = "allowed"
	refused = "refused"
	unknown = "unknown"
)

// Verdict is what a mesh would do with a request.
type Verdict struct {
	Outcome string
	// By is the rule that refuses, or why it is not known.
	By string
}

// Mesh is one that requests are tried on.
type Mesh struct {
	mesh *model.Mesh
	// rego decides a check, as authz does.
	rego Rego
	// reads caches what RegoPolicies read.
	reads map[*model.RegoPolicy][]string
	// compiled keeps what the rules come to.
	compiled *eval.Compiled
}

// Rego decides a check by one policy.
type Rego func(p *model.RegoPolicy, check *authv3.CheckRequest, issuer string, claims map[string]any) (bool, string, error)

// New makes a Mesh of a model.
func New(m *model.Mesh, decide Rego) *Mesh {
	return &Mesh{mesh: m, rego: decide, reads: map[*model.RegoPolicy][]string{}, compiled: eval.NewCompiled()}
}

// Decide tells what the mesh would do.
func (m *Mesh) Decide(ctx context.Context, s *recording.Seen) Verdict {
	if strings.HasPrefix(s.Rule, "RequestAuthentication ") {
		return Verdict{unknown, "its token was refused, and is not recorded"}
	}
	proxies := m.workloads(s)
	if len(proxies) == 0 {
		return Verdict{unknown, "its workload is not in the mesh"}
	}
	var all Verdict
	for i, p := range proxies {
		v := m.at(ctx, p, s)
		if i > 0 && v.Outcome != all.Outcome {
			return Verdict{unknown, "several workloads have the identity " + s.To + ", and decide differently"}
		}
		all = v
	}
	return all
}

// workloads are those that may have got the request: the one that reported it, else
// the one with the address, else all with the identity, one replica of each.
func (m *Mesh) workloads(s *recording.Seen) []*model.Proxy {
	var same, byIdentity []*model.Proxy
	seen := map[string]bool{}
	for _, p := range m.mesh.Proxies {
		if s.Proxy != "" && nodeName(s.Proxy) == nodeName(p.ID) {
			return []*model.Proxy{p}
		}
		if "spiffe://"+m.mesh.TrustDomain+"/ns/"+p.Namespace+"/sa/"+p.ServiceAccount != s.To {
			continue
		}
		if s.Address != "" && p.Address.String() == s.Address {
			same = append(same, p)
		}
		if key := labels(p); !seen[key] {
			seen[key] = true
			byIdentity = append(byIdentity, p)
		}
	}
	if s.Proxy != "" {
		return nil // it runs no more
	}
	if len(same) > 0 {
		return same
	}
	return byIdentity
}

// nodeName is "<name>.<namespace>" of a node id.
func nodeName(id string) string {
	parts := strings.Split(id, "~")
	if len(parts) != 4 {
		return ""
	}
	return parts[0] + " " + parts[2]
}

func labels(p *model.Proxy) string {
	out := []string{p.Namespace}
	for k, v := range p.Labels {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}

// at is the decision of one workload.
func (m *Mesh) at(ctx context.Context, p *model.Proxy, s *recording.Seen) Verdict {
	q := explain.Question{
		From: s.From, To: p.Namespace + "/" + p.Name, Port: s.Port, Method: s.Method, Path: s.Path, Host: s.Host, Headers: map[string]string{}, SNI: s.SNI,
	}
	if q.From == "" {
		q.From = explain.Outside
	}
	if s.Query != "" {
		q.Path += "?" + s.Query
	}
	for k, v := range s.Headers {
		if !strings.HasPrefix(k, ":") {
			q.Headers[k] = v
		}
	}
	if a, err := netip.ParseAddr(s.SourceAddress); err == nil {
		q.SourceIP = a
	}
	if q.Headers[forwardedFor] == "" && s.Remote != "" && s.Remote != s.SourceAddress {
		q.Headers[forwardedFor] = s.Remote // where only that was recorded of it
	}
	t := token{seen: s}
	answer, err := explain.Request(m.mesh, q, explain.Deciders{Find: t.find, Verify: t.verify, Rego: explainRego(m.rego), Now: s.Time, Compiled: m.compiled})
	if err != nil {
		return Verdict{unknown, err.Error()}
	}
	if t.asked && !t.found && s.Claims != nil {
		return Verdict{unknown, "its token is of an issuer that the workload does not know, and is not recorded"}
	}
	target := answer.Targets[0]
	policies := m.compiled.Select(m.mesh, p)
	if why := m.missing(policies, s); why != "" {
		return Verdict{unknown, why}
	}
	byRego := strings.HasPrefix(target.By, "RegoPolicy ")
	if target.Decision == explain.Refused && !byRego {
		return Verdict{refused, target.By}
	}
	if why := m.missingForRego(ctx, policies.Rego, s); why != "" {
		return Verdict{unknown, why}
	}
	switch target.Decision {
	case explain.Refused:
		return Verdict{refused, target.By}
	case explain.Allowed:
		return Verdict{allowed, target.By}
	}
	return Verdict{unknown, "a CUSTOM provider, or a bundle, has a say"}
}

func explainRego(f Rego) func(*model.RegoPolicy, *authv3.CheckRequest, string, map[string]any) (bool, string, error) {
	if f == nil {
		return nil
	}
	return f
}

// token is the one whose claims are recorded: it was valid when it was seen.
type token struct {
	seen         *recording.Seen
	asked, found bool
}

func (t *token) find(rule *security.JWTRule, _ map[string]string, _ string) []string {
	t.asked = true
	if iss, _ := t.seen.Claims["iss"].(string); t.seen.Claims != nil && iss == rule.GetIssuer() {
		t.found = true
		return []string{"recorded"}
	}
	return nil
}

func (t *token) verify(string, *security.JWTRule, time.Time) explain.Verified {
	return explain.Verified{Claims: t.seen.Claims}
}

const forwardedFor = "x-forwarded-for"

// missing says which part of a request the rules and lists look at that is not
// recorded, or which entries of a list are not known.
func (m *Mesh) missing(p eval.Policies, s *recording.Seen) string {
	for _, list := range p.Lists {
		if list.Observe {
			continue
		}
		if m.elsewhere(list) {
			return "what the source of " + list.ID() + " gives is not known here"
		}
		if why := missingClause(list.Match, s); why != "" {
			return why
		}
	}
	domains := eval.Domains{Own: append([]string{m.mesh.TrustDomain}, m.mesh.TrustDomainAliases...), Federated: m.mesh.FederatedDomains}
	for _, pol := range slices.Concat(p.Custom, p.Deny, p.Allow) {
		if model.DryRun(pol) {
			continue
		}
		rules, err := m.compiled.Rules(domains, pol, s.TCP)
		if err != nil {
			return err.Error()
		}
		for _, r := range rules {
			for _, c := range slices.Concat(slices.Concat(r.From...), slices.Concat(r.To...), r.When) {
				if why := missingClause(c.Key, s); why != "" {
					return why
				}
			}
		}
	}
	return ""
}

// elsewhere says that a list has entries that are not in the files.
func (m *Mesh) elsewhere(list *model.AccessList) bool {
	if list.From == nil {
		return false
	}
	_, known := m.mesh.Fetched[list.Namespace+"/"+list.Name]
	return !known
}

func missingClause(key string, s *recording.Seen) string {
	k, name, _ := condition.Find(key)
	switch k.Name {
	case condition.Headers:
		switch name = strings.ToLower(name); name {
		case ":method", ":authority", "host":
			return "" // as method and host
		case ":path":
			return missingInput("input.attributes.request.http.path", s)
		}
		return missingHeader(name, s)
	case condition.Claims:
		first, _, _ := strings.Cut(name, "][")
		if v, ok := s.Claims[first].(string); ok && v == decisionlog.Redacted {
			return "the claim " + first + " is not recorded: it is redacted"
		}
	case condition.EnvoyFilters:
		return "what other filters leave is not recorded"
	}
	return ""
}

func missingHeader(name string, s *recording.Seen) string {
	value, ok := s.Headers[name]
	switch {
	case strings.Contains(value, decisionlog.Redacted):
		return "the header " + name + " is not recorded: it is redacted"
	case ok, s.AllHeaders && !recording.Dropped(name):
		return ""
	}
	return "the header " + name + " is not recorded"
}

const (
	inputHeaders = "input.attributes.request.http.headers"
	inputQuery   = "input.parsed_query"
)

// missingForRego says the same of what RegoPolicies read.
func (m *Mesh) missingForRego(ctx context.Context, policies []*model.RegoPolicy, s *recording.Seen) string {
	for _, p := range policies {
		if p.Observe {
			continue
		}
		for _, path := range m.readsOf(ctx, p) {
			if !s.AllHeaders && !reported(path) {
				return p.ID() + " reads " + path + ", and Envoys do not report it whole"
			}
			if why := missingInput(path, s); why != "" {
				return p.ID() + ": " + why
			}
		}
	}
	return ""
}

// reported says that Envoys report what a policy reads, of requests that they decide
// themselves.
func reported(path string) bool {
	return slices.ContainsFunc([]string{
		"input.parsed_path", "input.parsed_query", "input.attributes.request.http.method", "input.attributes.request.http.path",
		"input.attributes.request.http.host", "input.attributes.source.principal", "input.attributes.destination.principal",
	}, func(whole string) bool {
		rest, ok := strings.CutPrefix(path, whole)
		return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
	})
}

func (m *Mesh) readsOf(ctx context.Context, p *model.RegoPolicy) []string {
	if have, ok := m.reads[p]; ok {
		return have
	}
	out := []string{"input"}
	if p.Module != "" {
		name := p.Namespace + "/" + p.Name + ".rego"
		if program, err := rego.Compile(ctx, rego.Source{Modules: map[string]string{name: p.Module}}, p.Query, rego.Options{}); err == nil {
			out = program.Reads()
		}
	}
	m.reads[p] = out
	return out
}

func missingInput(path string, s *recording.Seen) string {
	under := func(prefix string) bool {
		return path == prefix || strings.HasPrefix(path, prefix+".") || strings.HasPrefix(path, prefix+"[")
	}
	// What reads a whole reads its parts.
	within := func(part string) bool {
		return under(part) || strings.HasPrefix(part, path+".") || path == "input"
	}
	if within("input.parsed_body") || within("input.attributes.request.http.body") || within("input.attributes.request.http.raw_body") {
		if s.Body {
			return "the body is not recorded"
		}
	}
	if within(inputQuery) || within("input.attributes.request.http.path") || path == inputHeaders+`[":path"]` {
		if strings.Contains(s.Query, decisionlog.Redacted) || strings.Contains(s.Path, decisionlog.Redacted) {
			return "the path or query is redacted"
		}
	}
	if within("input.parsed_path") && strings.Contains(s.Path, decisionlog.Redacted) {
		return "the path is redacted"
	}
	switch {
	case under(inputHeaders) && path != inputHeaders:
		name := strings.Trim(strings.TrimPrefix(path, inputHeaders), `.["]`)
		return missingHeader(name, s)
	case within(inputHeaders):
		for name, value := range s.Headers {
			if strings.Contains(value, decisionlog.Redacted) {
				return "the header " + name + " is redacted"
			}
		}
	}
	return ""
}
