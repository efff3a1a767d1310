package background

import (
	"context"

	"github.com/writ-mesh/writ/internal/service"
)

// room is how many bytes of garbage gather while work is done: what compiling some ten
// thousand rules makes, and requests meanwhile. Most of what is live meanwhile is garbage when the work is done
// and what it made has taken the place of what was.
const room = 512 << 20

// garbage is the rule of this process.
var garbage service.Garbage

// PaceGarbage lets so many bytes of garbage gather until ctx ends, and more while work
// is done.
func PaceGarbage(bytes uint64) func(context.Context) error { return garbage.Pace(bytes) }
