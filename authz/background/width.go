package background

import (
	"os"
	"runtime"
	"sync"
	"time"
)

// widthStays is how long Go runs a thread more after work: each change of how many it runs
// stops the process, for as long as one of its threads waits for a processor that others
// have, and work often comes again.
const widthStays = time.Minute

// width is that of this process.
var width = widening{stays: widthStays}

// widening is the thread more that Go runs while there is work, and for a while afterwards.
type widening struct {
	stays time.Duration

	mu sync.Mutex
	// working is how many need it, turn counts how often somebody has.
	working, turn int
	// narrow takes it back; nil if there is none.
	narrow func()
}

// widen lets Go run one thread more until over, and longer.
func (w *widening) widen() (over func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.working++
	w.turn++
	if w.narrow == nil {
		w.narrow = oneMore()
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.working--
		turn := w.turn
		time.AfterFunc(w.stays, func() { w.end(turn) })
	}
}

// end takes the thread back unless somebody has needed it since turn.
func (w *widening) end(turn int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.working == 0 && w.turn == turn && w.narrow != nil {
		w.narrow()
		w.narrow = nil
	}
}

// oneMore lets Go run one thread more. Where fewer run than there are processors somebody
// has limited what the process takes, and there are processors left for the others.
func oneMore() (narrow func()) {
	n := runtime.GOMAXPROCS(0)
	if n != runtime.NumCPU() {
		return func() {}
	}
	runtime.GOMAXPROCS(n + 1)
	return func() {
		if os.Getenv("GOMAXPROCS") == "" {
			runtime.SetDefaultGOMAXPROCS() // which follows limits that change
			return
		}
		runtime.GOMAXPROCS(n)
	}
}
