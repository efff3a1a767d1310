package fieldtest_test

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/fieldtest"
)

type inner struct {
	Text string
	On   bool
}

type outer struct {
	inner  // not exported, and so left alone
	One    inner
	Many   []inner
	ByName map[string]inner
	Ports  map[uint32]uint32
	Maybe  *inner
	Wait   time.Duration
	Since  time.Time
	At     netip.Addr
	Share  float64
}

// TestEach: every change is another one, and all are taken back.
func TestEach(t *testing.T) {
	for _, filled := range []bool{false, true} {
		var v outer
		if filled {
			fieldtest.Fill(&v)
		}
		before := text(t, v)
		seen := map[string]string{before: "nothing"}
		fieldtest.Each(&v, func(field string) {
			now := text(t, v)
			if other, ok := seen[now]; ok {
				t.Errorf("%s is as %s: %s", field, other, now)
			}
			seen[now] = field
		})
		want := 11 // no elements, and a pointer that is nil
		if filled {
			want = 15
		}
		if len(seen) != want || text(t, v) != before {
			t.Errorf("filled %v: %d values, want %d; then %s", filled, len(seen), want, text(t, v))
		}
	}
}

func text(t *testing.T, v outer) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
