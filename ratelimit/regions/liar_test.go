package regions

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
)

// liar is a region that says it lends so many hits, or all, whatever it is asked for.
type liar struct {
	hits uint32

	mu sync.Mutex
	n  int
}

func (l *liar) Borrow(_ context.Context, r *ratelimitpb.BorrowRequest, _ ...grpc.CallOption) (*ratelimitpb.BorrowResponse, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	resp := &ratelimitpb.BorrowResponse{}
	for range r.GetAsks() {
		l.n++
		resp.Loans = append(resp.Loans, &ratelimitpb.Loan{Hits: l.hits, Id: strconv.Itoa(l.n), Valid: durationpb.New(10 * 365 * 24 * time.Hour)})
	}
	return resp, nil
}

func (*liar) Return(context.Context, *ratelimitpb.ReturnRequest, ...grpc.CallOption) (*ratelimitpb.ReturnResponse, error) {
	return &ratelimitpb.ReturnResponse{}, nil
}

func (*liar) Change(context.Context, *ratelimitpb.ChangeRequest, ...grpc.CallOption) (*ratelimitpb.ChangeResponse, error) {
	return nil, status.Error(codes.Unimplemented, "")
}

// lies makes the regions of a world, but for west, borrow of a liar in west's place only.
func (w *world) lies(t *testing.T, hits uint32) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for name := range w.shares {
		if name == "west" {
			continue
		}
		r := w.start(name, 100, 0)
		r.stop()
		wg.Go(func() { _ = r.Run(ctx) })
		wg.Go(func() { _ = r.Connect(ctx, "west", &liar{hits: hits}, slog.New(slog.DiscardHandler)) })
	}
	return func() { cancel(); wg.Wait() }
}

// TestLenderThatLies: what a region lends beyond what it can have is not used.
func TestLenderThatLies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, sliding(t, 100, time.Minute), twoShares)
		defer w.lies(t, 4_000_000_000)()
		for range 2000 {
			w.ask("east")
			sleep(100 * time.Millisecond)
		}
		if most := w.most(); most > 100 || len(w.passed) < 200 {
			t.Errorf("%d passed in a minute, %d in all", most, len(w.passed))
		}
	})
}

// TestLenderThatLiesLate: what is lent at the end of one window and used in the next is not
// lent again in that one.
func TestLenderThatLiesLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, sliding(t, 100, time.Minute), twoShares)
		defer w.lies(t, 50)()
		sleep(2 * time.Second)
		for range 4 {
			from := time.Now()
			for range 52 { // its own part, and a little of what it borrows
				w.ask("east")
				sleep(time.Millisecond)
			}
			for range 7 { // less than it has in hand, so that it is not given back
				sleep(time.Second)
				w.ask("east")
			}
			sleep(time.Until(from.Add(7400 * time.Millisecond)))
			for range 60 { // the rest of the loan
				w.ask("east")
			}
			sleep(time.Until(from.Add(61 * time.Second)))
			for range 120 {
				w.ask("east")
				sleep(time.Millisecond)
			}
			sleep(2 * time.Minute)
		}
		if most := w.most(); most > 100 || len(w.passed) < 400 {
			t.Errorf("%d passed in a minute, %d in all", most, len(w.passed))
		}
	})
}

// TestLenderThatLiesToTwo: a region that lies can lend its part to each of the others. That
// is all it gets: they let pass what they have and its part, each by itself.
func TestLenderThatLiesToTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, sliding(t, 100, time.Minute), map[string]int{"east": 1, "north": 1, "west": 2})
		defer w.lies(t, 5)()
		for range 1500 {
			w.ask("east")
			w.ask("north")
			sleep(100 * time.Millisecond)
		}
		if most := w.most(); most <= 100 || most > 25+25+2*50 {
			t.Errorf("%d passed in a minute in the two that do not lie", most)
		}
	})
}

// TestOneTrustDomain: regions that have their ratelimit's identity in common have an
// account each, and nobody has one under the name of a region that it is not.
func TestOneTrustDomain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, sliding(t, 300, time.Minute), map[string]int{"east": 1, "west": 1, "north": 1})
		east := w.start("east", 20, 0)
		defer east.stop()
		east.lender.Peers = map[spiffeid.ID][]Peer{idOf("west"): {{Name: "west"}, {Name: "north"}}}
		borrow := func(of, region string) (hits uint32, id string, err error) {
			for range 10 {
				resp, err := east.lender.Borrow(as(t.Context(), of), &ratelimitpb.BorrowRequest{
					Region: region, Division: "east=1,north=1,west=1", Asks: []*ratelimitpb.Ask{{Counter: "k", Hits: 100}},
				})
				if err != nil {
					return 0, "", err
				}
				if l := resp.GetLoans()[0]; l.GetHits() > 0 {
					hits, id = hits+l.GetHits(), l.GetId()
				}
			}
			return hits, id, nil
		}
		_, ofWest, err := borrow("west", "west")
		if err != nil {
			t.Fatal(err)
		}
		// What west holds north does not end.
		if _, err := east.lender.Return(as(t.Context(), "west"), &ratelimitpb.ReturnRequest{Region: "north", Returned: []*ratelimitpb.Returned{{Counter: "k", Id: ofWest}}}); err != nil {
			t.Fatal(err)
		}
		if hits, _, err := borrow("west", "west"); err != nil || hits > 0 {
			t.Errorf("west borrows %d more: %v", hits, err)
		}
		if hits, _, err := borrow("west", "north"); err != nil || hits != 20 {
			t.Errorf("north borrows %d, want a fifth of 100: %v", hits, err)
		}
		for _, c := range []struct{ of, region string }{{"west", ""}, {"west", "east"}, {"west", "south"}, {"north", "north"}, {"north", ""}} {
			if _, _, err := borrow(c.of, c.region); status.Code(err) != codes.PermissionDenied {
				t.Errorf("%s as %q: %v", c.of, c.region, err)
			}
			if _, err := east.lender.Return(as(t.Context(), c.of), &ratelimitpb.ReturnRequest{Region: c.region}); status.Code(err) != codes.PermissionDenied {
				t.Errorf("%s as %q gives back: %v", c.of, c.region, err)
			}
			if _, err := east.lender.Change(as(t.Context(), c.of), &ratelimitpb.ChangeRequest{Region: c.region}); status.Code(err) != codes.PermissionDenied {
				t.Errorf("%s as %q changes: %v", c.of, c.region, err)
			}
		}
		// North may borrow, its operators may change nothing here.
		if _, err := east.lender.Change(as(t.Context(), "west"), &ratelimitpb.ChangeRequest{Region: "north", Counter: "k", What: "reset", Reason: "r"}); status.Code(err) != codes.PermissionDenied {
			t.Errorf("north changes: %v", err)
		}
	})
}
