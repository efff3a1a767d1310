package ratelimit

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/internal/config"
	"github.com/writ-mesh/writ/internal/credential"
	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/internal/service"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
	"github.com/writ-mesh/writ/ratelimit/redistest"
	"github.com/writ-mesh/writ/ratelimit/regions"
)

// cable is a way between two regions that can be cut.
type cable struct {
	listener net.Listener
	to       string

	mu   sync.Mutex
	cut  bool
	open []net.Conn
}

func newCable(t *testing.T, to string) *cable {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cable{listener: l, to: to}
	t.Cleanup(func() { _ = l.Close(); c.set(true) })
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			go c.carry(from)
		}
	}()
	return c
}

func (c *cable) carry(from net.Conn) {
	to, err := net.Dial("tcp", c.to)
	if err != nil {
		_ = from.Close()
		return
	}
	c.mu.Lock()
	c.open = append(c.open, from, to)
	cut := c.cut
	c.mu.Unlock()
	if cut {
		c.set(true)
	}
	go func() { _, _ = io.Copy(to, from); _ = to.Close() }()
	_, _ = io.Copy(from, to)
	_ = from.Close()
}

// set cuts the cable or mends it.
func (c *cable) set(cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = cut
	if cut {
		for _, conn := range c.open {
			_ = conn.Close()
		}
		c.open = nil
	}
}

// deployment is a ratelimit with its Redis, its mesh and its root.
type deployment struct {
	*Service

	root    *pkitest.Root
	config  Config
	rt      *service.Runtime
	cable   *cable // on which the other region is reached
	stop    func()
	running bool
}

// twoRegions starts two that keep limits together.
func twoRegions(t *testing.T, policies map[string]proto.Message) (east, west *deployment) {
	t.Helper()
	dir := t.TempDir()
	sockets, err := os.MkdirTemp("", "rl") //nolint:usetesting // t.TempDir is too long a path for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(sockets) })
	both := map[string]*deployment{}
	for _, name := range []string{"east", "west"} {
		d := &deployment{root: pkitest.NewRoot(t, name+".example")}
		both[name] = d
		own := filepath.Join(dir, name)
		if err := os.Mkdir(own, 0o700); err != nil {
			t.Fatal(err)
		}
		writeFile(t, own+".pem", string(d.root.PEM()))
		certPEM, keyPEM := d.root.Issue(t, pkitest.Leaf("spiffe://"+name+".example/writ/ratelimit", time.Hour))
		writeFile(t, filepath.Join(own, "identity.pem"), string(certPEM)+string(keyPEM))
		c := DefaultConfig()
		c.Listen, c.Pilot = proctest.Address(t), "127.0.0.1:1"
		c.Credential = credential.Config{CA: "127.0.0.1:1", TrustBundle: own + ".pem", TokenFile: "unused", Dir: own, TrustDomain: name + ".example"}
		// Patient, so that a busy machine does not make a replica decide alone.
		c.Redis.Address, c.Redis.Timeout = redistest.Start(t).Address(), config.Duration(time.Second)
		c.Admin = "unix://" + filepath.Join(sockets, name)
		c.Regions.Name, c.Regions.Listen, c.Regions.Shares = name, proctest.Address(t), map[string]int{"east": 1, "west": 1}
		d.config = c
	}
	for name, other := range map[string]string{"east": "west", "west": "east"} {
		d := both[name]
		d.cable = newCable(t, both[other].config.Regions.Listen)
		d.config.Regions.Peers = []regions.Peer{{
			Name: other, Address: d.cable.listener.Addr().String(), TrustDomain: other + ".example", TrustBundle: filepath.Join(dir, other+".pem"),
		}}
		d.start(t, policies)
	}
	return both["east"], both["west"]
}

func (d *deployment) start(t *testing.T, policies map[string]proto.Message) {
	t.Helper()
	if err := d.config.Validate(); err != nil {
		t.Fatal(err)
	}
	d.rt = runtime()
	s, err := New(d.config, d.rt)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.apply(policies); err != nil {
		t.Fatal(err)
	}
	d.Service = s
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	d.running = true
	d.stop = func() {
		if !d.running {
			return
		}
		d.running = false
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	}
	t.Cleanup(func() { d.stop() })
}

// hears waits until the other region answers.
func (d *deployment) hears(t *testing.T, want bool) {
	t.Helper()
	proctest.Until(t, 20*time.Second, "the other region", func() bool {
		return strings.Contains(d.declared(t), " answered ") == want
	})
}

// declared is what operators are told.
func (d *deployment) declared(t *testing.T) string {
	t.Helper()
	state, err := (&admin{server: d.server, log: d.log}).GetCounter(t.Context(), &ratelimitpb.GetCounterRequest{Key: "default/q/0?source.principal=nobody"})
	if err != nil {
		t.Fatal(err)
	}
	return state.GetCounted()
}

// passages are when requests of one caller passed: somewhere between these.
type passages struct {
	mu  sync.Mutex
	all [][2]time.Time
}

// ask is a request; true if it passes.
func (p *passages) ask(t *testing.T, d *deployment, index int, caller string) bool {
	t.Helper()
	from := time.Now()
	resp, err := d.server.ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: "writ", Descriptors: []*commonv3.RateLimitDescriptor{quotaDesc("q", index, caller)}})
	if err != nil {
		t.Error(err)
		return false
	}
	if resp.GetOverallCode() != rlsv3.RateLimitResponse_OK {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, [2]time.Time{from, time.Now()})
	return true
}

// surely is how many passed at least within any stretch of time as long as the window.
func (p *passages) surely(window time.Duration) (most int) {
	slices.SortFunc(p.all, func(a, b [2]time.Time) int { return a[0].Compare(b[0]) })
	for i, first := range p.all {
		end, n := first[0].Add(window), 0
		for _, x := range p.all[i:] {
			if !x[0].Before(end) {
				break
			}
			if x[1].Before(end) {
				n++
			}
		}
		most = max(most, n)
	}
	return most
}

// exactly asks until want passed, and then that no more do.
func (p *passages) exactly(t *testing.T, d *deployment, caller string, want int) {
	t.Helper()
	n := 0
	proctest.Until(t, 20*time.Second, fmt.Sprintf("%d that pass in %s", want, d.config.Regions.Name), func() bool {
		if p.ask(t, d, 0, caller) {
			n++
		}
		return n >= want
	})
	for range 20 {
		if p.ask(t, d, 0, caller) {
			n++
		}
	}
	if n != want {
		t.Errorf("%d pass in %s, want %d", n, d.config.Regions.Name, want)
	}
}

// TestTwoRegions: two deployments with roots of their own and a Redis each keep a limit
// together, over real connections: 4 an hour, then cut off, then after a restart.
func TestTwoRegions(t *testing.T) {
	policies := map[string]proto.Message{"default/q": policy("q", false, per(4, time.Hour))}
	east, west := twoRegions(t, policies)
	east.hears(t, true)
	west.hears(t, true)
	var together passages
	together.exactly(t, east, "a", 3) // its part, and half of the other's
	together.exactly(t, west, "a", 1)
	if n := len(together.all); n != 4 {
		t.Errorf("%d pass of 4", n)
	}
	if text := east.declared(t); !strings.Contains(text, "region east has 2 of 4 and borrows for 10s at a time: in all regions no more than the limit passes, 2 here if cut off; west answered ") {
		t.Errorf("operators are told: %s", text)
	}
	if all, err := (&admin{server: east.server}).ListLimits(t.Context(), &ratelimitpb.ListLimitsRequest{}); err != nil || len(all.GetLimits()) != 1 || !strings.Contains(all.GetLimits()[0].GetCounted(), "region east has 2 of 4") {
		t.Errorf("the policy declares %v, %v", all, err)
	}
	if n := metric(t, east.rt.Metrics, "writ_ratelimit_region_borrowed_hits_total", "west"); n < 1 || metric(t, west.rt.Metrics, "writ_ratelimit_region_lent_hits_total", "east") != n {
		t.Errorf("%v hits are borrowed by the metrics", n)
	}

	east.cable.set(true)
	west.cable.set(true)
	east.hears(t, false)
	west.hears(t, false)
	var apart passages
	apart.exactly(t, west, "b", 2)
	apart.exactly(t, east, "b", 2)
	if text := east.declared(t); !strings.Contains(text, "west is away for ") {
		t.Errorf("operators are told: %s", text)
	}

	east.cable.set(false)
	west.cable.set(false)
	west.stop() // killed and started anew: its Redis has what it let pass and lent
	west.start(t, policies)
	east.hears(t, true)
	west.hears(t, true)
	together.exactly(t, west, "a", 0)
	together.exactly(t, east, "a", 0)
	var anew passages
	anew.exactly(t, west, "c", 3)
	anew.exactly(t, east, "c", 1)
}

// TestTwoRegionsUnderLoad: more than the limit is asked for in both regions while the
// way between them is cut and mended, of a leased limit and an exact one.
func TestTwoRegionsUnderLoad(t *testing.T) {
	const limited, window, length = 1500, 2 * time.Second, 3 * time.Second
	leased := per(limited, window)
	leased.Mode = configpb.QuotaLeased
	east, west := twoRegions(t, map[string]proto.Message{"default/q": policy("q", false, per(limited, window), leased)})
	east.hears(t, true)
	west.hears(t, true)
	var passed [2]passages
	end := time.Now().Add(length)
	var wg sync.WaitGroup
	for _, d := range []*deployment{east, west} {
		for index := range passed {
			wg.Go(func() {
				tick := time.NewTicker(time.Millisecond)
				defer tick.Stop()
				for i := 0; time.Now().Before(end); i++ {
					// East asks for more than its part, west by turns for nothing and for much.
					if d == east || i/500%2 == 0 {
						passed[index].ask(t, d, index, "a")
					}
					<-tick.C
				}
			})
		}
	}
	wg.Go(func() {
		for cut := true; time.Now().Before(end); cut = !cut {
			<-time.After(700 * time.Millisecond)
			east.cable.set(cut)
			west.cable.set(cut)
		}
	})
	wg.Wait()
	for index := range passed {
		if n := passed[index].surely(window); n > limited {
			t.Errorf("limit %d: %d passed within %s, the limit is %d", index, n, window, limited)
		}
	}
	t.Logf("%d and %d passed, %v were borrowed", len(passed[0].all), len(passed[1].all), metric(t, east.rt.Metrics, "writ_ratelimit_region_borrowed_hits_total", "west"))
}

// TestOnlyRegionsMayBorrow: exactly the ratelimit of a region that is named, by the
// roots of that region's trust domain.
func TestOnlyRegionsMayBorrow(t *testing.T) {
	east, west := twoRegions(t, map[string]proto.Message{"default/q": policy("q", false, per(4, time.Hour))})
	east.hears(t, true)
	third := pkitest.NewRoot(t, "north.example")
	call := func(root *pkitest.Root, id string) codes.Code {
		creds := credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}) //nolint:gosec // the server's identity is not what this test is about
		if root != nil {
			cert := root.Pair(t, pkitest.Leaf(id, time.Hour))
			creds = credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}) //nolint:gosec // as above
		}
		conn, err := grpc.NewClient(east.config.Regions.Listen, grpc.WithTransportCredentials(creds))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		client := ratelimitpb.NewRegionsClient(conn)
		_, err = client.Borrow(ctx, &ratelimitpb.BorrowRequest{Division: "east=1,west=1", Asks: []*ratelimitpb.Ask{{Counter: "default/q/0?source.principal=x", Hits: 1}}})
		if _, again := client.Return(ctx, &ratelimitpb.ReturnRequest{}); status.Code(again) != status.Code(err) {
			t.Errorf("%s: Borrow %v, Return %v", id, err, again)
		}
		return status.Code(err)
	}
	for _, c := range []struct {
		name string
		root *pkitest.Root
		id   string
		want codes.Code
	}{
		{"west", west.root, "spiffe://west.example/writ/ratelimit", codes.OK},
		{"a workload of west", west.root, "spiffe://west.example/ns/a/sa/b", codes.Unavailable},
		{"another service of west", west.root, "spiffe://west.example/writ/authz", codes.Unavailable},
		{"a workload of its own", east.root, "spiffe://east.example/ns/a/sa/b", codes.Unavailable},
		{"west's root in the name of east", west.root, "spiffe://east.example/writ/ratelimit", codes.Unavailable},
		{"east's root in the name of west", east.root, "spiffe://west.example/writ/ratelimit", codes.Unavailable},
		{"a region that is not named", third, "spiffe://north.example/writ/ratelimit", codes.Unavailable},
		{"somebody else in the name of west", third, "spiffe://west.example/writ/ratelimit", codes.Unavailable},
		{"nobody", nil, "", codes.Unavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := call(c.root, c.id); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

func TestRegionsConfig(t *testing.T) {
	full := credential.Config{CA: "127.0.0.1:8443", TrustBundle: "b", TokenFile: "t", Dir: "d", TrustDomain: "cluster.local"}
	good := func(c *regions.Config) {
		*c = regions.Config{
			Name: "east", Listen: "10.0.0.1:8082", Lend: 50, Shares: map[string]int{"east": 2, "west": 1},
			Peers: []regions.Peer{{Name: "west", Address: "10.0.1.1:8082"}},
		}
	}
	for _, c := range []struct {
		name string
		edit func(*regions.Config)
		want string // "" is valid
	}{
		{"none", func(c *regions.Config) { *c = regions.Config{Lend: 50} }, ""},
		{"two", func(*regions.Config) {}, ""},
		{"with roots of its own", func(c *regions.Config) { c.Peers[0].TrustDomain, c.Peers[0].TrustBundle = "west.example", "w.pem" }, ""},
		{"no name", func(c *regions.Config) { c.Name = "" }, "regions.name: is missing"},
		{"a name that is none", func(c *regions.Config) { c.Shares["West"] = 1 }, `region "West"`},
		{"no address to listen on", func(c *regions.Config) { c.Listen = "" }, "regions.listen"},
		{"a socket", func(c *regions.Config) { c.Listen = "unix:///run/r" }, "regions.listen"},
		{"more than all", func(c *regions.Config) { c.Lend = 101 }, "regions.lend 101"},
		{"one share", func(c *regions.Config) { c.Shares = map[string]int{"east": 1} }, "regions.shares: 1 regions"},
		{"no share of its own", func(c *regions.Config) { c.Shares = map[string]int{"north": 1, "west": 1} }, "this region, east, has none"},
		{"no weight", func(c *regions.Config) { c.Shares["west"] = 0 }, "shares.west: 0 is not between"},
		{"a region without address", func(c *regions.Config) { c.Shares["north"] = 1 }, "regions.peers: has 1 regions, shares 2 others"},
		{"itself", func(c *regions.Config) { c.Peers[0].Name = "east" }, "regions.peers[0].name"},
		{"twice", func(c *regions.Config) { c.Peers = append(c.Peers, c.Peers[0]) }, "regions.peers[1].name"},
		{"no port", func(c *regions.Config) { c.Peers[0].Address = "west" }, "regions.peers[0].address"},
		{"roots of nobody", func(c *regions.Config) { c.Peers[0].TrustBundle = "w.pem" }, "regions.peers[0].trust_bundle"},
		{"no trust domain", func(c *regions.Config) { c.Peers[0].TrustDomain, c.Peers[0].TrustBundle = "a b", "w.pem" }, "regions.peers[0].trust_domain"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := DefaultConfig()
			cfg.Pilot, cfg.Credential = "127.0.0.1:15012", full
			good(&cfg.Regions)
			c.edit(&cfg.Regions)
			err := cfg.Validate()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
	cfg := DefaultConfig()
	cfg.Descriptors = t.TempDir()
	good(&cfg.Regions)
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "regions: are for QuotaPolicies") {
		t.Errorf("with descriptors: %v", err)
	}
}
