package security

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// layeredPolicy is random, with a part of what policies may say.
func layeredPolicy(g *rand.Rand, name string) *model.QuotaPolicy {
	pick := func(from ...string) []string {
		if g.IntN(2) == 0 {
			return nil
		}
		return []string{from[g.IntN(len(from))], from[g.IntN(len(from))]}
	}
	ways := []string{model.QuotaInherit, model.QuotaOverride, model.QuotaExempt}
	p := quotaPolicy(name, g.IntN(3) == 0, per())
	p.Namespace = []string{"istio-system", "default"}[g.IntN(2)]
	p.Upper, p.Observe = ways[g.IntN(3)], g.IntN(8) == 0
	if p.Namespace == "istio-system" {
		p.Lower = ways[g.IntN(3)]
	}
	for range g.IntN(3) {
		m := model.QuotaMatch{
			Principals: pick("cluster.local/ns/foo/sa/curl", "*/sa/sleep", "cluster.local/*", "*"), Namespaces: pick("foo", "default", "fo"),
			Hosts: pick("*.TEST", "m*", "none"), Methods: pick("GET", "POST"), Paths: pick("/a", "/a/*", "*.html", "/{*}/b", "/a/{**}", "/it's 50%)%"),
		}
		if m.Callers() || len(m.Hosts)+len(m.Methods)+len(m.Paths) > 0 {
			p.Match = append(p.Match, m)
		}
	}
	if g.IntN(2) == 0 {
		p.Limits = append(p.Limits, per(dim("request.method")))
	}
	if g.IntN(4) == 0 {
		p.Limits[0].Algorithm = configpb.QuotaConcurrency
	}
	return p
}

// TestQuotaLayersLive: a real Envoy asks for the limits that count a request by the
// evaluator, in random sets of policies, and for no others.
func TestQuotaLayersLive(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano()) //nolint:gosec // any number
	t.Logf("seed %d", seed)
	const meshes = 30
	eachEnvoy(t, func(t *testing.T, bin string) {
		g := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test
		server := &decider{}
		address := server.serve(t)
		all := map[string][]*model.QuotaPolicy{}
		build := func(policies ...*model.QuotaPolicy) *HTTP {
			m := newMesh(t, "")
			m.Deciders.RateLimit, m.QuotaPolicies = address, policies
			return compileHTTP(t, m, workload())
		}
		in := inbound{http: build(), vhosts: map[string]*HTTP{}, mtls: true}
		for i := range meshes {
			host := fmt.Sprintf("m%d.test", i)
			for j := range 1 + g.IntN(5) {
				all[host] = append(all[host], layeredPolicy(g, "q"+strconv.Itoa(j)))
			}
			in.vhosts[host] = build(all[host]...)
		}
		p := start(t, bin, map[string]inbound{"in": patient(t, in)})
		for host, policies := range all {
			m := newMesh(t, "")
			m.QuotaPolicies = policies
			chosen := eval.Select(m, workload()).Quota
			for range 4 {
				r := request{
					host: host, identity: []string{"", sleep, curlFoo}[g.IntN(3)],
					method: []string{"GET", "POST", "PUT"}[g.IntN(3)], path: []string{"/", "/a", "/a/", "/a/b?x=/a", "/b.html"}[g.IntN(5)],
				}
				asked := &eval.Request{Method: r.method, Host: host, Principal: strings.TrimPrefix(r.identity, "spiffe://")}
				asked.Path, _, _ = strings.Cut(r.path, "?")
				var want []string
				for _, l := range eval.Layers(m.RootNamespace, chosen) {
					if ok, _ := l.Counts(func(pol *model.QuotaPolicy) bool {
						return eval.Speaks(eval.Domains{Own: []string{"cluster.local"}}, pol, asked)
					}); ok {
						want = append(want, fmt.Sprintf("%s/%s/%d", l.Policy.Namespace, l.Policy.Name, l.Index))
					}
				}
				slices.Sort(want)
				if got := server.limitsAsked(func() { p.do("in", r) }); !slices.Equal(got, want) {
					t.Errorf("%+v of\n%s\nasked for %q, want %q", r, describeLayers(chosen), got, want)
				}
			}
		}
	})
}

func describeLayers(policies []*model.QuotaPolicy) string {
	var out []string
	for _, p := range policies {
		out = append(out, fmt.Sprintf("%s match %+v upper %q lower %q observe %v, %d limits", p.ID(), p.Match, p.Upper, p.Lower, p.Observe, len(p.Limits)))
	}
	return strings.Join(out, "\n")
}

// limitsAsked gives the limits that ratelimit is asked for before a request.
func (d *decider) limitsAsked(do func()) []string {
	d.mu.Lock()
	d.limits = nil
	d.mu.Unlock()
	do()
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for _, r := range d.limits {
	next:
		for _, desc := range r.GetDescriptors() {
			name := ""
			for _, e := range desc.GetEntries() {
				switch e.GetKey() {
				case configpb.QuotaDoneKey:
					continue next
				case configpb.QuotaPolicyKey:
					name = e.GetValue()
				case configpb.QuotaLimitKey:
					name += "/" + e.GetValue()
				}
			}
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// TestQuotaMatchLive: what a match compares by regular expressions, up to the greatest
// that may be written: a host however it is spelled, and templates of paths.
func TestQuotaMatchLive(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("sk", 19) + ".k"
	const middle = "kkkkkkkk.kkkkkkk" // with what follows 80 as meshdir counts
	const template = "/{*}/" + middle + "/{*}/{**}"
	if len(long) != 40 {
		t.Fatalf("%d characters", len(long))
	}
	hosts := []string{long, "*.shop.example", "pre*", "*"}
	eachEnvoy(t, func(t *testing.T, bin string) {
		server := &decider{}
		m := newMesh(t, "")
		m.Deciders.RateLimit = server.serve(t)
		for i, h := range hosts {
			pol := quotaPolicy("h"+strconv.Itoa(i), false, per())
			pol.Match = []model.QuotaMatch{{Hosts: []string{h}}}
			m.QuotaPolicies = append(m.QuotaPolicies, pol)
		}
		pol := quotaPolicy("path", false, per())
		pol.Match = []model.QuotaMatch{{Paths: []string{template}}}
		m.QuotaPolicies = append(m.QuotaPolicies, pol)
		p := start(t, bin, map[string]inbound{"in": patient(t, inbound{http: compileHTTP(t, m, workload())})})
		for _, c := range []struct{ host, path, want string }{
			{long, "/", "h0 h3"},
			{strings.ToUpper(long) + ".:8080", "/", "h0 h3"},
			{long + "x", "/", "h3"},
			{"A.Shop.example", "/", "h1 h3"},
			{"a.shop.example.:1", "/", "h1 h3"},
			{"a.shop.example.com", "/", "h3"},
			{"PREfix", "/", "h2 h3"},
			{"httpbin", "/x/" + middle + "/y/", "h3 path"},
			{"httpbin", "/x/y/" + middle + "/z/", "h3"},
		} {
			got := server.limitsAsked(func() { p.do("in", request{host: c.host, path: c.path}) })
			var want []string
			for _, name := range strings.Fields(c.want) {
				want = append(want, "default/"+name+"/0")
			}
			if !slices.Equal(got, want) {
				t.Errorf("host %s path %s: asked for %q, want %q", c.host, c.path, got, want)
			}
		}
	})
}
