package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/proctest"
	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
)

const annsCounter = "default/q/0?source.principal=ann"

func newAdmin(t *testing.T, s *Server, dir string) *admin {
	t.Helper()
	audit, err := openChanges(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = audit.close() })
	return &admin{server: s, audit: audit, log: runtime().Log}
}

// TestOperators: what an operator sees and does holds for the next request, and is in
// the audit with who, when and why.
func TestOperators(t *testing.T) {
	dir := t.TempDir()
	s, c, _ := newServer(t)
	withQuotas(t, s, policy("q", false, per(3, time.Minute)), policy("cost", false, costing(100, 40)))
	a := newAdmin(t, s, dir)
	left := func(want uint32) {
		t.Helper()
		got, err := a.GetCounter(t.Context(), &ratelimitpb.GetCounterRequest{Key: annsCounter})
		if err != nil {
			t.Fatal(err)
		}
		if got.GetRemaining() != want || got.GetOver() != (want == 0) || got.GetRequests() != 3 || got.GetEvery().AsDuration() != time.Minute || got.GetKey() != annsCounter {
			t.Errorf("got %v, want %d left", got, want)
		}
	}
	passes := func(want bool) {
		t.Helper()
		if got := ask(t, s, "writ", quotaDesc("q", 0, "ann")).GetOverallCode() == rlsv3.RateLimitResponse_OK; got != want {
			t.Errorf("the next request passes: %v, want %v", got, want)
		}
	}
	left(3)
	for range 3 {
		passes(true)
	}
	left(0)
	passes(false)
	change := &ratelimitpb.ChangeCounterRequest{Key: annsCounter, Reason: "ticket 7"}
	if got, err := a.ResetCounter(t.Context(), change); err != nil || got.GetRemaining() != 3 {
		t.Fatalf("reset: %v, %v", got, err)
	}
	passes(true)
	left(2)
	passes(true)
	passes(true)
	c.now = c.now.Add(time.Second)
	change.Hits = 2
	if got, err := a.Grant(t.Context(), change); err != nil || got.GetRemaining() != 2 {
		t.Fatalf("grant: %v, %v", got, err)
	}
	passes(true)
	passes(true)
	passes(false)
	change.Hits = 50
	if got, err := a.Refund(t.Context(), change); err != nil || got.GetRemaining() != 3 {
		t.Fatalf("refund, at most what was used: %v, %v", got, err)
	}
	ask(t, s, "writ", desc("writ.policy", "default/cost", "writ.limit", "0", "writ.hold", "h", "source.principal", "ann"))
	if got, err := a.GetCounter(t.Context(), &ratelimitpb.GetCounterRequest{Key: "default/cost/0?source.principal=ann"}); err != nil || got.GetRemaining() != 60 {
		t.Errorf("with 40 of 100 held: %v, %v", got, err)
	}

	reopened := newAdmin(t, s, dir)
	list, err := reopened.ListChanges(t.Context(), &ratelimitpb.ListChangesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, ch := range list.GetChanges() {
		got = append(got, fmt.Sprintf("%s %s %d of %s because of %s, %d left, by %v", ch.GetAt().AsTime().Format(time.TimeOnly), ch.GetWhat(), ch.GetHits(), ch.GetKey(), ch.GetReason(), ch.GetRemaining(), ch.GetActor() != ""))
	}
	want := []string{
		"12:00:01 refund 50 of " + annsCounter + " because of ticket 7, 0 left, by true",
		"12:00:01 grant 2 of " + annsCounter + " because of ticket 7, 0 left, by true",
		"12:00:00 reset 0 of " + annsCounter + " because of ticket 7, 0 left, by true",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("audit:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestOperatorsOfDomains(t *testing.T) {
	s, _, _ := newServer(t)
	withDescriptors(t, s, "domain: shop\ndescriptors:\n- {key: user, detailed_metric: true, rate_limit: {unit: day, requests_per_unit: 2}}\n- {key: free, rate_limit: {unlimited: true}}")
	s.dropIn.KeyPrefix = "p:"
	a := newAdmin(t, s, "")
	for range 3 {
		ask(t, s, "shop", desc("user", "a&b"))
	}
	const key = "shop?user=a%26b"
	if got, err := a.GetCounter(t.Context(), &ratelimitpb.GetCounterRequest{Key: key}); err != nil || got.GetRemaining() != 0 || got.GetKey() != key || got.GetLimit() != "shop.user" {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := a.ResetCounter(t.Context(), &ratelimitpb.ChangeCounterRequest{Key: key, Reason: "r"}); err != nil || got.GetRemaining() != 2 {
		t.Errorf("reset: %v, %v", got, err)
	}
	top, err := a.ListTop(t.Context(), &ratelimitpb.ListTopRequest{})
	if err != nil || len(top.GetCallers()) != 1 || top.GetCallers()[0].GetKey() != key || top.GetCallers()[0].GetHits() != 3 || top.GetCallers()[0].GetRefused() != 1 {
		t.Errorf("top: %v, %v", top, err)
	}
	for _, bad := range []string{"shop?free=x", "shop?other=x", "mall?user=x", "shop", "shop?user", "shop?user=%zz"} {
		if _, err := a.GetCounter(t.Context(), &ratelimitpb.GetCounterRequest{Key: bad}); status.Code(err) != codes.NotFound {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestOperatorsMistakes(t *testing.T) {
	s, _, _ := newServer(t)
	withQuotas(t, s, policy("q", false, per(3, time.Minute)))
	dir := t.TempDir()
	a := newAdmin(t, s, dir)
	type call func(context.Context, *ratelimitpb.ChangeCounterRequest) (*ratelimitpb.Counter, error)
	for name, c := range map[string]struct {
		call call
		req  *ratelimitpb.ChangeCounterRequest
		want codes.Code
	}{
		"no reason":        {a.ResetCounter, &ratelimitpb.ChangeCounterRequest{Key: annsCounter}, codes.InvalidArgument},
		"a long reason":    {a.ResetCounter, &ratelimitpb.ChangeCounterRequest{Key: annsCounter, Reason: strings.Repeat("x", maxReason+1)}, codes.InvalidArgument},
		"hits of a reset":  {a.ResetCounter, &ratelimitpb.ChangeCounterRequest{Key: annsCounter, Reason: "r", Hits: 1}, codes.InvalidArgument},
		"a grant of 0":     {a.Grant, &ratelimitpb.ChangeCounterRequest{Key: annsCounter, Reason: "r"}, codes.InvalidArgument},
		"a refund of 0":    {a.Refund, &ratelimitpb.ChangeCounterRequest{Key: annsCounter, Reason: "r"}, codes.InvalidArgument},
		"no policy":        {a.ResetCounter, &ratelimitpb.ChangeCounterRequest{Key: "default/x/0?source.principal=ann", Reason: "r"}, codes.NotFound},
		"no limit":         {a.ResetCounter, &ratelimitpb.ChangeCounterRequest{Key: "default/q/1?source.principal=ann", Reason: "r"}, codes.NotFound},
		"no index":         {a.ResetCounter, &ratelimitpb.ChangeCounterRequest{Key: "default/q?source.principal=ann", Reason: "r"}, codes.NotFound},
		"no caller":        {a.ResetCounter, &ratelimitpb.ChangeCounterRequest{Key: "default/q/0", Reason: "r"}, codes.NotFound},
		"other dimensions": {a.ResetCounter, &ratelimitpb.ChangeCounterRequest{Key: "default/q/0?source.ip=ann", Reason: "r"}, codes.NotFound},
		"a huge name":      {a.ResetCounter, &ratelimitpb.ChangeCounterRequest{Key: "default/q/0?source.principal=" + strings.Repeat("x", maxName), Reason: "r"}, codes.InvalidArgument},
	} {
		if _, err := c.call(t.Context(), c.req); status.Code(err) != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	if list := a.audit.list(); len(list) != 0 {
		t.Errorf("what was not done is in the audit: %v", list)
	}
	if _, err := a.ListTop(t.Context(), &ratelimitpb.ListTopRequest{Callers: maxTop + 1}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("too many callers: %v", err)
	}

	// Without an audit there is no change.
	ask(t, s, "writ", quotaDesc("q", 0, "ann"))
	if err := errors.Join(os.Remove(a.audit.path), os.Mkdir(a.audit.path, 0o700)); err != nil {
		t.Fatal(err)
	}
	if _, err := a.ResetCounter(t.Context(), &ratelimitpb.ChangeCounterRequest{Key: annsCounter, Reason: "r"}); status.Code(err) != codes.Internal {
		t.Errorf("the audit cannot be written: %v", err)
	}
	if got := ask(t, s, "writ", quotaDesc("q", 0, "ann")).GetStatuses()[0].GetLimitRemaining(); got != 1 {
		t.Errorf("%d left: it was reset all the same", got)
	}
}

// TestAuditFile: it survives a crash in the middle of a line, stays bounded, and is for
// its owner only.
func TestAuditFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, changesFile)
	open := func() *changes {
		t.Helper()
		c, err := openChanges(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.close() })
		return c
	}
	one := func(n int) change { return change{What: changeGrant, Counter: fmt.Sprint(n), Reason: "r"} }
	c := open()
	if err := c.add(one(0)); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
	if err := os.WriteFile(path, append(readFile(t, path), `{"what":"gra`...), 0o600); err != nil {
		t.Fatal(err)
	}
	c = open()
	if err := c.add(one(1)); err != nil {
		t.Fatal(err)
	}
	if got := open().list(); len(got) != 2 || got[0].Counter != "1" || got[1].Counter != "0" {
		t.Errorf("after a crash: %v", got)
	}
	c = open()
	c.size = maxChangesFile
	for n := range 500 {
		if err := c.add(one(2 + n)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path + ".1"); err != nil {
		t.Errorf("it was not moved aside: %v", err)
	}
	for _, got := range [][]change{c.list(), open().list()} {
		if len(got) != keptChanges || got[0].Counter != "501" || got[keptChanges-1].Counter != "302" {
			t.Errorf("%d changes, from %q", len(got), got[0].Counter)
		}
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestAdminSocket: operators have a socket of their own, and it serves nothing else.
func TestAdminSocket(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "d.yaml"), fmt.Sprintf(oneLimit, 5))
	socket, err := os.MkdirTemp("", "rl") //nolint:usetesting // t.TempDir is too long a path for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(socket) })
	c := DefaultConfig()
	c.Listen, c.Descriptors, c.Admin = proctest.Address(t), dir, "unix://"+socket+"/admin"
	start(t, c)
	if _, err := call(t.Context(), dial(t, c.Listen), "v"); err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(c.Admin, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	got, err := ratelimitpb.NewLimitsClient(conn).GetCounter(t.Context(), &ratelimitpb.GetCounterRequest{Key: "d?k=v"}, grpc.WaitForReady(true))
	if err != nil || got.GetRemaining() != 4 {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := ratelimitpb.NewLimitsClient(conn).ResetCounter(t.Context(), &ratelimitpb.ChangeCounterRequest{Key: "d?k=v", Reason: "test"}); err != nil {
		t.Error(err)
	}
	if _, err := call(t.Context(), rlsv3.NewRateLimitServiceClient(conn), "v"); status.Code(err) != codes.Unimplemented {
		t.Errorf("requests are decided there too: %v", err)
	}
	envoys, err := grpc.NewClient(c.Listen, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = envoys.Close() })
	if _, err := ratelimitpb.NewLimitsClient(envoys).ResetCounter(t.Context(), &ratelimitpb.ChangeCounterRequest{Key: "d?k=v", Reason: "mine"}); status.Code(err) != codes.Unimplemented {
		t.Errorf("where Envoys ask, counters are reset: %v", err)
	}
}
