package authz

import (
	"net/url"
	"strings"
	"sync"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus"
)

// maxObservedSeries bounds what is told of would-be refusals, since callers choose
// paths; what is beyond counts with the rule and "other".
const maxObservedSeries = 1000

// observedCounts counts would-be refusals by rule, caller and route.
type observedCounts struct {
	vec *prometheus.CounterVec

	mu    sync.Mutex
	known map[[3]string]bool
	rules map[string]bool
}

func newObservedCounts() *observedCounts {
	return &observedCounts{known: map[[3]string]bool{}, rules: map[string]bool{}, vec: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "writ_authz_would_refuse_total", Help: "Requests that a rule which only observes would have refused, by rule, caller and route (workload, method and the first part of the path).",
	}, []string{"rule", "caller", "route"})}
}

// wouldRefuse counts a request for each rule that would have refused it.
func (m *metrics) wouldRefuse(rules []string, from, to, method, path string) {
	if len(rules) == 0 {
		return
	}
	caller := from
	if caller == "" {
		caller = "unknown"
	}
	for _, rule := range rules {
		m.would.add([3]string{rule, caller, route(to, method, path)})
	}
}

// observed counts what only observes.
func (s *server) observed(req *authv3.CheckRequest, v *verdict) {
	if len(v.observed) == 0 {
		return
	}
	rules := make([]string, len(v.observed))
	for i, o := range v.observed {
		rules[i] = regoKind + o.policy
	}
	a := req.GetAttributes()
	path, _ := s.record.redact.Path(a.GetRequest().GetHttp().GetPath())
	s.metrics.wouldRefuse(rules, a.GetSource().GetPrincipal(), a.GetDestination().GetPrincipal(), a.GetRequest().GetHttp().GetMethod(), path)
}

func (c *observedCounts) add(labels [3]string) {
	c.mu.Lock()
	if !c.known[labels] {
		switch {
		case len(c.known) < maxObservedSeries:
			c.known[labels] = true
		case c.rules[labels[0]] || len(c.rules) < maxObservedSeries:
			labels[1], labels[2] = "other", "other"
		default:
			labels = [3]string{"other", "other", "other"}
		}
		c.rules[labels[0]] = true
	}
	c.mu.Unlock()
	for i := range labels {
		labels[i] = valid(labels[i])
	}
	c.vec.WithLabelValues(labels[:]...).Inc()
}

// maxRoute bounds a route, in bytes.
const maxRoute = 128

// route is what a request was for, roughly: "reviews GET /reviews/*".
func route(to, method, path string) string {
	if i := strings.LastIndexByte(to, '/'); i >= 0 {
		to = to[i+1:]
	}
	if method == "" {
		return to + " TCP"
	}
	first, rest, more := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if plain, err := url.PathUnescape(first); err != nil || len(plain) > maxRoute {
		first = "..."
	}
	if more && rest != "" {
		first += "/*"
	}
	return to + " " + method + " /" + first
}
