package background

import (
	"context"
	"time"

	"github.com/writ-mesh/writ/internal/service"
)

const (
	// room is how many bytes of garbage gather while work is done: what compiling some ten
	// thousand rules makes, and requests meanwhile. Most of what is live meanwhile is garbage when the work is done
	// and what it made has taken the place of what was.
	room = 512 << 20
	// raiseAfter is how long work lasts before it gets that: to change the rule stops the
	// process twice, and what is done sooner leaves little behind.
	raiseAfter = 50 * time.Millisecond
)

// garbage is the rule of this process.
var garbage service.Garbage

// raise lets room gather as soon as work has lasted, until it is over.
func raise() (over func()) {
	lower := make(chan func(), 1)
	timer := time.AfterFunc(raiseAfter, func() { lower <- garbage.Raise(room) })
	return func() {
		if !timer.Stop() { // it has begun to raise
			(<-lower)()
		}
	}
}

// PaceGarbage lets so many bytes of garbage gather until ctx ends, and more while work
// is done that lasts.
func PaceGarbage(bytes uint64) func(context.Context) error { return garbage.Pace(bytes) }
