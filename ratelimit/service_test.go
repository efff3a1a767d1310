package ratelimit

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-mesh/writ/internal/config"
	"github.com/writ-mesh/writ/internal/credential"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/internal/service"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/redistest"
)

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

const oneLimit = "domain: d\ndescriptors:\n- key: k\n  rate_limit: {unit: day, requests_per_unit: %d}\n"

// start runs a service until the test ends.
func start(t *testing.T, c Config) (*Service, *service.Runtime) {
	t.Helper()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	rt := runtime()
	s, err := New(c, rt)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return s, rt
}

func dial(t *testing.T, addr string) rlsv3.RateLimitServiceClient {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return rlsv3.NewRateLimitServiceClient(conn)
}

func call(ctx context.Context, client rlsv3.RateLimitServiceClient, value string) (*rlsv3.RateLimitResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return client.ShouldRateLimit(ctx, &rlsv3.RateLimitRequest{Domain: "d", Descriptors: []*commonv3.RateLimitDescriptor{desc("k", value)}}, grpc.WaitForReady(true))
}

func TestAloneOverTCPAndUnix(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "d.yaml"), fmt.Sprintf(oneLimit, 1))
	socket, err := os.MkdirTemp("", "rl") //nolint:usetesting // t.TempDir is too long a path for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(socket) })
	for _, listen := range []string{proctest.Address(t), "unix://" + socket + "/s"} {
		c := DefaultConfig()
		c.Listen, c.Descriptors = listen, dir
		_, rt := start(t, c)
		client := dial(t, listen)
		for i, want := range []rlsv3.RateLimitResponse_Code{rlsv3.RateLimitResponse_OK, rlsv3.RateLimitResponse_OVER_LIMIT} {
			resp, err := call(t.Context(), client, "v")
			if err != nil || resp.GetOverallCode() != want {
				t.Errorf("%s, call %d: %v, %v", listen, i, resp, err)
			}
		}
		if err := rt.Health.Ready(); err != nil {
			t.Errorf("%s: not ready: %v", listen, err)
		}
	}
}

// TestInvalidUTF8: protobuf refuses such a request before it gets to a handler.
func TestInvalidUTF8(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "d.yaml"), fmt.Sprintf(oneLimit, 1))
	c := DefaultConfig()
	c.Listen, c.Descriptors = proctest.Address(t), dir
	start(t, c)
	conn, err := grpc.NewClient(c.Listen, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	err = conn.Invoke(t.Context(), rlsv3.RateLimitService_ShouldRateLimit_FullMethodName, []byte("\x0a\x02\xff\xfe"), &rlsv3.RateLimitResponse{},
		grpc.ForceCodec(rawCodec{}), grpc.WaitForReady(true))
	if status.Code(err) == codes.OK {
		t.Error("a domain that is no UTF-8 was answered")
	}
	if _, err := call(t.Context(), rlsv3.NewRateLimitServiceClient(conn), "v"); err != nil {
		t.Errorf("the next call: %v", err)
	}
}

// rawCodec sends bytes as they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("%T is not bytes", v)
	}
	return b, nil
}

func (rawCodec) Unmarshal(data []byte, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is no message", v)
	}
	return proto.Unmarshal(data, m)
}

func TestDescriptorsAreWatched(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "d.yaml")
	writeFile(t, file, fmt.Sprintf(oneLimit, 1))
	c := DefaultConfig()
	c.Listen, c.Descriptors = proctest.Address(t), dir
	_, rt := start(t, c)
	client := dial(t, c.Listen)
	limitIs := func(want uint32) func() error {
		return func() error {
			resp, err := call(t.Context(), client, fmt.Sprint("v", time.Now().UnixNano()))
			if err != nil {
				return err
			}
			if got := resp.GetStatuses()[0].GetCurrentLimit().GetRequestsPerUnit(); got != want {
				return fmt.Errorf("limit is %d, want %d", got, want)
			}
			return nil
		}
	}
	proctest.Eventually(t, 20*time.Second, limitIs(1))
	writeFile(t, file, fmt.Sprintf(oneLimit, 7))
	proctest.Eventually(t, 20*time.Second, limitIs(7))

	writeFile(t, file, "domain: d\ndescriptor: []")
	if err := os.Mkdir(filepath.Join(dir, "more"), 0o700); err != nil {
		t.Fatal(err)
	}
	proctest.Until(t, 20*time.Second, "the refusal", func() bool { return metric(t, rt.Metrics, "writ_ratelimit_config_rejected_total") > 0 })
	if err := limitIs(7)(); err != nil {
		t.Errorf("after a broken edit: %v", err)
	}
	writeFile(t, filepath.Join(dir, "more", "e.yaml"), strings.ReplaceAll(fmt.Sprintf(oneLimit, 3), "domain: d", "domain: e"))
	writeFile(t, file, fmt.Sprintf(oneLimit, 9))
	proctest.Eventually(t, 20*time.Second, limitIs(9))
}

func TestRedisIsShared(t *testing.T) {
	server := redistest.Start(t)
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "d.yaml"), fmt.Sprintf(oneLimit, 20))
	var clients []rlsv3.RateLimitServiceClient
	for range 2 {
		c := DefaultConfig()
		c.Listen, c.Descriptors, c.Redis.Address = proctest.Address(t), dir, server.Address()
		c.Redis.Timeout = config.Duration(time.Second)
		start(t, c)
		clients = append(clients, dial(t, c.Listen))
	}
	passed := 0
	for i := range 60 {
		resp, err := call(t.Context(), clients[i%2], "v")
		if err != nil {
			t.Fatal(err)
		}
		if resp.GetOverallCode() == rlsv3.RateLimitResponse_OK {
			passed++
		}
	}
	if passed != 20 {
		t.Errorf("%d passed of a shared limit of 20", passed)
	}
}

func TestPoliciesFromPilot(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	c := DefaultConfig()
	c.Pilot, c.State = "127.0.0.1:1", state
	open := func() (*Service, *service.Runtime) {
		rt := runtime()
		s, err := New(c, rt)
		if err != nil {
			t.Fatal(err)
		}
		rt.Health.Set("listener", nil) // there is none here
		return s, rt
	}
	s, rt := open()
	if rt.Health.Ready() == nil {
		t.Error("ready without policies")
	}
	good := policy("q", false, per(1, time.Minute))
	if err := s.apply(map[string]proto.Message{"default/q": good}); err != nil {
		t.Fatal(err)
	}
	if err := rt.Health.Ready(); err != nil {
		t.Errorf("not ready with policies: %v", err)
	}
	bad := policy("q", false, &configpb.Limit{Requests: 1, Every: durationpb.New(-1)})
	bad.Source = "quota.yaml:7"
	if err := s.apply(map[string]proto.Message{"default/q": bad}); err == nil || !strings.Contains(err.Error(), "quota.yaml:7") {
		t.Errorf("a bad policy: %v, want a refusal with its place", err)
	}
	ask(t, s.server, "writ", quotaDesc("q", 0, "a"))
	if resp := ask(t, s.server, "writ", quotaDesc("q", 0, "a")); resp.GetOverallCode() != rlsv3.RateLimitResponse_OVER_LIMIT {
		t.Error("the last good policy does not stay")
	}

	s, rt = open() // pilot is away
	ask(t, s.server, "writ", quotaDesc("q", 0, "a"))
	if resp := ask(t, s.server, "writ", quotaDesc("q", 0, "a")); resp.GetOverallCode() != rlsv3.RateLimitResponse_OVER_LIMIT || rt.Health.Ready() != nil {
		t.Error("a restart without pilot forgets the policies")
	}
	if err := s.apply(nil); err != nil {
		t.Fatal(err)
	}
	if got := metric(t, rt.Metrics, "writ_ratelimit_limits"); got != 0 {
		t.Errorf("%v limits in force, want none", got)
	}

	writeFile(t, filepath.Join(state, stateFile), "{corrupt")
	if _, rt = open(); rt.Health.Ready() == nil {
		t.Error("ready with a corrupt state")
	}
}

func TestConfig(t *testing.T) {
	dir := t.TempDir()
	full := credential.Config{CA: "127.0.0.1:8443", TrustBundle: "b", TokenFile: "t", Dir: "d", TrustDomain: "cluster.local"}
	for _, c := range []struct {
		name string
		edit func(*Config)
		want string // "" is valid
	}{
		{"alone", func(c *Config) { c.Descriptors = dir }, ""},
		{"in the mesh", func(c *Config) { c.Pilot, c.Credential = "127.0.0.1:15012", full }, ""},
		{"in the mesh, anywhere", func(c *Config) { c.Pilot, c.Credential, c.Listen = "pilot:15012", full, "0.0.0.0:8081" }, ""},
		{"redis by socket", func(c *Config) { c.Descriptors, c.Redis.Address = dir, "unix:///run/redis.sock" }, ""},
		{"a management server", func(c *Config) { c.ConfigServer.Address = "127.0.0.1:18000" }, ""},
		{"a far management server", func(c *Config) { c.ConfigServer.Address = "10.0.0.1:18000" }, "or set config_server.tls"},
		{"two sources", func(c *Config) { c.Descriptors, c.ConfigServer.Address = dir, "127.0.0.1:18000" }, "config_server.address and descriptors are both set"},
		{"operators", func(c *Config) { c.Descriptors, c.Admin = dir, "unix:///run/admin" }, ""},
		{"operators from afar", func(c *Config) { c.Descriptors, c.Admin = dir, "127.0.0.1:1" }, "admin: 127.0.0.1:1: is for this machine only"},
		{"a header without a name", func(c *Config) { c.Descriptors, c.DropIn.Headers.Limit = dir, "" }, `drop_in.headers.limit ""`},
		{"a header that is none", func(c *Config) { c.Descriptors, c.DropIn.Headers.Reset = dir, "a b" }, `drop_in.headers.reset "a b"`},
		{"a long prefix", func(c *Config) { c.Descriptors, c.DropIn.KeyPrefix = dir, strings.Repeat("x", 257) }, "drop_in.key_prefix"},
		{"nothing to do", func(*Config) {}, "nothing to enforce"},
		{"both", func(c *Config) { c.Descriptors, c.Pilot, c.Credential = dir, "p:1", full }, "both set"},
		{"no credential", func(c *Config) { c.Pilot = "p:1" }, "credential: missing"},
		{"plain text for all", func(c *Config) { c.Descriptors, c.Listen = dir, "0.0.0.0:8081" }, "plain text"},
		{"plain text by name", func(c *Config) { c.Descriptors, c.Listen = dir, "example.org:8081" }, "plain text"},
		{"no folder", func(c *Config) { c.Descriptors = dir + "/none" }, "is not a folder"},
		{"no keys", func(c *Config) { c.Descriptors, c.Memory.MaxKeys = dir, 0 }, "memory.max_keys"},
		{"leased policies", func(c *Config) { c.Pilot, c.Credential, c.Mode = "pilot:15012", full, "leased" }, "a QuotaPolicy says it"},
		{"sentinel", func(c *Config) {
			c.Descriptors, c.Redis.Sentinel = dir, SentinelConfig{Master: "m", Addresses: []string{"s:26379"}}
		}, ""},
		{"cluster", func(c *Config) { c.Descriptors, c.Redis.Cluster.Addresses = dir, []string{"a:1", "b:1"} }, ""},
		{"two kinds of redis", func(c *Config) {
			c.Descriptors, c.Redis.Address, c.Redis.Cluster.Addresses = dir, "r:1", []string{"a:1"}
		}, "want one of address, sentinel and cluster"},
		{"sentinel without master", func(c *Config) { c.Descriptors, c.Redis.Sentinel.Addresses = dir, []string{"s:1"} }, "redis.sentinel.master"},
		{"sentinel without addresses", func(c *Config) { c.Descriptors, c.Redis.Sentinel.Master = dir, "m" }, "redis.sentinel.addresses"},
		{"sentinel address", func(c *Config) {
			c.Descriptors, c.Redis.Sentinel = dir, SentinelConfig{Master: "m", Addresses: []string{"s"}}
		}, "is not host:port"},
		{"cluster with a database", func(c *Config) { c.Descriptors, c.Redis.Cluster.Addresses, c.Redis.DB = dir, []string{"a:1"}, 1 }, "no databases but 0"},
		{"redis without address", func(c *Config) { c.Descriptors, c.Redis.TLS = dir, true }, "redis.address"},
		{"redis address", func(c *Config) { c.Descriptors, c.Redis.Address = dir, "redis" }, "redis.address"},
		{"redis timeout", func(c *Config) { c.Descriptors, c.Redis.Timeout = dir, 0 }, "redis.timeout"},
		{"roots without TLS", func(c *Config) { c.Descriptors, c.Redis.Address, c.Redis.CAFile = dir, "r:1", "f" }, "redis.ca_file"},
		{"socket mode", func(c *Config) { c.Descriptors, c.SocketMode = dir, "9" }, "socket_mode"},
		{"pilot", func(c *Config) { c.Pilot, c.Credential = "pilot", full }, "pilot: address"},
		{"listen", func(c *Config) { c.Descriptors, c.Listen = dir, "8081" }, "listen"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := DefaultConfig()
			c.edit(&cfg)
			err := cfg.Validate()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestModeFlag(t *testing.T) {
	dir := t.TempDir()
	for mode, ok := range map[string]bool{"exact": true, "leased": true, "lax": false, "assigned": false, "": false} {
		c := DefaultConfig()
		flags := flag.NewFlagSet("writ-ratelimit", flag.ContinueOnError)
		flags.SetOutput(io.Discard)
		c.Flags(flags)
		if err := flags.Parse([]string{"-descriptors", dir, "-mode", mode}); err != nil {
			t.Fatal(err)
		}
		if err := c.Validate(); (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "want exact or leased") {
			t.Errorf("%s: %v", mode, err)
		}
		if leased := c.mode() == limit.Leased; leased != (mode == "leased") {
			t.Errorf("%s is taken for leased: %v", mode, leased)
		}
	}
}

func TestBrokenDescriptorsAtStart(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "a.yaml"), "domain: [")
	c := DefaultConfig()
	c.Descriptors = dir
	if _, err := New(c, runtime()); err == nil || !strings.Contains(err.Error(), "a.yaml:1") {
		t.Errorf("only a broken file: %v", err)
	}
	writeFile(t, filepath.Join(dir, "b.yaml"), fmt.Sprintf(oneLimit, 1))
	if _, err := New(c, runtime()); err != nil {
		t.Errorf("one broken and one good file: %v", err)
	}
}
