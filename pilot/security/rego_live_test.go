package security

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcmetadata "google.golang.org/grpc/metadata"

	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/pilot/model"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

var regoLiveRequests = flag.Int("rego-live-requests", 100, "how many requests TestRegoDifferentialLive compares with each Envoy; the long run has 5000")

// regoAuthz decides checks by OPA, as authz does.
type regoAuthz struct {
	authv3.UnimplementedAuthorizationServer
	// programs are by what routes name.
	programs map[string]*rego.Program
	// observed are the policies that refuse nothing.
	observed map[string]bool
	asked    atomic.Int64
}

func (a *regoAuthz) Check(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	a.asked.Add(1)
	var token *rego.Token
	if payload := r.GetAttributes().GetMetadataContext().GetFilterMetadata()[jwtMetadata].GetFields()[jwtPayload].GetStructValue(); payload != nil {
		token = &rego.Token{Issuer: payload.GetFields()["iss"].GetStringValue(), Payload: payload}
	}
	names := r.GetAttributes().GetContextExtensions()[PoliciesKey]
	if r.GetAttributes().GetRequest().GetHttp() == nil {
		names = strings.Join(grpcmetadata.ValueFromIncomingContext(ctx, configpb.PoliciesMetadata), ",")
	}
	for ref := range strings.SplitSeq(names, ",") {
		if a.observed[ref] {
			continue
		}
		in, err := rego.NewInput(r, rego.InputOptions{Token: token})
		malformed := err != nil
		if !malformed {
			if d, err := a.programs[ref].Eval(ctx, in, 0); err == nil && d.Allowed {
				continue
			}
		}
		return &authv3.CheckResponse{
			Status:       &rpcstatus.Status{Code: int32(codes.PermissionDenied)},
			HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: refusedByRego(r, configpb.PolicyName(ref), malformed)},
		}, nil
	}
	return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: int32(codes.OK)}}, nil
}

// serve answers on a socket until the test ends or stop is called.
func (a *regoAuthz) serve(t testing.TB) (address string, stop func()) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	authv3.RegisterAuthorizationServer(s, a)
	done := make(chan struct{})
	go func() { _ = s.Serve(l); close(done) }()
	stop = func() { s.Stop(); <-done }
	t.Cleanup(stop)
	return "unix://" + l.Addr().String(), stop
}

func (a *regoAuthz) add(t testing.TB, p *model.RegoPolicy) {
	t.Helper()
	program, err := rego.Compile(t.Context(), rego.Source{Modules: map[string]string{p.Name: p.Module}}, p.Query, rego.Options{})
	if err != nil {
		t.Fatal(err)
	}
	a.programs[refOf(p)] = program
}

// TestRegoInEnvoyLive: what Envoys decide by themselves they decide as before when
// authz is gone, and authz is asked about the rest only.
func TestRegoInEnvoyLive(t *testing.T) {
	t.Parallel()
	const whole = `package p
import input.attributes.request.http as http
default allow := false
allow if { http.method == "GET"; not bad }
allow if { endswith(input.attributes.source.principal, "/sa/sleep"); "g1" in input.jwt.claims.groups }
bad if input.parsed_path[0] == "admin"
bad if regex.match("^x", http.headers["x-a"])`
	const split = `package p
import input.attributes.request.http as http
default allow := false
allow if http.path == "/health"
allow if { startswith(http.path, "/clock"); time.now_ns() > 0 }
allow if { startswith(http.path, "/never"); time.now_ns() < 0 }`
	s := newSigner(t)
	groups := bearer(s.token(t, map[string]any{"groups": []string{"g1"}}))
	eachEnvoy(t, func(t *testing.T, bin string) {
		authz := &regoAuthz{programs: map[string]*rego.Program{}}
		address, stop := authz.serve(t)
		build := func(policies ...*model.RegoPolicy) inbound {
			m := newMesh(t, s.document("jwt", testIssuer, ""))
			m.Deciders.Authz, m.RegoPolicies = address, policies
			for _, p := range policies {
				authz.add(t, p)
			}
			return inbound{http: compileHTTP(t, m, workload()), direct: true, mtls: true}
		}
		p := start(t, bin, map[string]inbound{
			"whole": build(regoOf("w", whole)), "split": build(regoOf("s", split)), "both": build(regoOf("w", whole), regoOf("s", split)),
		})
		type step struct {
			at       string
			r        request
			status   int
			deniedBy string
			asks     bool
		}
		steps := []step{
			{"whole", request{}, 200, "", false},
			{"whole", request{method: "POST"}, 403, "RegoPolicy default/w", false},
			{"whole", request{method: "POST", identity: sleep, header: groups}, 200, "", false},
			{"whole", request{method: "POST", header: groups}, 403, "RegoPolicy default/w", false},
			{"whole", request{path: "/%61dmin/x"}, 403, "RegoPolicy default/w", false},
			{"whole", request{path: "/a?b;c"}, 400, "RegoPolicy default/w", false},
			{"whole", request{header: map[string]string{"x-a": "xy"}}, 403, "RegoPolicy default/w", false},
			{"split", request{path: "/health"}, 200, "", false},
			{"split", request{path: "/other"}, 403, "RegoPolicy default/s", false},
			{"split", request{path: "/clock"}, 200, "", true},
			{"split", request{path: "/never"}, 403, "RegoPolicy default/s", true},
			{"both", request{path: "/health"}, 200, "", false},
			{"both", request{path: "/health", method: "PUT"}, 403, "RegoPolicy default/w", false},
			{"both", request{path: "/other", method: "PUT"}, 403, "RegoPolicy default/w", false},
			{"both", request{path: "/never"}, 403, "RegoPolicy default/s", true},
		}
		for _, c := range steps {
			before := authz.asked.Load()
			got := p.do(c.at, c.r)
			if asked := authz.asked.Load() > before; got.status != c.status || got.deniedBy != c.deniedBy || asked != c.asks {
				t.Errorf("%s %+v: %d %q, asked %v, want %d %q, %v", c.at, c.r, got.status, got.deniedBy, asked, c.status, c.deniedBy, c.asks)
			}
		}
		stop()
		for _, c := range steps {
			if c.asks {
				c.status, c.deniedBy = 403, map[string]string{"split": "RegoPolicy default/s", "both": "RegoPolicy default/w,default/s"}[c.at]+" (authz does not answer)"
			}
			if got := p.do(c.at, c.r); got.status != c.status || got.deniedBy != c.deniedBy {
				t.Errorf("without authz: %s %+v: %d %q, want %d %q", c.at, c.r, got.status, got.deniedBy, c.status, c.deniedBy)
			}
		}
	})
}

// TestRegoDifferentialLive sends random requests twice: to an Envoy that decides
// what it can by itself, and to one that asks about everything.
func TestRegoDifferentialLive(t *testing.T) {
	t.Parallel()
	const each = 10
	s := newSigner(t)
	eachEnvoy(t, func(t *testing.T, bin string) {
		t.Parallel() // one request after the other: most of it is waiting for answers
		seed := *regoSeed
		if seed == 0 {
			seed = rand.Uint64()
		}
		t.Logf("repeat with -rego-seed %d", seed)
		g := regoGenerator{Rand: rand.New(rand.NewPCG(seed, 1))} //nolint:gosec // repeatable, not secret
		authz := &regoAuthz{programs: map[string]*rego.Program{}}
		address, _ := authz.serve(t)
		m := newMesh(t, s.document("jwt", testIssuer, ""))
		m.Deciders.Authz = address
		base := compileHTTP(t, m, workload())
		compiled := inbound{http: base, vhosts: map[string]*HTTP{}, direct: true, mtls: true}
		remote := compiled
		remote.vhosts = map[string]*HTTP{}
		var policies []*model.RegoPolicy
		for len(policies) < *regoLiveRequests/each {
			host := fmt.Sprintf("set%d.test", len(policies))
			module := strings.ReplaceAll(g.module(), "set.test", host)
			if _, err := rego.Compile(t.Context(), rego.Source{Modules: map[string]string{"m": module}}, "data.p.allow", rego.Options{}); err != nil {
				continue
			}
			p := regoOf(fmt.Sprintf("p%d", len(policies)), module)
			policies = append(policies, p)
			authz.add(t, p)
			m.RegoPolicies = []*model.RegoPolicy{p}
			compiled.vhosts[host] = compileHTTP(t, m, workload())
			unsplit := *p
			unsplit.Form = nil
			m.RegoPolicies = []*model.RegoPolicy{&unsplit}
			remote.vhosts[host] = compileHTTP(t, m, workload())
		}
		p := start(t, bin, map[string]inbound{"compiled": compiled, "remote": remote})
		counts := map[string]int{}
		for i, policy := range policies {
			for range each {
				r := g.request()
				for !r.sendable() {
					r = g.request()
				}
				r.host = strings.ReplaceAll(r.host, "set.test", fmt.Sprintf("set%d.test", i))
				want := p.sendRego("remote", s, r)
				before := authz.asked.Load()
				got := p.sendRego("compiled", s, r)
				if got != want {
					t.Fatalf("Envoy %d, OPA %d: %+q\nclaims %v\n%s", got, want, r, r.claims, policy.Module)
				}
				counts[fmt.Sprintf("%d, asked %v", got, authz.asked.Load() > before)]++
			}
		}
		t.Logf("%v", counts)
		if len(policies) < 100 {
			return // too few to say
		}
		if counts["200, asked false"] == 0 || counts["403, asked false"] == 0 || counts["200, asked true"]+counts["403, asked true"] == 0 {
			t.Errorf("the requests are too much alike to test anything: %v", counts)
		}
	})
}

// sendRego sends the request as it is and gives the status.
func (p *proxy) sendRego(listener string, s signer, r regoRequest) int {
	p.t.Helper()
	scheme, address, from := "http", p.address(listener, r.principal != ""), request{from: r.source}
	if r.principal != "" {
		scheme, from.identity = "https", r.principal
	}
	req := (&http.Request{Method: r.method, URL: &url.URL{Scheme: scheme, Host: address, Opaque: r.path}, Host: r.host, Header: http.Header{}}).WithContext(p.t.Context())
	for name, values := range r.headers {
		req.Header[http.CanonicalHeaderKey(name)] = values
	}
	if r.claims != nil {
		req.Header.Set("Authorization", "Bearer "+s.token(p.t, r.claims))
	}
	resp, err := p.client(from).Do(req)
	if err != nil {
		p.t.Fatalf("%+q: %v", r, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		p.t.Fatal(err)
	}
	return resp.StatusCode
}
