package authz

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	"google.golang.org/grpc"

	"github.com/writ-mesh/writ/authz/accesslog"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

// reportTaker is a pilot that takes reports of unknown keys, unless it is away.
type reportTaker struct {
	grpc.ClientConnInterface
	mu    sync.Mutex
	away  bool
	calls [][]string
}

func (p *reportTaker) Invoke(_ context.Context, method string, args, _ any, _ ...grpc.CallOption) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	req, ok := args.(*pilotpb.ReportUnknownKeysRequest)
	if !ok || method != pilotpb.KeySets_ReportUnknownKeys_FullMethodName {
		return fmt.Errorf("%s is called with a %T", method, args)
	}
	if p.away {
		return errors.New("away")
	}
	var at []string
	for _, a := range req.GetAt() {
		at = append(at, a.GetProxy()+"|"+a.GetIdentity())
	}
	slices.Sort(at)
	p.calls = append(p.calls, at)
	return nil
}

func (p *reportTaker) taken() [][]string {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.calls
	p.calls = nil
	return out
}

// TestUnknownKeys: pilot is told at once where tokens were refused for want of a key,
// each place once, a few times a second at most.
func TestUnknownKeys(t *testing.T) {
	const unknown, wrong = "jwt_authn_access_denied{Jwks_doesn't_have_key_to_match_kid_or_alg_from_Jwt}", "jwt_authn_access_denied{Jwt_verification_fails}"
	report := func(details, proxy, to string) accesslog.Report {
		return accesslog.Report{Proxy: proxy, To: to, HTTP: &datav3.HTTPAccessLogEntry{Response: &datav3.HTTPResponseProperties{ResponseCodeDetails: details}}}
	}
	synctest.Test(t, func(t *testing.T) {
		u, pilot := newUnknownKeys(slog.New(slog.DiscardHandler)), &reportTaker{}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- u.follow(ctx, pilot) }()
		synctest.Wait()
		for _, details := range []string{"", "via_upstream", "jwt_authn_access_denied{Jwt_is_expired}", "rbac_access_denied_matched_policy[none]"} {
			u.see(report(details, "p", "spiffe://td/ns/a/sa/b"))
		}
		u.see(accesslog.Report{}) // a connection
		if calls := pilot.taken(); len(calls) > 0 {
			t.Errorf("told of other refusals: %q", calls)
		}
		u.see(report(unknown, "p", "spiffe://td/ns/a/sa/b"))
		if calls := pilot.taken(); len(calls) != 1 || !slices.Equal(calls[0], []string{"|spiffe://td/ns/a/sa/b"}) {
			t.Errorf("told: %q", calls)
		}
		for range 1000 { // a second
			u.see(report(unknown, "p", "spiffe://td/ns/a/sa/b"))
			u.see(report(wrong, "gateway", ""))
			time.Sleep(time.Millisecond) //nolint:forbidigo // of a synctest bubble
		}
		calls := pilot.taken()
		if len(calls) < 3 || len(calls) > 5 || !slices.Equal(calls[1], []string{"gateway|", "|spiffe://td/ns/a/sa/b"}) {
			t.Errorf("told in a second: %d, %q", len(calls), calls)
		}
		pilot.mu.Lock()
		pilot.away = true
		pilot.mu.Unlock()
		for i := range 2 * maxUnknownKeys {
			u.see(report(unknown, fmt.Sprint("p", i), ""))
		}
		time.Sleep(time.Minute) //nolint:forbidigo // of a synctest bubble
		pilot.mu.Lock()
		pilot.away = false
		pilot.mu.Unlock()
		for i := range 2 * maxUnknownKeys {
			u.see(report(unknown, fmt.Sprint("p", i), ""))
		}
		if calls := pilot.taken(); len(calls) == 0 || len(calls[0]) > maxUnknownKeys {
			t.Errorf("after pilot was away: %d calls", len(calls))
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
