package pilot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-mesh/writ/internal/revoked"
	"github.com/writ-mesh/writ/internal/service"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/tokens"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

func byID(issuer, jti string) *pilotpb.TokenRevocation {
	return &pilotpb.TokenRevocation{Issuer: issuer, Jti: jti}
}

// told is what the configuration that clients are being given says.
func (f *fixture) told() *model.RevokedTokens {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.current.tokens
}

// followed is a client of the feed: what it was sent, as authz takes it.
type followed struct {
	table map[revoked.Key]*pilotpb.RevokedTokenEntry
	// begun counts how often everything was sent.
	begun, messages int
}

func (f *fixture) follow() *followed {
	out := &followed{}
	ctx, cancel := context.WithCancel(context.Background())
	f.t.Cleanup(cancel)
	stream, err := pilotpb.NewTokenRevocationFeedClient(f.dial()).WatchRevokedTokens(ctx, &pilotpb.WatchRevokedTokensRequest{})
	if err != nil {
		f.t.Fatal(err)
	}
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			out.messages++
			if m.GetBegin() {
				out.begun++
				out.table = map[revoked.Key]*pilotpb.RevokedTokenEntry{}
			}
			for _, e := range m.GetPut() {
				out.table[revoked.Key(e.GetKey())] = e
			}
			for _, k := range m.GetDeleted() {
				delete(out.table, revoked.Key(k))
			}
		}
	}()
	return out
}

// TestTokenRevocation: a revocation is on disk, in a revision and with who follows,
// and so is the one that was taken back; after a restart all of it is as before.
func TestTokenRevocation(t *testing.T) {
	state := t.TempDir()
	files := map[string]string{"one.yaml": entry("one", "8001")}
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, state, files)
		f.sidecar(1, nil)
		f.want("serving 1", "1 live")
		c, early := pilotpb.NewTokenRevocationsClient(f.dial()), f.follow()
		before := timestamppb.New(time.Unix(1_800_000_000, 0))
		resp, err := c.RevokeTokens(t.Context(), &pilotpb.RevokeTokensRequest{Revocations: []*pilotpb.TokenRevocation{byID("a", "1"), byID("a", "2"), {Issuer: "a", Sub: "bob", IssuedBefore: before}}})
		if err != nil || resp.GetTotal() != 3 || resp.GetRemote() || resp.GetAlready() != 0 {
			t.Fatal(resp, err)
		}
		f.want("serving 2", "2 live", "1 live")
		want := &model.RevokedTokens{IDs: map[string][]string{"a": {"1", "2"}}, Subjects: map[string][]string{}, Issued: []model.RevokedIssue{{Issuer: "a", Subject: "bob", Before: before.AsTime()}}}
		if got := f.told(); !reflect.DeepEqual(got, want) {
			t.Errorf("proxies are told %+v", got)
		}
		if resp, err := c.RevokeTokens(t.Context(), &pilotpb.RevokeTokensRequest{Revocations: []*pilotpb.TokenRevocation{byID("a", "1")}}); err != nil || resp.GetAlready() != 1 || resp.GetTotal() != 3 {
			t.Error(resp, err)
		}
		f.want("serving 2", "2 live", "1 live")
		early2027 := float64(before.AsTime().Unix())
		for want, asked := range map[string]*pilotpb.CheckTokenRequest{
			"jti": {Issuer: "a", Jti: "1", Sub: "alice"}, "issued-before": {Issuer: "a", Sub: "bob"}, "": {Issuer: "a", Sub: "bob", IssuedAt: &early2027},
		} {
			if got, err := c.CheckToken(t.Context(), asked); err != nil || got.GetReason() != want {
				t.Errorf("%v is revoked by %q, %v; want %q", asked, got.GetReason(), err, want)
			}
		}
		if gone, err := c.UnrevokeTokens(t.Context(), &pilotpb.UnrevokeTokensRequest{Revocations: []*pilotpb.TokenRevocation{byID("a", "1"), byID("a", "never")}}); err != nil || len(gone.GetRevocations()) != 1 || gone.GetTotal() != 2 {
			t.Error(gone, err)
		}
		f.want("serving 3", "3 live", "2 live", "1 live")
		late := f.follow()
		synctest.Wait()
		for name, w := range map[string]*followed{"who follows from the beginning": early, "who comes late": late} {
			if len(w.table) != 2 || w.table[revoked.IDKey("a", "2")] == nil || w.table[revoked.SubjectKey("a", "bob")].GetBefore() != 1_800_000_000 || w.begun != 1 {
				t.Errorf("%s knows %v", name, w.table)
			}
		}
	})
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, state, files)
		f.want("serving 3", "3 live")
		if got := f.told(); len(got.IDs["a"]) != 1 || len(got.Issued) != 1 {
			t.Errorf("after a restart proxies are told %+v", got)
		}
		var listed []*pilotpb.TokenRevocation
		stream, err := pilotpb.NewTokenRevocationsClient(f.dial()).ListRevokedTokens(t.Context(), &pilotpb.ListRevokedTokensRequest{})
		for err == nil {
			var m *pilotpb.ListRevokedTokensResponse
			if m, err = stream.Recv(); err == nil {
				listed = append(listed, m.GetRevocations()...)
			}
		}
		if len(listed) != 2 || listed[0].GetJti() != "2" || listed[0].GetActor() == "" || listed[1].GetSub() != "bob" {
			t.Errorf("listed: %v", listed)
		}
	})
	// A list of which something is missing is not taken for the whole.
	file := filepath.Join(state, tokensFile)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[2] ^= 1
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = newPilot(Options{Source: newMemory(nil), State: state, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Health: &service.Health{}})
	var damaged *tokens.DamagedError
	if !errors.As(err, &damaged) {
		t.Errorf("a damaged list: %v", err)
	}
}

// TestBesidesSame: a revision from before a revocation of tokens is not taken for one
// that has it, so that a rejected edit does not bring the token back.
func TestBesidesSame(t *testing.T) {
	with := func(ids ...string) besides {
		return besides{revoked: new(model.Revoked), tokens: &model.RevokedTokens{IDs: map[string][]string{"a": ids}}}
	}
	if !with("1").same(with("1")) || with("1").same(with("2")) || with("1").same(besides{revoked: new(model.Revoked)}) {
		t.Error("revoked tokens do not tell configurations apart")
	}
}

func TestTokenRevocationRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, t.TempDir(), map[string]string{"one.yaml": entry("one", "8001")})
		synctest.Wait()
		c := pilotpb.NewTokenRevocationsClient(f.dial())
		many := make([]*pilotpb.TokenRevocation, maxTokensAtOnce)
		for i := range many {
			many[i] = byID("a", fmt.Sprint(i))
		}
		for name, x := range map[string]struct {
			rs   []*pilotpb.TokenRevocation
			want codes.Code
		}{
			"nothing":        {nil, codes.InvalidArgument},
			"too many":       {slices.Concat(many, []*pilotpb.TokenRevocation{byID("a", "x")}), codes.InvalidArgument},
			"no issuer":      {[]*pilotpb.TokenRevocation{byID("a", "1"), byID("", "1")}, codes.InvalidArgument},
			"a bad time":     {[]*pilotpb.TokenRevocation{{Issuer: "a", Jti: "1", Until: &timestamppb.Timestamp{Nanos: -1}}}, codes.InvalidArgument},
			"half a second":  {[]*pilotpb.TokenRevocation{{Issuer: "a", Sub: "1", IssuedBefore: &timestamppb.Timestamp{Seconds: 1, Nanos: 5}}}, codes.InvalidArgument},
			"a jti and time": {[]*pilotpb.TokenRevocation{{Issuer: "a", Jti: "1", IssuedBefore: &timestamppb.Timestamp{Seconds: 1}}}, codes.InvalidArgument},
		} {
			if _, err := c.RevokeTokens(t.Context(), &pilotpb.RevokeTokensRequest{Revocations: x.rs}); status.Code(err) != x.want {
				t.Errorf("%s: %v", name, err)
			}
		}
		if n := f.tokensFeed.list.Table.Len(); n != 0 {
			t.Errorf("%d were revoked all the same", n)
		}
		// More than proxies can be told, and nobody whom they could ask.
		if _, err := c.RevokeTokens(t.Context(), &pilotpb.RevokeTokensRequest{Revocations: many}); err != nil {
			t.Error(err)
		}
		if _, err := c.RevokeTokens(t.Context(), &pilotpb.RevokeTokensRequest{Revocations: many[:1]}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "authz") {
			t.Errorf("more than %d without authz: %v", maxTold, err)
		}
		// Whom they could ask is known before anything is in force, as after a start.
		f.authz = true
		f.mu.Lock()
		f.current = nil
		f.mu.Unlock()
		if _, err := c.RevokeTokens(t.Context(), &pilotpb.RevokeTokensRequest{Revocations: many[:1]}); err != nil {
			t.Errorf("more than %d with authz: %v", maxTold, err)
		}
		stateless := newFixture(t, "", nil)
		if _, err := pilotpb.NewTokenRevocationsClient(stateless.dial()).RevokeTokens(t.Context(), &pilotpb.RevokeTokensRequest{Revocations: many[:1]}); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("without a state directory: %v", err)
		}
	})
}

// TestToldOf: from a number on proxies ask authz, and from a lower one on they are
// told again.
func TestToldOf(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	list, err := tokens.Open(filepath.Join(t.TempDir(), "l"), now)
	if err != nil {
		t.Fatal(err)
	}
	defer list.Close()
	remote := func(was bool) bool {
		told, err := toldOf(list, was)
		if err != nil {
			t.Fatal(err)
		}
		return told != nil && told.Remote
	}
	all := make([]tokens.Revocation, maxTold+1)
	for i := range all {
		all[i] = tokens.Revocation{Issuer: "a", ID: fmt.Sprint(i)}
	}
	add := func(rs ...tokens.Revocation) {
		if _, err := list.Add(rs); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(rs ...tokens.Revocation) {
		if _, err := list.Remove(rs); err != nil {
			t.Fatal(err)
		}
	}
	add(all[:maxTold]...)
	if remote(false) || !remote(true) {
		t.Errorf("with %d", maxTold)
	}
	add(all[maxTold])
	if !remote(false) {
		t.Errorf("with %d", maxTold+1)
	}
	remove(all[toldAgain:]...)
	if remote(true) {
		t.Errorf("with %d again", toldAgain)
	}
	remove(all...)
	if told, err := toldOf(list, true); told != nil || err != nil {
		t.Error(told, err)
	}
	for i := range maxToldIssued + 1 {
		add(tokens.Revocation{Issuer: "a", Subject: fmt.Sprint(i), IssuedBefore: now})
	}
	if !remote(false) {
		t.Errorf("with %d that are bounded in time", maxToldIssued+1)
	}
}

// TestTokenFeedOverflow: who does not keep up gets everything anew, and nothing twice
// in the wrong order.
func TestTokenFeedOverflow(t *testing.T) {
	list, err := tokens.Open(filepath.Join(t.TempDir(), "l"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer list.Close()
	f := &tokenFeed{list: list}
	w := f.watch()
	if changes, everything := f.take(w); len(changes) != 0 || !everything {
		t.Fatal("a new watcher is not sent everything")
	}
	one := []tokens.Revocation{{Issuer: "a", ID: "1"}}
	if _, err := f.add(one); err != nil {
		t.Fatal(err)
	}
	if _, err := f.remove(one); err != nil {
		t.Fatal(err)
	}
	if changes, everything := f.take(w); len(changes) != 2 || changes[0].undone || !changes[1].undone || everything {
		t.Errorf("%v %v", changes, everything)
	}
	many := make([]tokens.Revocation, maxQueued+1)
	for i := range many {
		many[i] = tokens.Revocation{Issuer: "a", ID: fmt.Sprint(i)}
	}
	if _, err := f.add(many); err != nil {
		t.Fatal(err)
	}
	if changes, everything := f.take(w); len(changes) != 0 || !everything {
		t.Errorf("%d changes, everything %v", len(changes), everything)
	}
	f.unwatch(w)
	if len(f.watchers) != 0 {
		t.Error("a watcher that left is told further")
	}
}

// TestNothingNewAboutTokens: what is told of tokens compiles the mesh only if it is
// something else, whatever lists and keys are there too.
func TestNothingNewAboutTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, t.TempDir(), map[string]string{"one.yaml": entry("one", "8001")})
		synctest.Wait()
		f.mu.Lock()
		f.takeUp(func() { f.keys = map[string]string{"issuer": "{}"} })
		f.mu.Unlock()
		before := f.metric("writ_pilot_compile_seconds", "")
		f.tellTokens(t.Context(), f.tokensFeed.list)
		if after := f.metric("writ_pilot_compile_seconds", ""); before == 0 || after != before {
			t.Errorf("the mesh was compiled %v times, %v before the same tokens were told again", after, before)
		}
	})
}
