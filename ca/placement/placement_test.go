package placement_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/ca/placement"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

var (
	td      = spiffeid.RequireTrustDomainFromString("example.org")
	reviews = spiffeid.RequireFromString("spiffe://example.org/ns/default/sa/reviews")
)

func resources(node string, ids ...string) map[string]proto.Message {
	p := &configpb.NodePlacement{Node: node}
	for _, id := range ids {
		p.Workloads = append(p.Workloads, &configpb.WorkloadPlacement{Name: "w", Namespace: "default", SpiffeId: id})
	}
	return map[string]proto.Message{node: p}
}

func TestFromResources(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   map[string]proto.Message
		want string
	}{
		{"good", resources("n1", reviews.String()), ""},
		{"nothing on the node", resources("n1"), ""},
		{"foreign", resources("n1", "spiffe://example.com/ns/a/sa/b"), "not in the trust domain"},
		{"a service of Writ", resources("n1", "spiffe://example.org/writ/pilot"), "no workload's identity"},
		{"another node", resources("n1", "spiffe://example.org/writ/node/n2"), "no workload's identity"},
		{"malformed", resources("n1", "reviews"), "SPIFFE ID"},
		{"wrong name", map[string]proto.Message{"n2": &configpb.NodePlacement{Node: "n1"}}, `is of node "n1"`},
		{"wrong type", map[string]proto.Message{"n1": &configpb.RegoPolicy{}}, "want a NodePlacement"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := placement.FromResources(tc.in, td)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func set(t *testing.T, node string, ids ...string) placement.Set {
	t.Helper()
	s, err := placement.FromResources(resources(node, ids...), td)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := placement.NewTable(nil)
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if table.Wait(ctx, "n1", reviews) || time.Since(begin) != 2*time.Second {
			t.Fatal("an empty table places something, or does not wait")
		}
		ctx, cancel = context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		time.AfterFunc(500*time.Millisecond, func() { table.Replace(set(t, "n2", reviews.String())) })
		time.AfterFunc(time.Second, func() { table.Replace(set(t, "n1", reviews.String())) })
		begin = time.Now()
		if !table.Wait(ctx, "n1", reviews) || time.Since(begin) != time.Second {
			t.Fatalf("placement was not waited for: %s", time.Since(begin))
		}
		if !table.Wait(t.Context(), "n1", reviews) {
			t.Fatal("a placement that is there is not seen")
		}
	})
}

func TestSaveAndLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p.json")
	if err := placement.Save(path, set(t, "n1", reviews.String()), td); err != nil {
		t.Fatal(err)
	}
	got, err := placement.Load(path, td)
	if err != nil || !got["n1"][reviews] || len(got) != 1 {
		t.Fatalf("got %v, %v", got, err)
	}
	if _, err := placement.Load(path, spiffeid.RequireTrustDomainFromString("example.com")); err == nil {
		t.Fatal("placements of another trust domain were taken")
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := placement.Load(path, td); err == nil || !strings.Contains(err.Error(), path+" is damaged") {
		t.Fatalf("got %v", err)
	}
}
