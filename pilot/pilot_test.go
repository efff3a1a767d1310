package pilot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/writ-mesh/writ/internal/service"
	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/xds"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

// memory is a Source without files.
type memory struct {
	mu      sync.Mutex
	files   map[string][]byte
	changed bool
	signal  chan struct{}
	// accepted are the files that every client took up.
	accepted map[string][]byte
}

func newMemory(files map[string]string) *memory {
	m := &memory{files: map[string][]byte{}, signal: make(chan struct{}, 1)}
	m.set(files)
	return m
}

func (m *memory) set(files map[string]string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, text := range files {
		m.files[name] = []byte(text)
	}
	m.changed = true
	select {
	case m.signal <- struct{}{}:
	default:
	}
}

func (m *memory) Read() (*model.Mesh, bool, []meshdir.Problem) {
	m.mu.Lock()
	defer m.mu.Unlock()
	mesh, problems := meshdir.Parse(m.files, nil, meshdir.Options{})
	changed := m.changed
	m.changed = false
	return mesh, changed, problems
}

func (m *memory) Accepted(*model.Mesh) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.accepted = maps.Clone(m.files)
}

// HoldBack puts back what was accepted, as if the file had been.
func (m *memory) HoldBack(_ *model.Mesh, objects []model.Ref, _ string) (held bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, o := range objects {
		if before := m.accepted[o.File]; before != nil && !bytes.Equal(before, m.files[o.File]) {
			m.files[o.File], m.changed, held = before, true, true
		}
	}
	return held
}

// Contents knows the files as they are.
func (m *memory) Contents(*model.Mesh) map[string][]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.files)
}

func (m *memory) Watch(context.Context) <-chan struct{} { return m.signal }

func (m *memory) Stamp() [sha256.Size]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return sha256.Sum256(fmt.Appendf(nil, "%v", m.files))
}

// fixture is a pilot over memory with a plain-text listener in memory.
type fixture struct {
	*Pilot
	t      *testing.T
	source *memory
	lis    *bufconn.Listener
	reg    *prometheus.Registry
	stop   func()
}

func newFixture(t *testing.T, state string, files map[string]string) *fixture {
	t.Helper()
	f := &fixture{t: t, source: newMemory(files), lis: bufconn.Listen(1 << 20), reg: prometheus.NewRegistry()}
	p, err := newPilot(Options{Source: f.source, State: state, Log: slog.New(slog.DiscardHandler), Metrics: f.reg, Health: &service.Health{}})
	if err != nil {
		t.Fatal(err)
	}
	f.Pilot = p
	s := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, plaintext{p.xds})
	pilotpb.RegisterStatusServer(s, &statusService{pilot: p})
	pilotpb.RegisterTokenRevocationsServer(s, &tokenRevocations{pilot: p})
	pilotpb.RegisterTokenRevocationFeedServer(s, &tokenRevocationFeed{pilot: p})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(f.lis) })
	wg.Go(func() { _ = p.Run(ctx) })
	wg.Go(func() { _ = p.followTokens(ctx) })
	f.stop = sync.OnceFunc(func() {
		cancel()
		<-p.xds.Stopped()
		s.GracefulStop()
		wg.Wait()
	})
	t.Cleanup(f.stop)
	return f
}

func (f *fixture) dial() *grpc.ClientConn {
	f.t.Helper()
	conn, err := grpc.NewClient("passthrough:///pilot",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return f.lis.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// sidecar is a client that acknowledges what it does not refuse.
type sidecar struct {
	mu     sync.Mutex
	state  map[string]map[string]string // type, name -> version
	refuse func(*discoveryv3.DeltaDiscoveryResponse) string
	pushes int
}

func (f *fixture) sidecar(n int, refuse func(*discoveryv3.DeltaDiscoveryResponse) string) *sidecar {
	f.t.Helper()
	c := &sidecar{state: map[string]map[string]string{}, refuse: refuse}
	ctx, cancel := context.WithCancel(context.Background())
	str, err := discoveryv3.NewAggregatedDiscoveryServiceClient(f.dial()).DeltaAggregatedResources(ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, url := range []string{xds.ClusterType, xds.ListenerType, xds.RouteType, xds.EndpointType} {
		req := &discoveryv3.DeltaDiscoveryRequest{
			Node:    &corev3.Node{Id: fmt.Sprintf("sidecar~127.0.9.%d~client-%d.default~default.svc.cluster.local", n, n), UserAgentName: "test"},
			TypeUrl: url, ResourceNamesSubscribe: []string{"*"},
		}
		if err := str.Send(req); err != nil {
			f.t.Fatal(err)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			resp, err := str.Recv()
			if err != nil {
				return
			}
			if str.Send(c.take(resp)) != nil {
				return
			}
		}
	}()
	f.t.Cleanup(func() { cancel(); <-done })
	return c
}

func (c *sidecar) take(resp *discoveryv3.DeltaDiscoveryResponse) *discoveryv3.DeltaDiscoveryRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pushes++
	ack := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resp.TypeUrl, ResponseNonce: resp.Nonce}
	if c.refuse != nil {
		if why := c.refuse(resp); why != "" {
			ack.ErrorDetail = &statuspb.Status{Code: 3, Message: why}
			return ack
		}
	}
	if c.state[resp.TypeUrl] == nil {
		c.state[resp.TypeUrl] = map[string]string{}
	}
	for _, r := range resp.Resources {
		c.state[resp.TypeUrl][r.Name] = r.Version
	}
	for _, n := range resp.RemovedResources {
		delete(c.state[resp.TypeUrl], n)
	}
	return ack
}

func (c *sidecar) snapshot() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprint(c.state[xds.RouteType], c.state[xds.ListenerType])
}

func (f *fixture) state() []string {
	f.t.Helper()
	st, err := pilotpb.NewStatusClient(f.dial()).GetStatus(context.Background(), &pilotpb.GetStatusRequest{})
	if err != nil {
		f.t.Fatal(err)
	}
	list := []string{fmt.Sprint("serving ", st.Serving)}
	for _, r := range st.Revisions {
		s := fmt.Sprint(r.Number, " ", strings.ToLower(strings.TrimPrefix(r.State.String(), "REVISION_STATE_")))
		if w := r.Rejection; w != nil {
			s += fmt.Sprintf(" %q %v", w.Detail, w.Objects)
		}
		list = append(list, s)
	}
	return list
}

func (f *fixture) want(states ...string) {
	f.t.Helper()
	synctest.Wait()
	if got := f.state(); !slices.Equal(got, states) {
		f.t.Errorf("status:\n got  %q\n want %q", got, states)
	}
}

// metric is the value of the counter or gauge with that label, "" for none, or how
// often a histogram was told something.
func (f *fixture) metric(name, label string) float64 {
	f.t.Helper()
	families, err := f.reg.Gather()
	if err != nil {
		f.t.Fatal(err)
	}
	for _, fam := range families {
		for _, m := range fam.GetMetric() {
			without := label == "" && len(m.GetLabel()) == 0
			if fam.GetName() == name && (without || len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == label) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	f.t.Fatalf("no metric %s with %s", name, label)
	return 0
}

func withTimeout(seconds int) string {
	return strings.Replace(routeTo("one", "one"), "http: [{", fmt.Sprintf("http: [{timeout: %ds, ", seconds), 1)
}

func TestRejectedRevisionIsTakenBackEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "", map[string]string{"one.yaml": entry("one", "8001"), "two.yaml": routeTo("one", "one")})
		synctest.Wait()
		easy := f.sidecar(1, nil)
		synctest.Wait()
		strict := f.sidecar(2, nil)
		f.want("serving 1", "1 live")
		before := easy.snapshot()

		strict.mu.Lock()
		strict.refuse = func(r *discoveryv3.DeltaDiscoveryResponse) string {
			if r.TypeUrl == xds.RouteType && r.SystemVersionInfo == "2" {
				return "no such timeout"
			}
			return ""
		}
		strict.mu.Unlock()
		f.source.set(map[string]string{"two.yaml": withTimeout(7)})
		f.want("serving 1", `2 rejected "no such timeout" [VirtualService default/one (two.yaml:1)]`, "1 live")
		for _, c := range []*sidecar{easy, strict} {
			if got := c.snapshot(); got != before {
				t.Errorf("a client has\n%s\nwant the last good state\n%s", got, before)
			}
		}
		if n := f.metric("writ_pilot_nacks_total", "RouteConfiguration"); n != 1 {
			t.Errorf("%v refusals counted", n)
		}

		f.source.set(nil) // the same content is not tried again
		f.want("serving 1", `2 rejected "no such timeout" [VirtualService default/one (two.yaml:1)]`, "1 live")
		// Nor does it keep the changes of others away.
		f.source.set(map[string]string{"three.yaml": entry("three", "8003")})
		f.want("serving 3", "3 live", `2 rejected "no such timeout" [VirtualService default/one (two.yaml:1)]`, "1 live")
		f.source.set(map[string]string{"two.yaml": withTimeout(8)})
		f.want("serving 4", "4 live", "3 live", `2 rejected "no such timeout" [VirtualService default/one (two.yaml:1)]`, "1 live")
	})
}

func TestBrokenEditChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "", map[string]string{"one.yaml": entry("one", "8001")})
		c := f.sidecar(1, nil)
		f.want("serving 1", "1 live")
		before := c.snapshot()
		f.source.set(map[string]string{"bad.yaml": "kind: ["})
		f.want("serving 1", "1 live")
		st, _ := f.status()
		if len(st.Problems) == 0 || st.Problems[0].File != "bad.yaml" || st.Problems[0].Severity != "error" {
			t.Errorf("problems: %v", st.Problems)
		}
		if c.snapshot() != before {
			t.Error("the client was given something else")
		}
		if n := f.metric("writ_pilot_config_problems", "error"); n == 0 {
			t.Error("the problem is not counted")
		}
	})
}

func TestEditThatChangesNoProxyIsARevisionAndSendsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "", map[string]string{"one.yaml": entry("one", "8001")})
		c := f.sidecar(1, nil)
		f.want("serving 1", "1 live")
		pushes := c.pushes
		f.source.set(map[string]string{"policy.yaml": `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: none, namespace: default}
spec: {selector: {matchLabels: {app: nobody}}, action: DENY, rules: [{}]}
`})
		f.want("serving 2", "2 live", "1 live")
		if c.pushes != pushes {
			t.Errorf("%d responses", c.pushes-pushes)
		}
		f.source.set(map[string]string{"policy.yaml": "# a comment\n" + string(f.source.files["policy.yaml"])})
		f.want("serving 2", "2 live", "1 live")
	})
}

func TestNumberSurvivesARestart(t *testing.T) {
	state := t.TempDir()
	files := map[string]string{"one.yaml": entry("one", "8001")}
	run := func(files map[string]string, want ...string) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, state, files)
			f.want(want...)
		})
	}
	run(files, "serving 1", "1 live")
	run(files, "serving 1", "1 live")
	files["two.yaml"] = entry("two", "8002")
	run(files, "serving 2", "2 live")
}

// TestStatusWaitsForTheFiles: who writes a file and asks at once is not told of the
// revision before, although the watch lets files come to rest first.
func TestStatusWaitsForTheFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "", map[string]string{"one.yaml": entry("one", "8001")})
		synctest.Wait()
		client := pilotpb.NewStatusClient(f.dial())
		edit := func(text string) {
			f.source.mu.Lock()
			defer f.source.mu.Unlock()
			f.source.files["one.yaml"], f.source.changed = []byte(text), true
		}
		for i, ask := range []func() (*pilotpb.GetStatusResponse, error){
			func() (*pilotpb.GetStatusResponse, error) {
				return client.GetStatus(t.Context(), &pilotpb.GetStatusRequest{})
			},
			func() (*pilotpb.GetStatusResponse, error) {
				str, err := client.WatchStatus(t.Context(), &pilotpb.WatchStatusRequest{})
				if err != nil {
					return nil, err
				}
				return str.Recv()
			},
		} {
			edit(entry("one", fmt.Sprint(8002+i)))
			time.AfterFunc(30*time.Millisecond, func() { f.source.signal <- struct{}{} })
			if st, err := ask(); err != nil || st.Serving != uint64(2+i) {
				t.Errorf("%d: serving %d, %v", i, st.GetServing(), err)
			}
		}
		// Files that nobody tells of hold an answer up for a while only.
		edit(entry("one", "8009"))
		began := time.Now()
		if st, err := client.GetStatus(t.Context(), &pilotpb.GetStatusRequest{}); err != nil || st.Serving != 3 || time.Since(began) != catchUpMost {
			t.Errorf("serving %d after %s, %v", st.GetServing(), time.Since(began), err)
		}
	})
}

func TestWatchStatusTellsChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "", map[string]string{"one.yaml": entry("one", "8001")})
		synctest.Wait()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		str, err := pilotpb.NewStatusClient(f.dial()).WatchStatus(ctx, &pilotpb.WatchStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if st, err := str.Recv(); err != nil || st.Serving != 1 || len(st.Clients) != 0 {
			t.Fatalf("first: %v, %v", st, err)
		}
		f.sidecar(1, nil)
		for {
			st, err := str.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if len(st.Clients) == 1 && st.Clients[0].AckedRevision == 1 {
				break
			}
		}
	})
}
