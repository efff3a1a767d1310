package translate

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/writ-mesh/writ/pilot/model"
)

// TestMemoBuildsOnce: who asks while a value is being built waits for it; what
// fails is tried again.
func TestMemoBuildsOnce(t *testing.T) {
	var m memo[string, *int]
	var calls atomic.Int32
	failed := errors.New("not now")
	if _, err := m.get("a", func() (*int, error) { calls.Add(1); return nil, failed }); !errors.Is(err, failed) {
		t.Fatalf("error %v", err)
	}
	var wg sync.WaitGroup
	values := make([]*int, 50)
	for i := range values {
		wg.Go(func() {
			values[i], _ = m.get("a", func() (*int, error) { calls.Add(1); return new(int), nil })
		})
	}
	wg.Wait()
	for _, v := range values {
		if v == nil || v != values[0] {
			t.Fatal("two callers got different values")
		}
	}
	if n := calls.Load(); n != 2 {
		t.Errorf("built %d times, want once after the failure", n-1)
	}
}

// TestRedirectedProxiesShare: sidecars of alike workloads have one listener for
// redirected traffic; those with other labels or ports have another, because
// policies may tell them apart.
func TestRedirectedProxiesShare(t *testing.T) {
	b := newMesh(t)
	proxy := func(name, app string, ports ...string) *model.Proxy {
		p := b.workload(name, "default", app, map[string]string{"app": app}, ports...)
		p.Interception = model.Redirect
		return p
	}
	one, two := proxy("web-1", "web", "http:9000:19000"), proxy("web-2", "web", "http:9000:19000")
	other, more := proxy("db-1", "db", "http:9000:19000"), proxy("web-3", "web", "http:9000:19000", "tcp:9001:19001")
	b.service("web", "default", one, two)
	tr := b.translator()
	parts := func(p *model.Proxy) (*Snapshot, *Snapshot) {
		own, shared, err := tr.Parts(p)
		if err != nil {
			t.Fatal(err)
		}
		return own, shared
	}
	a, sharedA := parts(one)
	c, sharedC := parts(two)
	if sharedA != sharedC || len(sharedA.Clusters) == 0 {
		t.Error("the part that proxies have in common is not one and the same")
	}
	find := func(s *Snapshot) Resource {
		i := slices.IndexFunc(s.Listeners, func(r Resource) bool { return r.Name == virtualInboundListener })
		if i < 0 {
			t.Fatal("no listener for redirected traffic")
		}
		return s.Listeners[i]
	}
	if find(a).Message != find(c).Message {
		t.Error("the listener of redirected traffic is not shared")
	}
	for _, p := range []*model.Proxy{other, more} {
		if o, _ := parts(p); find(o).Message == find(a).Message {
			t.Errorf("%s has the listener of another workload", p.Name)
		}
	}
}
