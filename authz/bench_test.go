package authz

import (
	"context"
	"log/slog"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/writ-mesh/writ/internal/listen"
	"github.com/writ-mesh/writ/internal/peercred"
	"github.com/writ-mesh/writ/internal/rpc"
	"github.com/writ-mesh/writ/internal/service"
)

// benchPolicy decides by path, method, header and principal.
const benchPolicy = `
default allow := false
allow if {
	input.attributes.request.http.method == "GET"
	input.parsed_path[0] == "ratings"
	input.attributes.request.http.headers["x-role"] == "reader"
	input.attributes.source.principal == "spiffe://cluster.local/ns/default/sa/reviews"
}`

// benchFingerprint has the length of those that pilot makes.
const benchFingerprint = "0123456789abcdef0123456789abcdef"

// empty is the floor: a server that does nothing.
type empty struct {
	authv3.UnimplementedAuthorizationServer
}

func (empty) Check(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return &authv3.CheckResponse{Status: &status.Status{}}, nil
}

// BenchmarkCheck is a decision without the network.
func BenchmarkCheck(b *testing.B) {
	m := newMesh(b, func(c *Config) { c.Decision.Log = logRefusals })
	m.apply(b, content("default/bench", benchFingerprint, benchPolicy))
	req := benchRequest()
	b.ReportAllocs()
	defer reportCPU(b)()
	for b.Loop() {
		if r, _ := m.Check(context.Background(), req); !allowed(r) {
			b.Fatal(r)
		}
	}
}

// BenchmarkCheckNew is a decision about an input that did not come before.
func BenchmarkCheckNew(b *testing.B) {
	m := newMesh(b, func(c *Config) { c.Decision.Log = logRefusals })
	m.apply(b, content("default/bench", benchFingerprint, benchPolicy))
	go func() { _ = m.asks.workers.Run(b.Context()) }()
	req := benchRequest()
	b.ReportAllocs()
	defer reportCPU(b)()
	for n := 0; b.Loop(); n++ {
		req.Attributes.Request.Http.Path = "/ratings/" + strconv.Itoa(n)
		if r, _ := m.Check(context.Background(), req); !allowed(r) {
			b.Fatal(r)
		}
	}
}

// BenchmarkServer compares the whole server with the floor, client and all, over
// a unix socket. Compare the two figures of one run only.
func BenchmarkServer(b *testing.B) {
	m := newMesh(b, func(c *Config) { c.Decision.Log = logRefusals })
	m.apply(b, content("default/bench", benchFingerprint, benchPolicy))
	methods := rpc.Methods{authv3.Authorization_Check_FullMethodName: rpc.SameUser()}
	for _, c := range []struct {
		name string
		make func() *grpc.Server
		impl authv3.AuthorizationServer
	}{
		{"floor", func() *grpc.Server { return grpc.NewServer() }, empty{}},
		{"authz", func() *grpc.Server {
			return rpc.NewServer(peercred.Credentials(), methods, &service.Runtime{Log: slog.New(slog.DiscardHandler)}, serverOptions(4<<20)...)
		}, m.server},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := c.make()
			authv3.RegisterAuthorizationServer(s, c.impl)
			addr := "unix://" + filepath.Join(b.TempDir(), "s")
			l, err := listen.Listen(addr)
			if err != nil {
				b.Fatal(err)
			}
			go func() { _ = s.Serve(l) }()
			b.Cleanup(s.Stop)
			conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = conn.Close() })
			client, req := authv3.NewAuthorizationClient(conn), benchRequest()
			b.SetParallelism(16)
			defer reportCPU(b)()
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					if _, err := client.Check(context.Background(), req); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// reportCPU measures the processor time of the process, which a busy machine
// changes less than wall time. Call what it returns at the end.
func reportCPU(b *testing.B) func() {
	b.Helper()
	used := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	start := used()
	return func() { b.ReportMetric(float64(used()-start)/float64(b.N), "cpu-ns/op") }
}

func benchRequest() *authv3.CheckRequest {
	return checkRequest("default/bench@"+benchFingerprint, func(a *authv3.AttributeContext) {
		for k, v := range map[string]string{
			":authority": "ratings:9080", ":method": "GET", ":path": "/ratings/7", ":scheme": "http", "accept": "*/*",
			"user-agent": "curl/8", "x-forwarded-proto": "http", "x-request-id": "5e2c5f9e-3c4c-4a7e-9d3c-0c1b2a3d4e5f", "x-b3-traceid": "463ac35c9f6413ad48485a3953bb6124",
			"x-b3-spanid": "a2fb4a1d1a96d312", "x-b3-sampled": "1", "content-length": "0",
		} {
			a.Request.Http.Headers[k] = v
		}
	})
}
