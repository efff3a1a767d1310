package explain

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// Limits is which limits of QuotaPolicies count a request.
type Limits struct {
	Question Question `json:"question"`
	// From is the caller's SPIFFE ID without scheme, empty without one.
	From    string          `json:"from,omitempty"`
	Targets []LimitedTarget `json:"targets"`
}

// LimitedTarget is one workload that may get the request, with others of which the same
// holds.
type LimitedTarget struct {
	Workload string `json:"workload"`
	Port     uint32 `json:"port"`
	// RefusedBy is what refuses the request before any quota is asked; no limit counts it.
	RefusedBy string           `json:"refusedBy,omitempty"`
	Limits    []EffectiveLimit `json:"limits,omitempty"`
	// Ignored is what policies say of others and may not.
	Ignored []string `json:"ignored,omitempty"`
}

// EffectiveLimit is one limit in front of a workload.
type EffectiveLimit struct {
	Policy string `json:"policy"`
	Limit  int    `json:"limit"`
	Name   string `json:"name,omitempty"`
	At     string `json:"at,omitempty"`
	Layer  string `json:"layer"`
	// Counts says whether it counts the request, Why why not.
	Counts bool   `json:"counts"`
	Why    string `json:"why,omitempty"`
	// Requests, Every, Algorithm and Burst are its numbers. Of a limit with a Plan they
	// are those of callers that the table does not tell of.
	Requests  uint32           `json:"requests"`
	Every     string           `json:"every"`
	Algorithm string           `json:"algorithm"`
	Burst     uint32           `json:"burst,omitempty"`
	Plan      *model.QuotaPlan `json:"plan,omitempty"`
	// PlanCaller is whom the table is asked about.
	PlanCaller string   `json:"planCaller,omitempty"`
	Per        []string `json:"per,omitempty"`
	Mode       string   `json:"mode"`
	Observe    bool     `json:"observe,omitempty"`
	// Unavailable is what happens if ratelimit does not answer.
	Unavailable string `json:"whenUnavailable"`
	// Counter is the name of the caller's counter, as `writ limits get` takes it.
	Counter string `json:"counter,omitempty"`
}

// EffectiveLimits tells which limits count one request, and why the others do not. The
// error says what in the question is not of this mesh.
func EffectiveLimits(m *model.Mesh, q Question, d Deciders) (*Limits, error) {
	lives, from, err := lives(m, &q, d)
	if err != nil {
		return nil, err
	}
	out := &Limits{Question: q, From: from}
	for _, l := range lives {
		limited := LimitedTarget{Workload: l.to.proxy.Namespace + "/" + workloadOf(l.to.proxy), Port: l.to.port.Port}
		if l.decided != nil {
			limited.RefusedBy = l.decided.By
		} else {
			limited.Limits, limited.Ignored = l.limits(), l.ignored()
		}
		out.Targets = append(out.Targets, limited)
	}
	return out, nil
}

// limits are those in front of the workload, those that count the request first.
func (l *life) limits() []EffectiveLimit {
	if l.r.TCP {
		return nil
	}
	var out []EffectiveLimit
	for _, counted := range eval.Layers(l.m.RootNamespace, l.policies.Quota) {
		out = append(out, l.limit(&counted))
	}
	slices.SortStableFunc(out, func(a, b EffectiveLimit) int {
		switch {
		case a.Counts == b.Counts:
			return 0
		case a.Counts:
			return -1
		}
		return 1
	})
	return out
}

func (l *life) speaks(pol *model.QuotaPolicy) bool { return eval.Speaks(l.domains(), pol, &l.r) }

func (l *life) limit(counted *eval.CountedLimit) EffectiveLimit {
	pol, limit := counted.Policy, counted.Policy.Limits[counted.Index]
	out := EffectiveLimit{
		Policy: pol.ID(), Limit: counted.Index, Name: limit.Name, At: place(pol.Ref), Layer: counted.Layer.String(),
		Requests: limit.Requests, Every: limit.Every.String(), Algorithm: limit.Algorithm, Plan: limit.Plan,
		Mode: limit.Mode, Observe: pol.Observe, Unavailable: "Allow",
	}
	if out.Algorithm == "" {
		out.Algorithm = "sliding"
	}
	if out.Algorithm == configpb.QuotaGCRA {
		out.Burst = max(limit.Burst, min(limit.Requests, 1))
	}
	if out.Mode == "" {
		out.Mode = "exact"
	}
	switch {
	case pol.Observe:
	case pol.FailClosed:
		out.Unavailable = "Deny"
	case pol.FailLocal:
		out.Unavailable = "Local"
	}
	for _, d := range limit.Per {
		out.Per = append(out.Per, d.Text)
	}
	counts, taker := counted.Counts(l.speaks)
	switch {
	case counts:
		out.Counts, out.Counter = true, l.counter(pol, counted.Index)
		for _, d := range limit.Per {
			if limit.Plan != nil && d.Text == limit.Plan.By {
				out.PlanCaller = l.dimension(d)
			}
		}
	case taker == nil:
		out.Why = "the policy's match does not fit the request"
	case taker.Index < 0:
		out.Why = "exempt by " + taker.Policy.ID() + behind(taker.Policy.Ref)
	default:
		out.Why = fmt.Sprintf("overridden by %s limit %d%s", taker.Policy.ID(), taker.Index, behind(taker.Policy.Ref))
	}
	return out
}

func behind(r model.Ref) string {
	if where := place(r); where != "" {
		return " (" + where + ")"
	}
	return ""
}

// ignored tells where policies that speak of the request would change what they may not.
func (l *life) ignored() []string {
	var out []string
	for _, pol := range l.policies.Quota {
		if pol.Upper == model.QuotaInherit || !l.speaks(pol) {
			continue
		}
		if pol.Observe {
			out = append(out, fmt.Sprintf("%s%s is only observed: its upper: %s does nothing", pol.ID(), behind(pol.Ref), pol.Upper))
			continue
		}
		for _, of := range eval.Forbidden(l.m.RootNamespace, pol, l.policies.Quota) {
			if l.speaks(of) {
				out = append(out, fmt.Sprintf("%s%s may not %s limits of %s%s, whose lower does not allow it", pol.ID(), behind(pol.Ref), pol.Upper, of.ID(), behind(of.Ref)))
			}
		}
	}
	return out
}

// counter is the name of the counter of a limit that counts this request.
func (l *life) counter(pol *model.QuotaPolicy, index int) string {
	name := pol.Namespace + "/" + pol.Name + "/" + strconv.Itoa(index)
	for i, d := range pol.Limits[index].Per {
		separator := "&"
		if i == 0 {
			separator = "?"
		}
		name += separator + counterText(d.Text) + "=" + counterText(l.dimension(d))
	}
	return name
}

// counterText writes a text as it stands in the name of a counter.
func counterText(s string) string {
	return strings.NewReplacer("%", "%25", "&", "%26", "=", "%3d").Replace(s)
}

// noDimension is the value of a dimension that the request does not have.
const noDimension = "-"

// dimension is the value by which a limit tells requests apart.
func (l *life) dimension(d model.Dimension) string {
	value := ""
	switch d.Kind {
	case "constant":
		value = d.Arg
	case "source.principal":
		value = l.r.Principal
	case "source.namespace":
		td, rest, _ := strings.Cut(l.r.Principal, "/ns/")
		if ns, _, ok := strings.Cut(rest, "/"); ok && (len(l.m.FederatedDomains) == 0 || slices.Contains(l.domains().Own, td)) {
			value = ns
		}
	case "source.ip":
		value = l.clientAddress()
	case "request.method":
		value = l.r.Method
	case "request.path":
		if value = l.r.Path; d.Template() != "" {
			value, _ = eval.TemplateValue(d.Template(), l.r.Path)
		}
	case "request.headers":
		value = strings.Join(l.r.Header(d.Arg), ",")
	case "request.auth.claims":
		value = eval.ClaimText(eval.Claim(l.r.Claims, d.Arg))
	case "destination.service":
		value = l.calledService()
	}
	if value == "" || !utf8.ValidString(value) {
		return noDimension
	}
	return value
}

// clientAddress is the other end of the connection; at a gateway the client as
// X-Forwarded-For tells it.
func (l *life) clientAddress() string {
	address := l.r.Source
	if l.to.proxy.Type == model.GatewayProxy {
		address = l.r.Remote
	}
	if !address.IsValid() {
		return ""
	}
	return address.String()
}

// calledService is the name of the service that the port is of; a gateway's is the host.
func (l *life) calledService() string {
	for _, s := range l.m.Services {
		for _, e := range s.Endpoints {
			if e.Proxy != l.to.proxy {
				continue
			}
			for _, target := range e.Ports {
				if target == l.to.port.Port {
					return s.Hostname
				}
			}
		}
	}
	return l.r.Host
}

// quota names the limits that count the request; what is left of them only ratelimit
// knows.
func (l *life) quota() error {
	for _, limit := range l.limits() {
		s := Step{Name: "QuotaPolicy", Result: notDecided, Runs: inRateLimit, By: fmt.Sprintf("%s limit %d", limit.Policy, limit.Limit), At: limit.At}
		switch {
		case !limit.Counts:
			s.Result, s.Runs, s.Detail = noPolicy, l.envoy(), "does not count the request: "+limit.Why
		case limit.Observe:
			s.Detail = "counts the request and refuses nothing"
		default:
			s.Detail = "counts the request; refuses with 429 when it is used up"
		}
		if limit.Mode == configpb.QuotaAssigned && limit.Counts && !limit.Observe {
			s.Runs = l.envoy()
		}
		l.pass(s)
	}
	return nil
}
