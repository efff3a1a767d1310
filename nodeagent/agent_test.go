package nodeagent_test

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/yaml"

	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/internal/service"
	"github.com/writ-mesh/writ/nodeagent"
	"github.com/writ-mesh/writ/nodeagent/proxysecret"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	nodeagentpb "github.com/writ-mesh/writ/proto/writ/nodeagent/v1"
)

const (
	nodeName   = "n1"
	proxyID    = "sidecar~127.0.0.1~web-1.default~default.svc.cluster.local"
	spiffeID   = "spiffe://cluster.local/ns/default/sa/web"
	clusterURL = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
)

// runAgent is the first argument that makes the test binary be the agent, so that
// it can be killed.
const runAgent = "nodeagent"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == runAgent {
		os.Args = os.Args[1:]
		service.Main(service.Spec[nodeagent.Config]{
			Name: "writ-nodeagent", Default: nodeagent.DefaultConfig,
			Common:   func(c *nodeagent.Config) *service.Common { return &c.Common },
			Validate: func(c *nodeagent.Config) error { return c.Validate() },
			Run:      nodeagent.Run,
		})
	}
	if len(os.Args) > 1 && os.Args[1] == runPeer {
		peer(os.Args[2])
		return
	}
	// Agents, certificates and Envoys are waited for far longer than they compute:
	// more than one a processor at a time. The command line may say otherwise.
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// rig is an agent with a fake authority and a fake pilot.
type rig struct {
	dir   string
	root  *pkitest.Root
	ca    *fakeCA
	pilot *fakePilot
	admin nodeagentpb.AdminClient
	agent *proctest.Process
}

func newRig(t *testing.T, life time.Duration) *rig {
	t.Helper()
	root := pkitest.NewRoot(t, domain)
	r := &rig{dir: t.TempDir(), root: root, ca: newFakeCA(t, root, nodeName, life), pilot: newFakePilot(t, root)}
	r.write(t, "bundle.pem", root.PEM())
	r.write(t, "token", []byte("one-time\n"))
	config, err := yaml.Marshal(map[string]any{
		"node": nodeName, "socket": "unix://" + r.socket(), "socket_mode": "0666", "admin": "unix://" + r.path("admin.sock"),
		"state": r.path("state"), "pilot": r.pilot.addr, "attest_wait": "1s", "monitoring": "unix://" + r.path("mon.sock"), "log": map[string]any{"level": "debug"},
		"credential": map[string]any{"ca": r.ca.addr, "trust_bundle": r.path("bundle.pem"), "token_file": r.path("token"), "dir": r.path("identity"), "trust_domain": domain},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.write(t, "config.yaml", config)
	r.place(t, proxyID, nil)
	conn, err := grpc.NewClient("unix://"+r.path("admin.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	r.admin = nodeagentpb.NewAdminClient(conn)
	return r
}

// newOwnRig is a rig in which the test itself is the workload.
func newOwnRig(t *testing.T) *rig {
	t.Helper()
	r := newRig(t, time.Hour)
	uid := uint32(os.Getuid())
	r.place(t, proxyID, &uid)
	return r
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }
func (r *rig) socket() string          { return r.path("agent.sock") }

func (r *rig) write(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(r.path(name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) place(t *testing.T, id string, uid *uint32) {
	t.Helper()
	w := &configpb.WorkloadPlacement{Name: "web-1", Namespace: "default", SpiffeId: spiffeID, ProxyId: id}
	if uid != nil {
		w.Attestation = &configpb.Attestation{Uid: uid}
	}
	r.pilot.set(t, nodeName, &configpb.NodePlacement{Node: nodeName, Workloads: []*configpb.WorkloadPlacement{w}})
}

// start starts the agent and waits for its admin socket.
func (r *rig) start(t *testing.T) {
	t.Helper()
	agent := proctest.Start(t, os.Args[0], runAgent, "-config", r.path("config.yaml"))
	t.Cleanup(func() {
		agent.Kill()
		if strings.Contains(agent.Output.String(), "PRIVATE KEY") {
			t.Error("a key was logged")
		}
	})
	r.agent = agent
	r.status(t, "the agent is up", func(*nodeagentpb.GetStatusResponse) bool { return true })
}

// status waits until the agent's status is as wanted.
func (r *rig) status(t *testing.T, what string, ok func(*nodeagentpb.GetStatusResponse) bool) {
	t.Helper()
	proctest.Eventually(t, bound, func() error {
		st, err := r.admin.GetStatus(t.Context(), &nodeagentpb.GetStatusRequest{}, grpc.WaitForReady(true))
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", what, err)
		case !ok(st):
			return fmt.Errorf("%s: status is %s", what, st)
		}
		return nil
	})
}

func (r *rig) connected(t *testing.T) {
	t.Helper()
	r.status(t, "the agent is connected and has its placement", func(st *nodeagentpb.GetStatusResponse) bool {
		return st.GetPilotConnected() && st.GetCaConnected() && len(st.GetWorkloads()) == 1
	})
}

func (r *rig) register(t *testing.T, pid int) {
	t.Helper()
	proctest.Eventually(t, bound, func() error {
		_, err := r.admin.RegisterProcess(t.Context(), &nodeagentpb.RegisterProcessRequest{Pid: int32(pid), ProxyId: proxyID})
		return err
	})
}

// secret is that of the proxy's bootstrap.
func (r *rig) secret(t *testing.T) string {
	t.Helper()
	key, err := proxysecret.Open(r.path("state/" + proxysecret.File))
	if err != nil {
		t.Fatal(err)
	}
	return key.Secret(proxyID)
}

// asEnvoy is the context of a call that the proxy's Envoy makes by itself.
func (r *rig) asEnvoy(t *testing.T) context.Context {
	t.Helper()
	return metadata.AppendToOutgoingContext(t.Context(), proxysecret.Header, r.secret(t))
}

// dial connects to the agent as this process.
func (r *rig) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+r.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (r *rig) metric(t *testing.T, name string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DialContext: dialUnix(r.path("mon.sock"))}}
	resp, err := client.Get("http://agent/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(body), "\n") {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			return v
		}
	}
	return ""
}

func TestUnattestedCallersGetNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, time.Hour)
	r.start(t)
	r.connected(t)
	conn := r.dial(t)
	r.register(t, proctest.Start(t, "sleep", "600").PID()) // not this process

	calls := map[string]func(context.Context) error{
		"delta secrets": func(ctx context.Context) error {
			s, err := secretv3.NewSecretDiscoveryServiceClient(conn).DeltaSecrets(ctx)
			if err != nil {
				return err
			}
			_ = s.Send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: proxyID}, ResourceNamesSubscribe: []string{"default"}})
			_, err = s.Recv()
			return err
		},
		"ads": func(ctx context.Context) error {
			s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
			if err != nil {
				return err
			}
			_ = s.Send(&discoveryv3.DiscoveryRequest{Node: &corev3.Node{Id: proxyID}, TypeUrl: clusterURL})
			_, err = s.Recv()
			return err
		},
	}
	t.Run("calls", func(t *testing.T) {
		for name, call := range calls {
			t.Run(name, func(t *testing.T) {
				t.Parallel() // each is refused after attest_wait
				err := call(t.Context())
				if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), fmt.Sprintf("pid=%d uid=%d", os.Getpid(), os.Getuid())) {
					t.Fatalf("got %v, want PERMISSION_DENIED with the facts", err)
				}
			})
		}
	})
	if n := r.ca.count(spiffeID); n != 0 {
		t.Errorf("%d certificates were asked for", n)
	}
	if v := r.metric(t, `writ_nodeagent_attestations_total{result="refused"}`); v != "2" {
		t.Errorf("refused: %s", v)
	}
}

func TestSecretsOverEveryVariant(t *testing.T) {
	t.Parallel()
	r := newOwnRig(t)
	r.start(t)
	conn := r.dial(t)
	client := secretv3.NewSecretDiscoveryServiceClient(conn)

	// One request with one answer is what a forged one is easiest as; no Envoy sends it.
	if got, err := client.FetchSecrets(t.Context(), &discoveryv3.DiscoveryRequest{ResourceNames: []string{"default"}}); status.Code(err) != codes.PermissionDenied {
		t.Fatalf("fetched %v, %v", got, err)
	}

	s, err := client.StreamSecrets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"default"}}); err != nil {
		t.Fatal(err)
	}
	world, err := s.Recv()
	if err != nil || len(world.GetResources()) != 1 {
		t.Fatalf("state of the world: %v, %v", world, err)
	}
	secret := new(tlsv3.Secret)
	if err := world.GetResources()[0].UnmarshalTo(secret); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(secret.GetTlsCertificate().GetCertificateChain().GetInlineBytes(), secret.GetTlsCertificate().GetPrivateKey().GetInlineBytes())
	if err != nil || len(pair.Leaf.URIs) != 1 || pair.Leaf.URIs[0].String() != spiffeID {
		t.Fatalf("key pair: %v, %v", pair.Leaf, err)
	}

	d, err := client.DeltaSecrets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"ROOTCA", "other"}}); err != nil {
		t.Fatal(err)
	}
	first, err := d.Recv()
	if err != nil || len(first.GetResources()) != 1 || len(first.GetRemovedResources()) != 1 {
		t.Fatalf("delta: %v, %v", first, err)
	}
	if err := d.Send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: first.GetNonce()}); err != nil {
		t.Fatal(err)
	}
	// A second root is pushed, and acknowledged and refused responses are counted.
	second := pkitest.NewRoot(t, domain)
	r.ca.bundle.Set([][]byte{r.root.Cert.Raw, second.Cert.Raw})
	push, err := d.Recv()
	if err != nil || len(push.GetResources()) != 1 || push.GetResources()[0].GetName() != "ROOTCA" {
		t.Fatalf("push of the bundle: %v, %v", push, err)
	}
	if err := s.Send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"default"}, ResponseNonce: world.GetNonce(), ErrorDetail: status.New(codes.Internal, "no").Proto()}); err != nil {
		t.Fatal(err)
	}
	r.status(t, "pushes are counted", func(st *nodeagentpb.GetStatusResponse) bool {
		w := st.GetWorkloads()[0]
		return w.GetAcked() == 1 && w.GetNacked() == 1 && w.GetIssued() == 1 && w.GetSerial() != ""
	})
	if n := r.ca.count(spiffeID); n != 1 {
		t.Errorf("%d certificates for three streams of one proxy", n)
	}

	// The workload is placed elsewhere: its streams end.
	r.place(t, "sidecar~127.0.0.1~other-1.default~default.svc.cluster.local", nil)
	for name, recv := range map[string]func() error{
		"state of the world": func() error { _, err := s.Recv(); return err },
		"delta":              func() error { _, err := d.Recv(); return err },
	} {
		if err := recv(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v, want PERMISSION_DENIED", name, err)
		}
	}
}

func TestRelayInTheStateOfTheWorldVariant(t *testing.T) {
	t.Parallel()
	r := newOwnRig(t)
	r.pilot.set(t, "one", &clusterv3.Cluster{Name: "one"})
	r.start(t)
	r.connected(t)
	client := discoveryv3.NewAggregatedDiscoveryServiceClient(r.dial(t))
	s, err := client.StreamAggregatedResources(r.asEnvoy(t))
	if err != nil {
		t.Fatal(err)
	}
	ask := &discoveryv3.DiscoveryRequest{Node: &corev3.Node{Id: "sidecar~10.0.0.1~admin.default~x"}, TypeUrl: clusterURL}
	if err := s.Send(ask); err != nil {
		t.Fatal(err)
	}
	live, err := s.Recv()
	if err != nil || len(live.GetResources()) != 1 || live.GetVersionInfo() != "v1" {
		t.Fatalf("live: %v, %v", live, err)
	}
	if agent, ok := r.pilot.saw(proxyID); !ok || agent != nodeName {
		t.Errorf("pilot saw %v", r.pilot.nodes)
	}
	if _, ok := r.pilot.saw("sidecar~10.0.0.1~admin.default~x"); ok {
		t.Error("pilot saw the node id that was claimed")
	}
	if v := r.metric(t, "writ_nodeagent_node_corrections_total"); v != "1" {
		t.Errorf("corrected: %s", v)
	}
	if err := s.Send(&discoveryv3.DiscoveryRequest{TypeUrl: clusterURL, VersionInfo: "v1", ResponseNonce: live.GetNonce()}); err != nil {
		t.Fatal(err)
	}
	proctest.Eventually(t, bound, func() error {
		if files, _ := filepath.Glob(r.path("state/proxies/*.config")); len(files) != 1 {
			return fmt.Errorf("files: %v", files)
		}
		return nil
	})
	r.pilot.stop()
	if _, err := s.Recv(); status.Code(err) != codes.Unavailable {
		t.Fatalf("pilot died: %v, want UNAVAILABLE", err)
	}
	// The agent too dies and comes back: it has everything from disk.
	r.agent.Kill()
	r.start(t)
	if s, err = client.StreamAggregatedResources(r.asEnvoy(t), grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	if err := s.Send(ask); err != nil {
		t.Fatal(err)
	}
	kept, err := s.Recv()
	if err != nil || len(kept.GetResources()) != 1 || string(kept.GetResources()[0].GetValue()) != string(live.GetResources()[0].GetValue()) {
		t.Fatalf("from disk: %v, %v", kept, err)
	}
	r.pilot.start(t)
	if _, err := s.Recv(); status.Code(err) != codes.Unavailable {
		t.Fatalf("pilot is back: %v, want UNAVAILABLE", err)
	}
	// What is not for proxies does not pass.
	if s, err = client.StreamAggregatedResources(r.asEnvoy(t)); err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&discoveryv3.DiscoveryRequest{TypeUrl: "type.googleapis.com/writ.config.v1.RegoPolicy"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Fatalf("a type of the services: %v, want INVALID_ARGUMENT", err)
	}
}

// deltaClusters opens an ADS stream as a proxy that starts.
func deltaClusters(t *testing.T, r *rig) discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient {
	t.Helper()
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(r.dial(t)).DeltaAggregatedResources(r.asEnvoy(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: clusterURL, ResourceNamesSubscribe: []string{"*"}}); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStreamWithoutAnAnswerGoesLiveAsItIs(t *testing.T) {
	t.Parallel()
	r := newOwnRig(t)
	r.pilot.set(t, "one", &clusterv3.Cluster{Name: "one"})
	r.start(t)
	r.connected(t)
	r.pilot.stop()
	r.status(t, "pilot is away", func(st *nodeagentpb.GetStatusResponse) bool { return !st.GetPilotConnected() })
	s := deltaClusters(t, r)
	proctest.Eventually(t, bound, func() error {
		if v := r.metric(t, `writ_nodeagent_ads_streams{mode="offline"}`); v != "1" {
			return fmt.Errorf("offline streams: %s", v)
		}
		return nil
	})
	r.pilot.start(t)
	resp, err := s.Recv()
	if err != nil || len(resp.GetResources()) != 1 {
		t.Fatalf("on the same stream: %v, %v", resp, err)
	}
	if live, off := r.metric(t, `writ_nodeagent_ads_streams{mode="live"}`), r.metric(t, `writ_nodeagent_ads_streams{mode="offline"}`); live != "1" || off != "0" {
		t.Errorf("live %s, offline %s", live, off)
	}
}

func TestPilotThatHangsIsNoReasonToWait(t *testing.T) {
	t.Parallel()
	r := newOwnRig(t)
	r.pilot.set(t, "one", &clusterv3.Cluster{Name: "one"})
	r.start(t)
	r.connected(t)
	s := deltaClusters(t, r)
	resp, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: clusterURL, ResponseNonce: resp.GetNonce()}); err != nil {
		t.Fatal(err)
	}
	onDisk(t, r, "one")
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	r.pilot.mu.Lock()
	r.pilot.mute = true
	r.pilot.mu.Unlock()
	kept, err := deltaClusters(t, r).Recv()
	if err != nil || len(kept.GetResources()) != 1 || !strings.HasPrefix(kept.GetNonce(), "kept-") {
		t.Fatalf("from disk: %v, %v", kept, err)
	}
}

func TestAuthorityAwayAfterARestart(t *testing.T) {
	t.Parallel()
	r := newOwnRig(t)
	r.start(t)
	r.connected(t)
	r.ca.stop()
	r.agent.Kill()
	r.start(t)
	s, err := secretv3.NewSecretDiscoveryServiceClient(r.dial(t)).DeltaSecrets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"default", "ROOTCA"}}); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"ROOTCA", "default"} {
		resp, err := s.Recv()
		if err != nil || len(resp.GetResources()) != 1 || resp.GetResources()[0].GetName() != want {
			t.Fatalf("response %d: %v, want %s", i, err, want)
		}
		if i == 0 {
			r.ca.start(t)
		}
	}
}

func TestAgentStopsCleanly(t *testing.T) {
	t.Parallel()
	r := newOwnRig(t)
	r.start(t)
	s, err := secretv3.NewSecretDiscoveryServiceClient(r.dial(t)).DeltaSecrets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"default"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	r.agent.Signal(syscall.SIGINT)
	if _, err := s.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ended with %v, want UNAVAILABLE", err)
	}
	if err := r.agent.Wait(); err != nil || time.Since(began) > 4*time.Second {
		t.Errorf("stopped after %s: %v", time.Since(began), err)
	}
}
