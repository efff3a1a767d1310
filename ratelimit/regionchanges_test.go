package ratelimit

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/internal/proctest"
	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/quota"
	"github.com/writ-mesh/writ/ratelimit/regions"
)

// TestChangesInAllRegions: an operator of one region changes its part alone, or the parts of
// all regions that let him, each of which has it in its audit.
func TestChangesInAllRegions(t *testing.T) {
	const key = "default/q/0?source.principal=a"
	policies := map[string]proto.Message{"default/q": policy("q", false, per(4, time.Hour))}
	east, west := twoRegions(t, policies)
	meet := func() {
		east.hears(t, true)
		west.hears(t, true)
	}
	// parts are what became of a change in each region.
	parts := func(call func(context.Context, *ratelimitpb.ChangeCounterRequest) (*ratelimitpb.Counter, error), hits uint32, all bool) (out []string) {
		t.Helper()
		if all {
			meet()
		}
		c, err := call(t.Context(), &ratelimitpb.ChangeCounterRequest{Key: key, Hits: hits, Reason: "ticket 7", AllRegions: all})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range c.GetRegions() {
			text, _, _ := strings.Cut(p.GetProblem(), ":")
			out = append(out, fmt.Sprintf("%s %d of %d, %d given %s", p.GetRegion(), p.GetRemaining(), p.GetRequests(), p.GetGiven(), text))
		}
		return out
	}
	equal := func(got []string, want ...string) {
		t.Helper()
		if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
			t.Errorf("got\n%s\nwant\n%s", g, w)
		}
	}
	meet()
	var used passages
	used.exactly(t, east, "a", 3)
	used.exactly(t, west, "a", 1)
	equal(parts(east.admin.ResetCounter, 0, true), "east 2 of 2, 0 given ", "west 0 of 0, 0 given operators of region east change nothing here")
	if got := west.admin.audit.list(); len(got) > 0 {
		t.Errorf("west's audit has %v", got)
	}

	west.stop()
	west.config.Regions.Peers[0].Operators = true
	west.start(t, policies)
	meet()
	equal(parts(east.admin.ResetCounter, 0, true), "east 2 of 2, 0 given ", "west 2 of 2, 0 given ")
	used.exactly(t, east, "a", 3) // all as if nobody had asked, what may be lent too
	used.exactly(t, west, "a", 1)
	equal(parts(west.admin.Grant, 1, false), "west 1 of 2, 1 given ")
	used.exactly(t, west, "a", 1)
	// More than there is: each part has what it counts as used, and nobody anything twice.
	equal(parts(east.admin.Refund, 1, true), "east 1 of 2, 1 given ")
	used.exactly(t, east, "a", 1)

	// The rest in the other region, and no more than was used.
	equal(parts(east.admin.ResetCounter, 0, true), "east 2 of 2, 0 given ", "west 2 of 2, 0 given ")
	if !used.ask(t, east, 0, "a") || !used.ask(t, west, 0, "a") {
		t.Error("nothing passes after a reset")
	}
	equal(parts(east.admin.Grant, 10, true), "east 2 of 2, 1 given ", "west 2 of 2, 1 given ")

	audit := west.admin.audit.list()
	if len(audit) != 4 || audit[0].Hits != 9 || audit[3].What != changeReset || audit[3].Counter != key || audit[3].Reason != "ticket 7" ||
		!strings.HasPrefix(audit[3].Actor, "spiffe://east.example/writ/ratelimit, region east, for ") {
		t.Errorf("west's audit: %+v", audit)
	}
	if audit := east.admin.audit.list(); len(audit) != 5 || !audit[4].AllRegions {
		t.Errorf("east's audit: %+v", audit)
	}

	east.cable.set(true)
	east.hears(t, false)
	meet = func() {}
	equal(parts(east.admin.ResetCounter, 0, true), "east 2 of 2, 0 given ", "west 0 of 0, 0 given the region is away")
}

// TestChangesThatRegionsAsk: what another region asks for is checked as what an operator
// asks for.
func TestChangesThatRegionsAsk(t *testing.T) {
	s, _, _ := newServer(t)
	withQuotas(t, s, policy("q", false, per(3, time.Minute)))
	a := newAdmin(t, s, "")
	good := func() *ratelimitpb.ChangeRequest {
		return &ratelimitpb.ChangeRequest{Counter: annsCounter, What: changeGrant, Hits: 1, Reason: "r", Actor: "uid=0"}
	}
	for name, c := range map[string]struct {
		edit func(*ratelimitpb.ChangeRequest)
		want codes.Code
	}{
		"no such change":        {func(r *ratelimitpb.ChangeRequest) { r.What = "raise" }, codes.InvalidArgument},
		"nothing to give":       {func(r *ratelimitpb.ChangeRequest) { r.Hits = 0 }, codes.InvalidArgument},
		"a reset with a number": {func(r *ratelimitpb.ChangeRequest) { r.What = changeReset }, codes.InvalidArgument},
		"no reason":             {func(r *ratelimitpb.ChangeRequest) { r.Reason = "" }, codes.InvalidArgument},
		"a long reason":         {func(r *ratelimitpb.ChangeRequest) { r.Reason = strings.Repeat("r", 501) }, codes.InvalidArgument},
		"a long actor":          {func(r *ratelimitpb.ChangeRequest) { r.Actor = strings.Repeat("r", 201) }, codes.InvalidArgument},
		"a line in the actor":   {func(r *ratelimitpb.ChangeRequest) { r.Actor = "a\nb" }, codes.InvalidArgument},
		"a long name":           {func(r *ratelimitpb.ChangeRequest) { r.Counter = strings.Repeat("x", 20<<10) }, codes.InvalidArgument},
		"no such counter":       {func(r *ratelimitpb.ChangeRequest) { r.Counter = "default/none/0?a=b" }, codes.NotFound},
	} {
		r := good()
		c.edit(r)
		if _, err := a.changeForRegion(t.Context(), r); status.Code(err) != c.want {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if list := a.audit.list(); len(list) > 0 {
		t.Errorf("the audit has %v", list)
	}
	if _, err := (&Service{}).changeForRegion(t.Context(), good()); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("without an audit: %v", err)
	}
	if _, err := a.ResetCounter(t.Context(), &ratelimitpb.ChangeCounterRequest{Key: annsCounter, Reason: "r", AllRegions: true}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("all regions, of which there is one: %v", err)
	}
	if got := printable("a\x1b[2Jb" + strings.Repeat("c", 400)); len(got) != maxProblem || !strings.HasPrefix(got, "a?[2Jbc") {
		t.Errorf("printed: %q", got)
	}
}

// mute is a region that answers everything but changes.
type mute struct{ ratelimitpb.RegionsClient }

func (mute) Borrow(context.Context, *ratelimitpb.BorrowRequest, ...grpc.CallOption) (*ratelimitpb.BorrowResponse, error) {
	return &ratelimitpb.BorrowResponse{}, nil
}

func (mute) Change(context.Context, *ratelimitpb.ChangeRequest, ...grpc.CallOption) (*ratelimitpb.ChangeResponse, error) {
	return nil, status.Error(codes.DeadlineExceeded, "no answer")
}

// TestChangesThatAreNotAnswered: of a region that does not answer nobody knows whether it
// made a change, and what it may have given back no other gives back.
func TestChangesThatAreNotAnswered(t *testing.T) {
	s, _, _ := newServer(t)
	withQuotas(t, s, policy("q", false, per(3, time.Minute)))
	a := newAdmin(t, s, "")
	division, err := regions.NewDivision("east", map[string]int{"east": 1, "north": 1, "west": 1})
	if err != nil {
		t.Fatal(err)
	}
	s.regions = regions.New(regions.Options{
		Below: s.store, Division: division, NameOf: quota.NameOf, MaxKeys: 10, Now: time.Now, Peers: []regions.Peer{{Name: "north"}, {Name: "west"}},
	}, prometheus.NewRegistry())
	for _, name := range s.regions.Others() {
		proctest.Background(t, func(ctx context.Context) error { return s.regions.Connect(ctx, name, mute{}, a.log) })
	}
	rule, err := limit.New(limit.Sliding, 3, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	proctest.Until(t, 20*time.Second, "the regions to answer", func() bool {
		return strings.Count(s.regions.Declare(rule, limit.Exact, ""), " answered ") == 2
	})
	for _, c := range []struct {
		call func(context.Context, *ratelimitpb.ChangeCounterRequest) (*ratelimitpb.Counter, error)
		hits uint32
		want string
	}{
		{a.ResetCounter, 0, "east:  north: no answer; it may be changed all the same west: no answer; it may be changed all the same"},
		{a.Grant, 2, "east:  north: no answer; what it may have given back is not given back elsewhere"},
	} {
		got, err := c.call(t.Context(), &ratelimitpb.ChangeCounterRequest{Key: annsCounter, Hits: c.hits, Reason: "r", AllRegions: true})
		if err != nil {
			t.Fatal(err)
		}
		var parts []string
		for _, p := range got.GetRegions() {
			parts = append(parts, p.GetRegion()+": "+p.GetProblem())
		}
		if text := strings.Join(parts, " "); text != c.want {
			t.Errorf("got %s, want %s", text, c.want)
		}
	}
}

// TestKindsThatAreDivided: of what is divided and not lent no more passes in two regions
// with a Redis each than the limit says, asked by many at once.
func TestKindsThatAreDivided(t *testing.T) {
	east, west := twoRegions(t, map[string]proto.Message{"default/q": policy("q", false, per(4, time.Hour))})
	bucket := func(burst uint32) limit.Limit {
		l, err := limit.NewGCRA(60, time.Hour, burst)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	plain := func(a limit.Algorithm, window time.Duration) limit.Limit {
		l, err := limit.New(a, 5, window)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for _, c := range []struct {
		name string
		use  limit.Use
		want int64
	}{
		{"a bucket", limit.Use{Limit: bucket(5)}, 5},
		{"a bucket whose burst cannot be divided: one more for each further region", limit.Use{Limit: bucket(1)}, 2},
		{"places", limit.Use{Limit: plain(limit.Concurrency, time.Hour)}, 5},
		{"reservations", limit.Use{Limit: plain(limit.Sliding, time.Hour), HoldFor: time.Hour}, 5},
	} {
		var passed atomic.Int64
		var wg sync.WaitGroup
		for _, d := range []*deployment{east, west} {
			for i := range 20 {
				u := c.use
				u.Key, u.Hits = "divided "+c.name, 1
				if u.HoldFor > 0 || u.Limit.Algorithm() == limit.Concurrency {
					u.Hold = fmt.Sprint(i)
				}
				wg.Go(func() {
					uses, out := []limit.Use{u}, make([]limit.Outcome, 1)
					if err := d.server.store.Decide(t.Context(), time.Now(), uses, out); err != nil {
						t.Error(err)
					} else if !out[0].Over {
						passed.Add(1)
					}
				})
			}
		}
		wg.Wait()
		if n := passed.Load(); n != c.want {
			t.Errorf("%s: %d passed, want %d", c.name, n, c.want)
		}
	}
}
