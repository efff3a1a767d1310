package authz

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/internal/config"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// lookups gives how often the cache gave which result.
func (m *mesh) lookups(t testing.TB, result string) int {
	t.Helper()
	return int(sample(t, m.reg, "writ_authz_cache_lookups_total", result))
}

// What a policy reads makes a request another one; what it does not, does not.
func TestCacheKey(t *testing.T) {
	for name, c := range map[string]struct {
		policy string
		change func(*authv3.AttributeContext)
		hit    bool
	}{
		"the same":       {`allow if input.parsed_path[0] == "ratings"`, func(*authv3.AttributeContext) {}, true},
		"another path":   {`allow if input.parsed_path[0] == "ratings"`, func(a *authv3.AttributeContext) { a.Request.Http.Path = "/ratings/8" }, false},
		"another query":  {`allow if input.parsed_path[0] == "ratings"`, func(a *authv3.AttributeContext) { a.Request.Http.Path = "/ratings/7?x=y" }, true},
		"a request id":   {`allow if input.attributes.request.http.headers["x-role"] == "reader"`, withHeader("x-request-id", "1"), true},
		"another role":   {`allow if input.attributes.request.http.headers["x-role"] == "reader"`, withHeader("x-role", "writer"), false},
		"any header":     {`allow if input.attributes.request.http.headers[_] == "reader"`, withHeader("x-request-id", "1"), false},
		"another caller": {`allow if input.attributes.source.principal != ""`, func(a *authv3.AttributeContext) { a.Source.Principal = "spiffe://x/ns/a/sa/b" }, false},
		"undefined":      {`allow if input.parsed_path[0] == "none"`, withHeader("x-request-id", "1"), true},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMesh(t)
			m.apply(t, regoPolicy("default/a", c.policy))
			first, second := m.check(t, "default/a"), m.check(t, "default/a", c.change)
			if hits := m.lookups(t, "hit"); hits != map[bool]int{true: 1}[c.hit] {
				t.Errorf("%d hits", hits)
			}
			if c.hit {
				for _, r := range []*authv3.CheckResponse{first, second} {
					delete(r.GetDynamicMetadata().GetFields(), metadataID)
					if d := r.GetDeniedResponse(); d != nil {
						d.Body = "" // has the id
					}
				}
				if !proto.Equal(first, second) {
					t.Errorf("the answer of the cache is another one:\n%v\n%v", first, second)
				}
			}
		})
	}
}

// What is malformed is refused though the same decision is kept for a request that is
// well formed.
func TestCacheRefusesMalformed(t *testing.T) {
	m := newMesh(t)
	m.apply(t, regoPolicy("default/a", `allow if input.attributes.request.http.method == "GET"`))
	for _, change := range []func(*authv3.AttributeContext){
		func(a *authv3.AttributeContext) { a.Request.Http.Path = "/%zz" },
		func(a *authv3.AttributeContext) { a.Request.Http.Path = "/?a=%zz" },
		func(a *authv3.AttributeContext) {
			a.Request.Http.Headers["content-type"], a.Request.Http.Body = "application/json", "{"
		},
	} {
		if !allowed(m.check(t, "default/a")) {
			t.Fatal("a good request is refused")
		}
		if r := m.check(t, "default/a", change); allowed(r) || r.GetDeniedResponse().GetStatus().GetCode() != 400 {
			t.Errorf("%v", r)
		}
	}
}

// A policy that asks the clock or a die is asked each time.
func TestCacheBypass(t *testing.T) {
	m := newMesh(t)
	m.apply(t, regoPolicy("default/a", `allow := {"allowed": true, "headers": {"x": format_int(time.now_ns(), 10)}}`))
	seen := map[string]bool{}
	for range 3 {
		seen[m.check(t, "default/a").GetOkResponse().GetHeaders()[0].GetHeader().GetValue()] = true
	}
	if len(seen) != 3 || m.lookups(t, "impure") != 3 {
		t.Errorf("%d answers, %d of them past the cache", len(seen), m.lookups(t, "impure"))
	}
	off := newMesh(t, func(c *Config) { c.Decision.Cache.Entries = 0 })
	off.apply(t, regoPolicy("default/a", `allow := true`))
	off.check(t, "default/a")
	if off.lookups(t, "off") != 1 || series(t, off.reg, "writ_authz_cache_entries") != 0 {
		t.Error("a cache that is off was asked")
	}
}

// TestCacheNeverStale changes a policy, and another one the token issuers, while many
// ask: after a change nobody is answered by what was before, whether it was kept or
// on its way.
func TestCacheNeverStale(t *testing.T) {
	m := newMesh(t)
	policy := func(n int) *configpb.RegoPolicy {
		return regoPolicy("default/a", fmt.Sprintf(`allow := {"allowed": %v, "headers": {"x-n": "%d"}} if input.attributes.request.http.method == "GET"`, n%2 == 0, n))
	}
	m.apply(t, policy(0))
	const swaps = 60
	var inForce, begun atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var checks atomic.Int64
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				least := inForce.Load()
				r, _ := m.Check(t.Context(), checkRequest("default/a"))
				most := begun.Load()
				n, err := strconv.ParseInt(append(r.GetOkResponse().GetHeaders(), r.GetDeniedResponse().GetHeaders()...)[0].GetHeader().GetValue(), 10, 64)
				if err != nil || n < least || n > most || allowed(r) != (n%2 == 0) {
					t.Errorf("decided by %d (%v), allowed %v, when between %d and %d was in force", n, err, allowed(r), least, most)
					return
				}
				checks.Add(1)
			}
		})
	}
	for n := 1; n <= swaps; n++ {
		for before := checks.Load(); checks.Load() < before+8 && !t.Failed(); { // so that each is asked, and kept
			m.check(t, "default/a")
		}
		begun.Store(int64(n))
		m.apply(t, policy(n))
		inForce.Store(int64(n))
	}
	stop()
	wg.Wait()
	if m.lookups(t, "hit") == 0 {
		t.Error("the cache was never used")
	}
}

// The data of a policy counts as the policy does.
func TestCacheFollowsData(t *testing.T) {
	m := newMesh(t)
	dir := t.TempDir()
	policy := regoPolicy("default/a", "")
	policy.Module = ""
	for n, want := range []bool{true, false, true} {
		writeFile(t, dir+"/p.rego", "package p\nallow if data.roles[input.attributes.request.http.headers[\"x-role\"]]")
		writeFile(t, dir+"/data.json", fmt.Sprintf(`{"roles": {"reader": %v}}`, want))
		policy.Bundle = &configpb.Bundle{Url: "file://" + dir}
		m.apply(t, policy)
		for range 2 {
			if got := allowed(m.check(t, "default/a")); got != want {
				t.Errorf("data %d: allowed %v, want %v", n, got, want)
			}
		}
	}
	if m.lookups(t, "hit") != 4 { // the last data are those of the first
		t.Errorf("%d hits, want 4", m.lookups(t, "hit"))
	}
}

// While a bundle is edited at random, each answer is that of the same bundle in a service
// that has kept nothing; what an edit does not concern is kept.
func TestCacheAcrossEdits(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test's
	m := newMesh(t)
	dir := t.TempDir()
	policy := regoPolicy("default/a", "")
	policy.Module, policy.Bundle = "", &configpb.Bundle{Url: "file://" + dir}
	pick := func(all ...string) string { return all[r.IntN(len(all))] }
	team := func() string { return fmt.Sprint("t", r.IntN(4)) }
	edits := []func(){
		func() {
			writeFile(t, dir+"/main.rego", "package p\nimport input.attributes.request.http as req\ndefault allow := "+pick("false", "true")+
				"\nallow := x if { x := data.teams[req.headers[\"x-team\"]].allow }\nallow if data.lib.known(req.headers[\"x-role\"])\n")
		},
		func() { writeFile(t, dir+"/lib.rego", "package lib\nknown(role) if role in data.roles\n") },
		func() {
			writeFile(t, dir+"/lib.rego", "package lib\nknown(role) if { some x in data.roles; x == role; x != "+pick(`"reader"`, `"writer"`)+" }\n")
		},
		func() {
			writeFile(t, dir+"/"+team()+".rego", "package teams."+team()+"\n"+pick("allow if input.parsed_path[0] == \"ratings\"\n", "allow := true\n", "other := 1\n", "allow := false if data.lib.known(\"reader\")\n"))
		},
		func() { _ = os.Remove(dir + "/" + team() + ".rego") },
		func() {
			writeFile(t, dir+"/data.json", pick(`{"roles": ["reader"]}`, `{"roles": ["writer"]}`, `{"roles": ["reader", "writer"], "unread": 1}`, `{"unread": 2}`, `{"roles": ["reader"], "teams": {"t9": {"allow": true}}}`))
		},
		func() {
			writeFile(t, dir+"/unread.rego", fmt.Sprintf("package unread\np := {x | some x in [%d, 2]}\n", r.IntN(100)))
		},
		func() {
			name := dir + "/" + pick("main", "lib", team()) + ".rego"
			if text, err := os.ReadFile(name); err == nil {
				writeFile(t, name, string(text)+"# a comment\n")
			}
		},
	}
	edits[0]()
	edits[1]()
	allow, refuse := 0, 0
	for range 150 {
		edits[r.IntN(len(edits))]()
		fresh, err := rego.Compile(t.Context(), rego.Source{Bundles: []string{dir}}, "data.p.allow", rego.Options{})
		if err != nil {
			continue
		}
		m.apply(t, policy)
		for range 8 {
			change := []func(*authv3.AttributeContext){withHeader("x-team", pick("t0", "t1", "t2", "t3", "t9")), withHeader("x-role", pick("reader", "writer", "none"))}
			in, err := rego.NewInput(checkRequest("default/a", change...), rego.InputOptions{})
			if err != nil {
				t.Fatal(err)
			}
			d, err := fresh.Eval(t.Context(), in, time.Minute)
			want := err == nil && d.Allowed
			if got := allowed(m.check(t, "default/a", change...)); got != want {
				t.Fatalf("allowed %v, want %v", got, want)
			}
			if want {
				allow++
			} else {
				refuse++
			}
		}
	}
	if hits, misses := m.lookups(t, "hit"), m.lookups(t, "miss"); hits < 300 || misses < 150 || allow < 100 || refuse < 100 {
		t.Errorf("%d hits, %d misses, %d allowed, %d refused", hits, misses, allow, refuse)
	}
}

// A decision about a token is not kept longer than the token is good.
func TestCacheTokenExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		keys := newIssuerKeys(t)
		if err := m.policies.applyIssuers(t.Context(), map[string]*configpb.TokenIssuer{"default/r/0": {Issuer: "i", Jwks: keys.jwks}}); err != nil {
			t.Fatal(err)
		}
		m.apply(t, regoPolicy("default/a", `allow if input.jwt.claims.sub == "john"`))
		bearer := func(life time.Duration) func(*authv3.AttributeContext) {
			return withHeader("authorization", "Bearer "+keys.token(t, jwt.MapClaims{"iss": "i", "sub": "john", "exp": time.Now().Add(life).Unix()}))
		}
		short, long := bearer(10*time.Second), bearer(time.Hour)
		for _, step := range []struct {
			after        time.Duration
			token        func(*authv3.AttributeContext)
			allow        bool
			hits, misses int
		}{
			{0, short, true, 0, 1},
			{time.Second, long, true, 1, 1},
			{68 * time.Second, short, true, 2, 1},        // within the leeway of a minute
			{2 * time.Second, short, false, 2, 2},        // refused: input.jwt is not there
			{0, long, true, 2, 3},                        // what the short one made is gone
			{time.Minute, long, true, 3, 3},              // and what the long one made is not
			{time.Hour + time.Minute, long, false, 4, 3}, // as refused as the short one
		} {
			time.Sleep(step.after) // time of the bubble
			got := allowed(m.check(t, "default/a", step.token))
			if hits, misses := m.lookups(t, "hit"), m.lookups(t, "miss"); got != step.allow || hits != step.hits || misses != step.misses {
				t.Errorf("after %s: allowed %v, %d hits, %d misses; want %+v", step.after, got, hits, misses, step)
			}
		}
	})
}

// One who asks does not change what others are answered.
func TestCacheIsShared(t *testing.T) {
	m := newMesh(t)
	m.apply(t, regoPolicy("default/a", `allow := {"allowed": true, "headers": {"a": "b"}, "dynamic_metadata": {"k": {"l": 1}}, "request_headers_to_remove": ["c"]}`))
	var wg sync.WaitGroup
	ids := make([]string, 8)
	for i := range ids {
		wg.Go(func() {
			for range 20 {
				r := m.check(t, "default/a")
				fields := r.GetDynamicMetadata().GetFields()
				ids[i] = fields[metadataID].GetStringValue()
				if fields["k"].GetStructValue().GetFields()["l"].GetNumberValue() != 1 || len(r.GetOkResponse().GetHeaders()) != 1 {
					t.Errorf("%v", r)
				}
				fields["k2"] = fields["k"]
				r.GetOkResponse().Headers = append(r.GetOkResponse().GetHeaders(), r.GetOkResponse().GetHeaders()[0])
				if _, err := proto.Marshal(r); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if ids[0] == "" || ids[0] == ids[1] {
		t.Errorf("ids %q", ids)
	}
}

// A policy that does not end, or takes all memory, is refused; what is beside it goes
// on, and a failure is not kept.
func TestRunawayPolicies(t *testing.T) {
	m := newMesh(t, func(c *Config) {
		c.Decision.EvaluationMemory = 16 << 20
	})
	for name, c := range map[string]struct{ rule, reason string }{
		"loop":   {`default allow := true` + "\n" + `allow := false if { some a in numbers.range(1, 3000); some b in numbers.range(1, 3000); some c in numbers.range(1, 3000); a * b * c < 0 }`, "time"},
		"digits": {`default allow := true` + "\n" + `allow := false if bits.lsh(1, 100000000000) > 0`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			m.apply(t, regoPolicy("default/bad", c.rule), regoPolicy("default/good", `allow := true`))
			before := m.lookups(t, "miss")
			usual := m.decision.Timeout
			m.decision.Timeout = config.Duration(100 * time.Millisecond)
			for range 2 {
				r := m.check(t, "default/bad")
				if allowed(r) || !strings.HasPrefix(deniedBy(r), "RegoPolicy default/bad") {
					t.Errorf("%v", r)
				}
			}
			if got := m.lookups(t, "miss") - before; got != 2 {
				t.Errorf("%d misses, want 2: a failure is not kept", got)
			}
			m.decision.Timeout = usual
			if !allowed(m.check(t, "default/good")) {
				t.Error("a policy beside it is refused")
			}
			if c.reason != "" && sample(t, m.reg, "writ_authz_evaluations_stopped_total", c.reason) != 2 {
				t.Error("it was not counted as stopped")
			}
		})
	}
}
