package regions

import (
	"time"

	"golang.org/x/sys/unix"
)

// moment is a time as two clocks have it, of which each is wrong in a way of its own: the
// wall clock is set forward and back, and what counts from the machine's start stands
// still while a virtual machine is paused.
type moment struct {
	wall time.Time // without monotonic reading
	up   time.Duration
}

// since is how long ago b was by the clock by which it is longer ago. So a clock that is
// set forward ends a loan early, and one that is set back, or stands still, does not make
// it last longer as long as the other goes on.
func (m moment) since(b moment) time.Duration {
	return max(m.up-b.up, m.wall.Sub(b.wall))
}

func (s *Store) moment() moment { return moment{s.now().Round(0), s.up()} }

// sinceStart is how long ago the machine started, also while it slept: what Go measures
// lengths of time by stands still then (clock_gettime(2), CLOCK_BOOTTIME).
func sinceStart() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return 0 // no Linux that Go runs on: the wall clock is left
	}
	return time.Duration(t.Nano())
}
