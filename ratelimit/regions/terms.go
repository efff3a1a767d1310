package regions

import (
	"time"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

const (
	// partOfWindow is how long borrowed hits may be used, as a part of the window. They
	// count for the window and that long, so the shorter it is the less is lost by them,
	// and the more often regions ask.
	partOfWindow = 8
	// longest and shortest bound that. Below the shortest the way between regions takes a
	// good part of it, and nothing is lent.
	longest  = 10 * time.Second
	shortest = 100 * time.Millisecond
)

// validFor is how long borrowed hits of a limit may be used; ok is false if none are lent.
func validFor(l limit.Limit) (v time.Duration, ok bool) {
	if l.Algorithm() != limit.Sliding {
		return 0, false
	}
	v = min(l.Window()/partOfWindow, longest)
	return v, v >= shortest
}

// stale is how long it is believed that another region has nothing left.
func stale(valid time.Duration) time.Duration { return valid / 4 }

// lendable says whether a use can be decided from borrowed hits.
func lendable(u *limit.Use) bool {
	return u.Op == limit.Take && u.Hits > 0 && u.Hold == "" && u.HoldFor == 0 && !u.Earlier
}
