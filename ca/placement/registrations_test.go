package placement_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/ca/placement"
)

var regTD = spiffeid.RequireTrustDomainFromString("example.org")

func newRegistration(t *testing.T, node, id string, facts ...string) *placement.Registration {
	t.Helper()
	r, err := placement.NewRegistration(regTD, spiffeid.RequireFromString(id), node, facts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestNewRegistration(t *testing.T) {
	many := make([]string, 33)
	for i := range many {
		many[i] = "docker:name:" + strings.Repeat("x", i+1)
	}
	for name, tc := range map[string]struct {
		id, node string
		facts    []string
		ok       bool
	}{
		"good":                 {"spiffe://example.org/ns/a/sa/b", "n1", []string{"unix:uid:1"}, true},
		"any path":             {"spiffe://example.org/billing/api", "", []string{"unix:uid:1"}, true},
		"no facts":             {"spiffe://example.org/ns/a/sa/b", "n1", nil, false},
		"too many":             {"spiffe://example.org/ns/a/sa/b", "n1", many, false},
		"too long":             {"spiffe://example.org/ns/a/sa/b", "n1", []string{"docker:name:" + strings.Repeat("x", 4100), "docker:name:" + strings.Repeat("y", 4100), "docker:name:" + strings.Repeat("z", 4100), "docker:name:" + strings.Repeat("w", 4100)}, false},
		"no fact":              {"spiffe://example.org/ns/a/sa/b", "n1", []string{"uid=1"}, false},
		"a service of Writ":    {"spiffe://example.org/writ/pilot", "n1", []string{"unix:uid:1"}, false},
		"a node agent":         {"spiffe://example.org/writ/node/n1", "n1", []string{"unix:uid:1"}, false},
		"the trust domain":     {"spiffe://example.org", "n1", []string{"unix:uid:1"}, false},
		"another trust domain": {"spiffe://example.com/ns/a/sa/b", "n1", []string{"unix:uid:1"}, false},
		"no name of a node":    {"spiffe://example.org/ns/a/sa/b", "n/1", []string{"unix:uid:1"}, false},
	} {
		if _, err := placement.NewRegistration(regTD, spiffeid.RequireFromString(tc.id), tc.node, tc.facts); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	a := newRegistration(t, "n1", "spiffe://example.org/a", "unix:uid:1", "unix:gid:1", "unix:uid:1")
	b := newRegistration(t, "n1", "spiffe://example.org/a", "unix:gid:1", "unix:uid:1")
	if a.ID != b.ID || len(a.Facts) != 2 {
		t.Errorf("the same in another order is %+v, not %+v", b, a)
	}
	if c := newRegistration(t, "", "spiffe://example.org/a", "unix:gid:1", "unix:uid:1"); c.ID == a.ID {
		t.Error("another node has the same id")
	}
}

func TestRegistrationsOfANode(t *testing.T) {
	table := placement.NewTable(nil)
	here := newRegistration(t, "n1", "spiffe://example.org/here", "unix:uid:1")
	there := newRegistration(t, "n2", "spiffe://example.org/there", "unix:uid:1")
	everywhere := newRegistration(t, "", "spiffe://example.org/everywhere", "unix:uid:2")
	has := func(node, id string) bool {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		return table.Wait(ctx, node, spiffeid.RequireFromString(id))
	}
	now, f := table.Follow("n1")
	defer f.Close()
	if len(now) != 0 {
		t.Fatalf("at first there are %v", now)
	}
	table.ChangeRegistrations([]*placement.Registration{here, there, everywhere}, nil, true)
	for _, tc := range []struct {
		node, id string
		want     bool
	}{
		{"n1", "spiffe://example.org/here", true},
		{"n2", "spiffe://example.org/here", false},
		{"n2", "spiffe://example.org/there", true},
		{"n3", "spiffe://example.org/everywhere", true},
		{"", "spiffe://example.org/here", false},
	} {
		if has(tc.node, tc.id) != tc.want {
			t.Errorf("%s on %q: %v", tc.id, tc.node, !tc.want)
		}
	}
	<-f.More()
	put, dropped := f.Take()
	if len(put) != 2 || len(dropped) != 0 || slices.ContainsFunc(put, func(r *placement.Registration) bool { return r.ID == there.ID }) {
		t.Errorf("told of %v and %v", put, dropped)
	}
	// What is not in the whole list goes.
	table.ChangeRegistrations([]*placement.Registration{here, there}, nil, true)
	<-f.More()
	if put, dropped = f.Take(); len(put) != 0 || !slices.Equal(dropped, []string{everywhere.ID}) || has("n3", "spiffe://example.org/everywhere") {
		t.Errorf("told of %v and %v", put, dropped)
	}
	table.ChangeRegistrations(nil, []string{there.ID}, false)
	select {
	case <-f.More():
		t.Error("told of another node's")
	default:
	}
	if now, g := table.Follow("n1"); len(now) != 1 || now[0].ID != here.ID {
		t.Errorf("a new follower gets %v", now)
	} else {
		g.Close()
	}
}

func TestWaitsForARegistration(t *testing.T) {
	table := placement.NewTable(nil)
	r := newRegistration(t, "n1", "spiffe://example.org/a", "unix:uid:1")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	done := make(chan bool, 2)
	go func() { done <- table.Wait(ctx, "n1", r.SPIFFEID) }()
	go func() { done <- table.HasRegistration(ctx, r.ID, true) }()
	table.ChangeRegistrations([]*placement.Registration{r}, nil, false)
	for range 2 {
		if !<-done {
			t.Error("it was not waited for")
		}
	}
}
