package regions

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/memory"
)

// FuzzLender: whatever another region asks for and says of it, it gets no more than is
// lent to it, and what this region has left is never more than its part.
func FuzzLender(f *testing.F) {
	f.Add("k", uint32(10), "10.x", uint32(0), uint8(3))
	f.Add("k", uint32(4_000_000_000), "25.", uint32(4_000_000_000), uint8(9))
	f.Add("unknown", uint32(0), "", uint32(1), uint8(1))
	f.Add("k%lent%west", uint32(1), "1.1.1", uint32(1), uint8(0))
	f.Fuzz(func(t *testing.T, counter string, hits uint32, id string, used uint32, times uint8) {
		const part, most = 50, 25
		division, err := NewDivision("east", twoShares)
		if err != nil {
			t.Fatal(err)
		}
		rule, now, store := sliding(t, 2*part, time.Minute), time.Now(), memory.New(0)
		lender := &Lender{
			Store: store, Division: division, Percent: 50, Now: func() time.Time { return now }, Peers: map[spiffeid.ID][]Peer{idOf("west"): {{Name: "west"}}}, Log: slog.New(slog.DiscardHandler),
			Borrower: &Store{metrics: newMetrics(prometheus.NewRegistry())},
			Find: func(name string) (limit.Use, error) {
				if name != "k" {
					return limit.Use{}, errors.New("unknown")
				}
				return limit.Use{Key: name, Limit: rule}, nil
			},
			Counted: func(part limit.Limit, _ limit.Mode) limit.Limit { return part },
		}
		ctx, got := as(t.Context(), "west"), uint32(0)
		for range times {
			resp, err := lender.Borrow(ctx, &ratelimitpb.BorrowRequest{Division: "east=1,west=1", Asks: []*ratelimitpb.Ask{{Counter: counter, Hits: hits}}})
			if err != nil {
				t.Fatal(err)
			}
			got += resp.GetLoans()[0].GetHits()
			// An error says that the id is none.
			_, _ = lender.Return(ctx, &ratelimitpb.ReturnRequest{Returned: []*ratelimitpb.Returned{{Counter: counter, Id: id, Used: used}}})
		}
		u, out := []limit.Use{{Key: "k", Limit: sliding(t, part, time.Minute), Observe: true}}, make([]limit.Outcome, 1)
		if err := store.Decide(ctx, now, u, out); err != nil {
			t.Fatal(err)
		}
		if got > most || out[0].Remaining != part-got {
			t.Errorf("%d of %d were lent, %d of %d are left", got, most, out[0].Remaining, part)
		}
	})
}
