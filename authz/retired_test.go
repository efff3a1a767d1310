package authz

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc/metadata"

	"github.com/writ-mesh/writ/authz/decisionlog"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// content is a RegoPolicy as pilot sends it, with its fingerprint.
func content(name, fingerprint, body string) *configpb.RegoPolicy {
	p := regoPolicy(name, body)
	p.Fingerprint = fingerprint
	return p
}

const yes, no = "allow := true", "allow := false"

// TestContentsAreNamed: a check is decided by the content that it names, in force or
// replaced, and what is not known by exactly that name is refused, whoever made it up.
func TestContentsAreNamed(t *testing.T) {
	m := newMesh(t)
	m.apply(t, content("default/a", "one", no), content("default/b", "one", yes))
	// The edit relaxes the one and has the other forbid instead.
	m.apply(t, content("default/a", "two", yes), content("default/b", "two", no))
	for _, c := range []struct {
		policies string
		allow    bool
		reason   string
	}{
		{"default/a@one", false, ""},
		{"default/b@one", true, ""},
		{"default/a@two", true, ""},
		{"default/b@two", false, ""},
		{"default/a@one,default/b@one", false, ""},
		{"default/a@two,default/b@two", false, ""},
		{" default/b@one , default/a@two ", true, ""}, // no proxy's routes are such, and the caller asks about itself
		{"default/a", false, "not known"},
		{"default/b", false, "not known"},
		{"default/a@", false, "not known"},
		{"default/a@three", false, `content "@three" of the policy is not known`},
		{"default/a@two@two", false, "not known"},
		{"default/a@TWO", false, "not known"},
		{"default/a@two\x00", false, "not known"},
		{"default/c@two", false, "the policy is not known"},
		{"@two", false, "not known"},
		{"default/a@two,", false, "not known"},
		{"default/a@two,default/b@three", false, "not known"},
	} {
		r := m.check(t, c.policies)
		if got := r.GetDynamicMetadata().GetFields()[metadataReason].GetStringValue(); allowed(r) != c.allow || !strings.Contains(got, c.reason) {
			t.Errorf("%q: allowed %v, %q", c.policies, allowed(r), got)
		}
		if by := deniedBy(r); strings.Contains(by, "@") || strings.Contains(r.GetDeniedResponse().GetBody(), "two") {
			t.Errorf("%q: denied by %q: %s", c.policies, by, r.GetDeniedResponse().GetBody())
		}
	}
	if n := sample(t, m.reg, "writ_authz_unknown_policies_total", unknownContent); n != 8 {
		t.Errorf("%v times a content was not known", n)
	}
	if n := sample(t, m.reg, "writ_authz_unknown_policies_total", unknownName); n != 3 {
		t.Errorf("%v times a policy was not known", n)
	}
	if n := sample(t, m.reg, "writ_authz_earlier_decisions_total"); n != 4 {
		t.Errorf("%v checks by what is retired", n)
	}
	if n := sample(t, m.reg, "writ_authz_policies_retired"); n != 2 {
		t.Errorf("%v are retired", n)
	}
}

// TestCallersNameNoPolicies: which policies are asked is what the proxy's routes say, and
// no header of a request.
func TestCallersNameNoPolicies(t *testing.T) {
	m := newMesh(t)
	m.apply(t, content("default/a", "one", yes), content("default/b", "one", no))
	m.apply(t, content("default/a", "two", no), content("default/b", "one", no))
	forged := func(a *authv3.AttributeContext) {
		for _, name := range []string{PoliciesKey, configpb.PoliciesMetadata, "x-envoy-auth-" + PoliciesKey} {
			a.Request.Http.Headers[name] = "default/a@one"
		}
		a.Request.Http.Path = "/?" + PoliciesKey + "=default/a@one"
	}
	for _, policies := range []string{"default/a@two", "default/b@one", ""} {
		// A call about a request may come with any metadata, as of a connection.
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs(configpb.PoliciesMetadata, "default/a@one"))
		if r, err := m.Check(ctx, checkRequest(policies, forged)); err != nil || allowed(r) {
			t.Errorf("%q: %v, %v", policies, r, err)
		}
	}
}

// TestEarlierContentIsLogged: a record names the content that decided where it is not the
// one of the revision, and no other.
func TestEarlierContentIsLogged(t *testing.T) {
	m := newMesh(t)
	var records []*decisionlog.Record
	m.record.add = func(r *decisionlog.Record) { records = append(records, r) }
	m.apply(t, content("default/a", "one", yes), content("default/b", "one", yes))
	m.apply(t, content("default/a", "two", yes), content("default/b", "one", yes))
	m.check(t, "default/a@one,default/b@one")
	m.check(t, "default/a@two,default/b@one")
	if len(records) != 2 || !slices.Equal(records[0].Earlier, []string{"default/a@one"}) || len(records[1].Earlier) != 0 {
		t.Fatalf("%+v", records)
	}
	for _, r := range records {
		if !slices.Equal(r.Policies, []string{"default/a", "default/b"}) {
			t.Errorf("policies %q", r.Policies)
		}
	}
	if b, err := json.Marshal(records[0]); err != nil || !strings.Contains(string(b), `"earlier":["default/a@one"]`) {
		t.Errorf("%s, %v", b, err)
	}
}

// TestContentsAndKeptDecisions: what was decided by one content is not the answer of
// another one, to the same input.
func TestContentsAndKeptDecisions(t *testing.T) {
	m := newMesh(t)
	for i := range 20 {
		m.apply(t, content("default/a", fmt.Sprint(i), []string{yes, no}[i%2]))
		for range 2 {
			for j := max(0, i-1); j <= i; j++ {
				if got := allowed(m.check(t, fmt.Sprint("default/a@", j))); got != (j%2 == 0) {
					t.Fatalf("edit %d, content %d: %v", i, j, got)
				}
			}
		}
	}
	if sample(t, m.reg, "writ_authz_cache_lookups_total", "hit") == 0 {
		t.Error("nothing was kept")
	}
}

// TestRetiredDecideForAWhile: what was edited or removed decides for proxies whose routes
// go with it as long as connections drain, and no longer, asked for or not.
func TestRetiredDecideForAWhile(t *testing.T) {
	m := newMesh(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = m.policies.expire(ctx) }()
		defer func() { cancel(); <-done }()

		m.apply(t, content("default/a", "one", yes), content("default/gone", "one", yes), content("default/stays", "one", yes))
		stays := m.policies.current.Load().policies["default/stays"]
		for _, name := range []string{"default/a@one", "default/gone@one"} {
			m.check(t, name)
		}
		m.apply(t, content("default/a", "two", no), content("default/stays", "one", yes))
		if m.policies.current.Load().policies["default/stays"] != stays {
			t.Error("what was not edited is compiled again")
		}
		for range 14 { // each minute somebody asks
			if !allowed(m.check(t, "default/a@one,default/gone@one,default/stays@one")) || allowed(m.check(t, "default/a@two")) {
				t.Fatal("a connection that drains is refused, or asks the wrong content")
			}
			time.Sleep(time.Minute) // time of the bubble
		}
		revision := m.policies.current.Load().revision
		time.Sleep(time.Minute) // time of the bubble
		for _, name := range []string{"default/a@one", "default/gone@one"} {
			if allowed(m.check(t, name)) {
				t.Errorf("%s decides long after it was replaced", name)
			}
		}
		time.Sleep(2 * retireEvery) // time of the bubble: nothing is edited, and it is let go of
		set := m.policies.current.Load()
		if len(set.retired) != 0 || set.revision != revision || set.refs["default/a@two"] == nil {
			t.Errorf("%d are kept", len(set.retired))
		}
		if n := sample(t, m.reg, "writ_authz_policies_retired"); n != 0 {
			t.Errorf("%v are retired", n)
		}
		if n := series(t, m.reg, "writ_authz_policy_decisions_total"); n != 6 {
			t.Errorf("%d series, want those of default/a and default/stays", n)
		}
		// Who waits for a policy when something is let go of still hears of the next edit.
		m.decision.UnknownPolicyWait = m.decision.Timeout
		answer := make(chan bool)
		go func() { answer <- allowed(m.check(t, "default/a@three")) }()
		synctest.Wait()
		m.policies.forget(ctx, time.Now().Add(time.Hour))
		m.apply(t, content("default/a", "three", yes), content("default/stays", "one", yes))
		if !<-answer {
			t.Error("a content that came in time was not waited for")
		}
	})
}

// TestContentComesBack: an edit that is taken back is in force again at once, as it was.
func TestContentComesBack(t *testing.T) {
	m := newMesh(t)
	m.apply(t, content("default/a", "one", yes))
	first := m.policies.current.Load().policies["default/a"]
	m.apply(t, content("default/a", "two", no))
	m.apply(t, content("default/a", "one", yes))
	set := m.policies.current.Load()
	if set.policies["default/a"] != first || set.retired["default/a@one"].policy != nil || set.retired["default/a@two"].policy == nil || len(set.retired) != 1 {
		t.Errorf("in force %v, retired %v", set.policies["default/a"], slices.Collect(maps.Keys(set.retired)))
	}
	if !allowed(m.check(t, "default/a@one")) || allowed(m.check(t, "default/a@two")) {
		t.Error("the contents are mixed up")
	}
	// The same content at another place of a file is the same.
	moved := content("default/a", "one", yes)
	moved.Source = "policies.yaml:99"
	m.apply(t, moved)
	if set := m.policies.current.Load(); set.policies["default/a"] != first || len(set.retired) != 1 {
		t.Error("a policy that moved has another content")
	}
}

// TestRestartKnowsTheNewest: after a restart only what is in force is known. A proxy that
// missed the edit is refused until it has it.
func TestRestartKnowsTheNewest(t *testing.T) {
	state := t.TempDir()
	in := func(c *Config) { c.State = state }
	m := newMesh(t, in)
	m.apply(t, content("default/a", "one", yes))
	m.apply(t, content("default/a", "two", yes))
	again := newMesh(t, in)
	if !again.policies.restore(t.Context()) {
		t.Fatal("nothing was kept")
	}
	if allowed(again.check(t, "default/a@one")) || !allowed(again.check(t, "default/a@two")) {
		t.Error("after a restart it is not the newest that decides")
	}
}

// TestRetiredAreBounded: in number for each policy, so that nobody pushes out what is
// another's, and in memory; of bundles there is one. One edit of everything has room.
func TestRetiredAreBounded(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	made := func(name string, i, weight int, bundle bool) *policy {
		return &policy{name: name, ref: fmt.Sprintf("%s@%d", name, i), weight: weight, bundle: bundle}
	}
	after := func(edits int, all func(i int) []*policy) (retired, int) {
		var r retired
		var before map[string]*policy
		dropped := 0
		for i := range edits {
			next := map[string]*policy{}
			for _, p := range all(i) {
				next[p.name] = p
			}
			var d int
			at := now.Add(time.Duration(i) * time.Second)
			r, d = r.following(before, next, at, at.Add(time.Minute))
			before, dropped = next, dropped+d
		}
		return r, dropped
	}
	refs := func(r retired) string { return strings.Join(slices.Sorted(maps.Keys(r)), " ") }

	r, dropped := after(20, func(i int) []*policy { return []*policy{made("a", i, 1, false), made("b", min(i, 1), 1, false)} })
	if got := refs(r); got != "a@11 a@12 a@13 a@14 a@15 a@16 a@17 a@18 b@0" || dropped != 11 {
		t.Errorf("edits of one policy leave %s, %d dropped", got, dropped)
	}
	r, _ = after(20, func(i int) []*policy { return []*policy{made("a", i, 0, true), made("b", i/10, 0, true)} })
	if got := refs(r); got != "a@18 b@0" {
		t.Errorf("edits of bundles leave %s", got)
	}
	const many = 3 * retiredBytes / programBytes
	r, dropped = after(2, func(i int) (all []*policy) {
		for j := range many {
			all = append(all, made(fmt.Sprint(j), i, programBytes, false))
		}
		return all
	})
	if len(r) != many || dropped != 0 {
		t.Errorf("one edit of all %d policies leaves %d", many, len(r))
	}
	// New names each time: what is there at once is little, what was there is not.
	r, dropped = after(10, func(i int) []*policy { return []*policy{made(fmt.Sprint(i), 0, retiredBytes/2, false)} })
	if got := refs(r); got != "6@0 7@0 8@0" || dropped != 6 {
		t.Errorf("large policies that come and go leave %s, %d dropped", got, dropped)
	}
	r, _ = after(100, func(i int) []*policy { return []*policy{made(fmt.Sprint(i), 0, 1, false)} })
	if len(r) != 60 || r["38@0"].policy != nil || r["98@0"].policy == nil {
		t.Errorf("after a minute of edits, each for a minute: %d", len(r))
	}
	if p := r.find("50@0", now.Add(110*time.Second)); p == nil {
		t.Error("not found in its time")
	}
	if p := r.find("50@0", now.Add(111*time.Second)); p != nil {
		t.Error("found when its time is over")
	}
	if left := r.unexpired(now.Add(150 * time.Second)); len(left) != 9 {
		t.Errorf("%d are left", len(left))
	}
	// Without a time nothing is kept.
	if r, _ := retired(nil).following(map[string]*policy{"a": made("a", 1, 1, false)}, nil, now, now); len(r) != 0 {
		t.Errorf("kept %v", r)
	}
}
