package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	rlqsv3 "github.com/envoyproxy/go-control-plane/envoy/service/rate_limit_quota/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/internal/proctest"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	"github.com/writ-mesh/writ/ratelimit/assign"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/memory"
	"github.com/writ-mesh/writ/ratelimit/quota"
)

// serveAssigned serves assignments of the limit default/q/0, so many requests an hour
// by principal, on a socket.
func serveAssigned(t *testing.T, requests uint32) (*Server, *memory.Store, string) {
	t.Helper()
	table, err := quota.New(map[string]*configpb.QuotaPolicy{"default/q": {Name: "q", Namespace: "default", Limits: []*configpb.Limit{{
		Per: []string{"source.principal"}, Requests: requests, Every: durationpb.New(time.Hour), Mode: configpb.QuotaAssigned,
	}}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	store := memory.New(1000)
	s := &Server{store: store, now: time.Now, metrics: newMetrics(prometheus.NewRegistry(), store)}
	s.quotas.Store(table)
	dir, err := os.MkdirTemp("", "rl") //nolint:usetesting // t.TempDir is too long a path for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	rlqsv3.RegisterRateLimitQuotaServiceServer(g, newAssignedServer(s, slog.New(slog.DiscardHandler)))
	done := make(chan struct{})
	go func() { _ = g.Serve(l); close(done) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return s, store, socket
}

// A real Envoy passes what it is assigned, all of the limit and not one more, asks for
// no request, and goes on by itself when ratelimit is gone.
func TestEnvoyKeepsWhatItIsAssigned(t *testing.T) {
	t.Parallel()
	const requests = 40
	config, err := os.ReadFile("testdata/assigned.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for i, envoy := range envoytest.All(t) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			_, store, socket := serveAssigned(t, requests)
			address := proctest.Address(t)
			_, port, err := net.SplitHostPort(address)
			if err != nil {
				t.Fatal(err)
			}
			bootstrap := filepath.Join(t.TempDir(), "envoy.yaml")
			writeFile(t, bootstrap, strings.NewReplacer("LISTEN", port, "SOCKET", socket).Replace(string(config)))
			envoytest.Run(t, envoy, bootstrap)
			var passed, refused int
			proctest.Eventually(t, 60*time.Second, func() error {
				code, err := get(t.Context(), "http://"+address)
				switch {
				case err != nil:
					return err
				case code == http.StatusOK:
					passed++
				case code == http.StatusTooManyRequests:
					refused++
				default:
					return fmt.Errorf("status %d", code)
				}
				if passed < requests {
					return fmt.Errorf("%d of %d passed, %d were refused", passed, requests, refused)
				}
				return nil
			})
			for range 200 {
				code, err := get(t.Context(), "http://"+address)
				if err != nil || code != http.StatusTooManyRequests {
					t.Fatalf("after all of the limit: status %d, %v", code, err)
				}
			}
			out := make([]limit.Outcome, 1)
			rule, err := limit.New(limit.Sliding, requests, time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			key := "writ:{default/q}:0:" + limit.Sliding.Code() + "&source.principal=-"
			if err := store.Decide(t.Context(), time.Now(), []limit.Use{{Key: key, Limit: rule, HoldFor: time.Second, Observe: true}}, out); err != nil || out[0].Remaining != 0 {
				t.Errorf("%d left in the store, %v", out[0].Remaining, err)
			}
		})
	}
}

func get(ctx context.Context, url string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// What a proxy says that it may not, or that makes no sense, is answered.
func TestBadReports(t *testing.T) {
	t.Parallel()
	_, _, socket := serveAssigned(t, 10)
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	open := func() rlqsv3.RateLimitQuotaService_StreamRateLimitQuotasClient {
		stream, err := rlqsv3.NewRateLimitQuotaServiceClient(conn).StreamRateLimitQuotas(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	report := func(domain string, names ...string) *rlqsv3.RateLimitQuotaUsageReports {
		r := &rlqsv3.RateLimitQuotaUsageReports{Domain: domain}
		for _, name := range names {
			r.BucketQuotaUsages = append(r.BucketQuotaUsages, &rlqsv3.RateLimitQuotaUsageReports_BucketQuotaUsage{
				BucketId: &rlqsv3.BucketId{Bucket: map[string]string{configpb.QuotaCounterKey: name}}, NumRequestsAllowed: 1,
			})
		}
		return r
	}
	for _, domain := range []string{"", "other"} {
		stream := open()
		if err := stream.Send(report(domain)); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("domain %q: %v", domain, err)
		}
	}
	stream := open()
	names := []string{
		"default/q/0?source.principal=a", "default/q/1?source.principal=a", "default/q/0", "default/q/0?source.principal=a&source.principal=b",
		"default/none/0?source.principal=a", "x", "default/q/0?source.principal=%zz",
	}
	bad := report(configpb.QuotaDomain, names...)
	bad.BucketQuotaUsages = append(bad.BucketQuotaUsages, &rlqsv3.RateLimitQuotaUsageReports_BucketQuotaUsage{}, nil)
	if err := stream.Send(bad); err != nil {
		t.Fatal(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	// The first is told twice: nothing, and then its lump.
	if len(resp.GetBucketAction()) != len(names)+1 {
		t.Fatalf("%d answers for %d names", len(resp.GetBucketAction()), len(names))
	}
	for i, a := range resp.GetBucketAction()[1:] {
		lump := a.GetQuotaAssignmentAction().GetRateLimitStrategy().GetTokenBucket().GetMaxTokens()
		if name := a.GetBucketId().GetBucket()[configpb.QuotaCounterKey]; name != names[i] || (lump > 0) != (i == 0) || (a.GetAbandonAction() != nil) != (i > 0) {
			t.Errorf("%s: %v", names[i], a)
		}
	}
}

// A proxy with as many buckets as it may have, for callers with long names, can report
// all of them.
func TestReportOfAllBucketsFits(t *testing.T) {
	t.Parallel()
	r := &rlqsv3.RateLimitQuotaUsageReports{Domain: configpb.QuotaDomain}
	for i := range assign.MaxBuckets {
		name := fmt.Sprintf("default/%s/0?source.principal=cluster.local/ns/%s/sa/%s-%d", strings.Repeat("q", 63), strings.Repeat("n", 63), strings.Repeat("s", 63), i)
		r.BucketQuotaUsages = append(r.BucketQuotaUsages, &rlqsv3.RateLimitQuotaUsageReports_BucketQuotaUsage{
			BucketId:           &rlqsv3.BucketId{Bucket: map[string]string{configpb.QuotaCounterKey: name}},
			TimeElapsed:        durationpb.New(5*time.Second + 1),
			NumRequestsAllowed: 1 << 40, NumRequestsDenied: 1 << 40,
		})
	}
	if size := proto.Size(r); size > maxMessage {
		t.Errorf("it has %d bytes, %d are taken", size, maxMessage)
	}
}

// A caller that has as many streams open as it may is told so.
func TestTooManyStreams(t *testing.T) {
	t.Parallel()
	_, _, socket := serveAssigned(t, 10)
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	client := rlqsv3.NewRateLimitQuotaServiceClient(conn)
	report := &rlqsv3.RateLimitQuotaUsageReports{Domain: configpb.QuotaDomain, BucketQuotaUsages: []*rlqsv3.RateLimitQuotaUsageReports_BucketQuotaUsage{{
		BucketId: &rlqsv3.BucketId{Bucket: map[string]string{configpb.QuotaCounterKey: "x"}},
	}}}
	for i := range assign.MaxStreams + 1 {
		stream, err := client.StreamRateLimitQuotas(t.Context())
		if err == nil {
			if err = stream.Send(report); err == nil || errors.Is(err, io.EOF) { // who reads is told why
				_, err = stream.Recv()
			}
		}
		text := status.Convert(err).Message()
		if over := i == assign.MaxStreams; (status.Code(err) == codes.ResourceExhausted) != over || over && !strings.Contains(text, "unauthenticated has 1000") {
			t.Fatalf("stream %d: %v", i, err)
		}
	}
}
