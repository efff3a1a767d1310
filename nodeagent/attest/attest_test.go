package attest_test

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/nodeagent/attest"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

const wait = 5 * time.Second

func newAttestor(t *testing.T, dir string) *attest.Attestor {
	t.Helper()
	a := attest.New(t.Context(), attest.Config{
		Node: "n1", TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.local"), Dir: dir,
		Wait: wait, Log: slog.New(slog.DiscardHandler),
	})
	t.Cleanup(a.Close)
	return a
}

func workload(name string, uid *uint32) *configpb.WorkloadPlacement {
	w := &configpb.WorkloadPlacement{
		Name: name, Namespace: "default", SpiffeId: "spiffe://cluster.local/ns/default/sa/" + name,
		ProxyId: "sidecar~127.0.0.9~" + name + ".default~default.svc.cluster.local",
	}
	if uid != nil {
		w.Attestation = &configpb.Attestation{Uid: uid}
	}
	return w
}

func proxyID(name string) string { return workload(name, nil).GetProxyId() }

func place(t *testing.T, a *attest.Attestor, ws ...*configpb.WorkloadPlacement) {
	t.Helper()
	if err := a.Place(t.Context(), &configpb.NodePlacement{Node: "n1", Workloads: ws}); err != nil {
		t.Fatal(err)
	}
}

// start starts a process that lives until the test ends it.
func start(t *testing.T) (pid int32, end func()) {
	t.Helper()
	p := proctest.Start(t, "sleep", "600")
	return int32(p.PID()), p.Kill
}

func caller(t *testing.T, pid int32, uid uint32) attest.Caller {
	t.Helper()
	started, err := attest.StartTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	return attest.Caller{PID: pid, StartTime: started, UID: uid}
}

func mustAttest(t *testing.T, a *attest.Attestor, c attest.Caller) *attest.Lease {
	t.Helper()
	l, err := a.Attest(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Release)
	return l
}

func wantDone(t *testing.T, l *attest.Lease) {
	t.Helper()
	select {
	case <-l.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the lease still holds")
	}
}

func TestRegisteredProcess(t *testing.T) {
	a := newAttestor(t, t.TempDir())
	place(t, a, workload("reviews", nil))
	pid, end := start(t)
	if err := a.Register(t.Context(), pid, proxyID("reviews")); err != nil {
		t.Fatal(err)
	}
	l := mustAttest(t, a, caller(t, pid, 1000))
	if l.ProxyID != proxyID("reviews") || l.ID.String() != "spiffe://cluster.local/ns/default/sa/reviews" {
		t.Fatalf("attested as %+v", l.Workload)
	}
	if err := a.Register(t.Context(), pid, proxyID("reviews")); err != nil {
		t.Errorf("registering the same again: %v", err)
	}
	if err := a.Register(t.Context(), pid, proxyID("ratings")); status.Code(err) != codes.AlreadyExists {
		t.Errorf("registering as another proxy: %v, want ALREADY_EXISTS", err)
	}
	end()
	wantDone(t, l)
}

func TestRegisterRefusesWhatIsNoProcess(t *testing.T) {
	a := newAttestor(t, t.TempDir())
	pid, end := start(t)
	end()
	for _, tc := range []struct {
		pid   int32
		proxy string
		want  codes.Code
	}{
		{0, "p", codes.InvalidArgument},
		{-1, "p", codes.InvalidArgument},
		{int32(os.Getpid()), "", codes.InvalidArgument},
		{int32(os.Getpid()), strings.Repeat("x", 2000), codes.InvalidArgument},
		{pid, "p", codes.NotFound},
	} {
		if err := a.Register(t.Context(), tc.pid, tc.proxy); status.Code(err) != tc.want {
			t.Errorf("register %d: %v, want %s", tc.pid, err, tc.want)
		}
	}
}

func TestUnknownCallersAreRefusedWithTheFacts(t *testing.T) {
	uid := func(v uint32) *uint32 { return &v }
	pid, _ := start(t)
	other, _ := start(t)
	self := attest.Caller{PID: pid, UID: 1000}
	for _, tc := range []struct {
		name     string
		placed   []*configpb.WorkloadPlacement
		register string
		caller   func() attest.Caller
		want     []string
	}{
		{"nothing known", nil, "", func() attest.Caller { return self }, []string{"pid=", "uid=1000", "node n1", "no workload of this node is recognized by uid 1000"}},
		{
			"another process than the registered",
			[]*configpb.WorkloadPlacement{workload("a", nil)},
			"a",
			func() attest.Caller { return caller(t, other, 1000) },
			[]string{"its process is not registered"},
		},
		{
			"a process before the registered one had the id",
			[]*configpb.WorkloadPlacement{workload("a", nil)},
			"a",
			func() attest.Caller { c := caller(t, pid, 1000); c.StartTime--; return c },
			[]string{"its process is not registered"},
		},
		{
			"a process that had ended when it was accepted",
			[]*configpb.WorkloadPlacement{workload("a", nil)},
			"a",
			func() attest.Caller { return attest.Caller{PID: pid, UID: 1000} },
			[]string{"its process cannot be seen"},
		},
		{
			"registered but not placed",
			[]*configpb.WorkloadPlacement{workload("b", nil)},
			"a",
			func() attest.Caller { return caller(t, pid, 1000) },
			[]string{"does not place on this node"},
		},
		{
			"registered but wrong uid",
			[]*configpb.WorkloadPlacement{workload("a", uid(7))},
			"a",
			func() attest.Caller { return caller(t, pid, 1000) },
			[]string{"must run as uid 7"},
		},
		{
			"uid of two workloads",
			[]*configpb.WorkloadPlacement{workload("a", uid(1000)), workload("b", uid(1000))},
			"",
			func() attest.Caller { return self },
			[]string{"uid 1000 is that of 2 workloads"},
		},
		{
			"uid of nobody in particular",
			[]*configpb.WorkloadPlacement{workload("a", uid(65534))},
			"",
			func() attest.Caller { return attest.Caller{UID: 65534} },
			[]string{"stands for every user"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := attest.New(t.Context(), attest.Config{
				Node: "n1", TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.local"),
				Dir: t.TempDir(), Wait: time.Millisecond, Log: slog.New(slog.DiscardHandler),
			})
			defer a.Close()
			place(t, a, tc.placed...)
			if tc.register != "" {
				if err := a.Register(t.Context(), pid, proxyID(tc.register)); err != nil {
					t.Fatal(err)
				}
			}
			_, err := a.Attest(t.Context(), tc.caller())
			if status.Code(err) != codes.PermissionDenied {
				t.Fatalf("attest: %v, want PERMISSION_DENIED", err)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}

func TestUID(t *testing.T) {
	a := newAttestor(t, t.TempDir())
	uid := uint32(1234)
	place(t, a, workload("a", &uid), workload("b", nil))
	l := mustAttest(t, a, attest.Caller{UID: uid})
	if l.ProxyID != proxyID("a") {
		t.Fatalf("attested as %s", l.ProxyID)
	}
	place(t, a, workload("b", nil), workload("a", &uid))
	select {
	case <-l.Done():
		t.Fatal("the lease ended though its workload is still placed")
	default:
	}
	place(t, a, workload("b", nil))
	wantDone(t, l)
}

func TestPlacementThatIsWrongChangesNothing(t *testing.T) {
	a := newAttestor(t, t.TempDir())
	place(t, a, workload("a", nil))
	foreign, service, nobody := workload("b", nil), workload("b", nil), workload("b", nil)
	foreign.SpiffeId = "spiffe://example.org/ns/default/sa/b"
	service.SpiffeId = "spiffe://cluster.local/writ/pilot"
	nobody.ProxyId = ""
	for name, p := range map[string]*configpb.NodePlacement{
		"other node":      {Node: "n2"},
		"foreign domain":  {Node: "n1", Workloads: []*configpb.WorkloadPlacement{foreign}},
		"service of ours": {Node: "n1", Workloads: []*configpb.WorkloadPlacement{service}},
		"no proxy id":     {Node: "n1", Workloads: []*configpb.WorkloadPlacement{nobody}},
		"twice":           {Node: "n1", Workloads: []*configpb.WorkloadPlacement{workload("b", nil), workload("b", nil)}},
	} {
		if err := a.Place(t.Context(), p); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if ws := a.Workloads(); len(ws) != 1 || ws[0].ProxyID != proxyID("a") {
		t.Fatalf("workloads are %+v", ws)
	}
}

func TestRestartTakesUpRunningProcesses(t *testing.T) {
	dir := t.TempDir()
	before := newAttestor(t, dir)
	place(t, before, workload("a", nil), workload("b", nil))
	living, _ := start(t)
	dying, end := start(t)
	for pid, name := range map[int32]string{living: "a", dying: "b"} {
		if err := before.Register(t.Context(), pid, proxyID(name)); err != nil {
			t.Fatal(err)
		}
	}
	dead := caller(t, dying, 1)
	before.Close() // as kill -9 does: nothing is written here
	end()

	after := newAttestor(t, dir)
	if l := mustAttest(t, after, caller(t, living, 1)); l.ProxyID != proxyID("a") {
		t.Fatalf("attested as %s", l.ProxyID)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if l, err := after.Attest(ctx, dead); err == nil {
		t.Fatalf("a process that has ended is still %s", l.ProxyID)
	}
}

func TestRestartIgnoresCorruptState(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"placement", "registrations", "identities"} {
		if err := os.WriteFile(dir+"/"+name, []byte("garbage"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a := newAttestor(t, dir)
	if ws := a.Workloads(); len(ws) != 0 {
		t.Fatalf("workloads are %+v", ws)
	}
	place(t, a, workload("a", nil))
}

func TestCallerIsParkedUntilItIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := attest.New(t.Context(), attest.Config{
			Node: "n1", TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.local"),
			Dir: t.TempDir(), Wait: wait, Log: slog.New(slog.DiscardHandler),
		})
		defer a.Close()
		uid := uint32(1000)
		began := time.Now()
		got := make(chan error, 1)
		go func() {
			l, err := a.Attest(t.Context(), attest.Caller{UID: uid})
			if err == nil {
				l.Release()
			}
			got <- err
		}()
		<-time.After(wait - time.Second) // fake time
		place(t, a, workload("a", &uid))
		if err := <-got; err != nil || time.Since(began) != wait-time.Second {
			t.Fatalf("after %s: %v", time.Since(began), err)
		}

		began = time.Now()
		if _, err := a.Attest(t.Context(), attest.Caller{UID: 5}); status.Code(err) != codes.PermissionDenied || time.Since(began) != wait {
			t.Fatalf("after %s: %v", time.Since(began), err)
		}

		// The 65th caller of a user does not wait.
		ctx, cancel := context.WithCancel(t.Context())
		for range 64 {
			go func() { _, _ = a.Attest(ctx, attest.Caller{UID: 5}) }()
		}
		synctest.Wait()
		if _, err := a.Attest(t.Context(), attest.Caller{UID: 5}); status.Code(err) != codes.ResourceExhausted {
			t.Fatalf("65th parked caller: %v", err)
		}
		cancel()
		synctest.Wait()
	})
}
