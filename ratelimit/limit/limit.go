// Package limit holds the arithmetic of rate limits: values and a time in, an
// outcome out, no I/O and no clock of its own.
//
// [Sliding] lets never more than the limit pass in
// any stretch of time as long as the window, wherever it begins, and a refused
// use takes nothing. [Fixed] counts in windows aligned to the Unix epoch and
// counts refused uses too, exactly as envoyproxy/ratelimit does: it keeps the
// limit in each of those windows, and twice the limit may pass in a stretch that
// lies across the edge of two. It is only for users who come from there.
//
// [GCRA] is a token bucket with a burst; [Concurrency] counts what is under way
// instead of what came. Hits of any limit but a fixed one can be held instead of
// taken, until it is known what they come to ([Use], [Counter]).
//
// An algorithm is one file here, with its state and its place in
// Algorithm.spec, and one entry of the same code in the script of package
// redisstore. Nothing else knows which algorithms there are: stores ask the
// [Limit] what it needs, and the conformance suite (package storetest) runs
// over all of [Algorithms].
//
// Times are kept in microseconds, which is what the clock of Redis gives; the
// states of this package and the script of package redisstore agree number for
// number, which the conformance suite proves.
package limit

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"
)

// Algorithm says how uses are counted over time.
type Algorithm uint8

const (
	// Sliding admits a use if, together with all that was admitted less than one
	// window ago, it stays within the limit.
	Sliding Algorithm = iota + 1
	// Fixed counts every use, admitted or not, in windows aligned to the epoch.
	Fixed
	// GCRA admits a use if a bucket of the size Burst, which a window's length
	// empties by Requests, has room for it: in any window pass at most Requests and
	// Burst - 1.
	GCRA
	// Concurrency admits a use while less than Requests others are held, each until
	// it is settled, or for a window at most.
	Concurrency
)

// spec is what an algorithm is made of.
type spec struct {
	name string
	// code names the algorithm in Redis.
	code string
	// countsRefused: a use is counted whatever becomes of it and of the others in
	// the same decision.
	countsRefused bool
	// ownWindows: each window has a counter of its own in Redis.
	ownWindows bool
	// state makes the state of an unused limit.
	state func() state
}

// spec is the only list of the algorithms.
func (a Algorithm) spec() (spec, error) {
	switch a {
	case Sliding:
		return spec{name: "sliding", code: "s", state: func() state { return newSliding() }}, nil
	case Fixed:
		return spec{name: "fixed", code: "f", countsRefused: true, ownWindows: true, state: func() state { return new(fixed) }}, nil
	case GCRA:
		return spec{name: "gcra", code: "g", state: func() state { return new(gcra) }}, nil
	case Concurrency:
		return spec{name: "concurrency", code: "c", state: func() state { return inflight{} }}, nil
	default:
		return spec{}, fmt.Errorf("unknown algorithm %d", uint8(a))
	}
}

// Algorithms lists all algorithms.
func Algorithms() []Algorithm {
	var all []Algorithm
	for a := Algorithm(1); ; a++ {
		if _, err := a.spec(); err != nil {
			return all
		}
		all = append(all, a)
	}
}

// String gives the algorithm's name.
func (a Algorithm) String() string {
	s, err := a.spec()
	if err != nil {
		return fmt.Sprintf("algorithm(%d)", uint8(a))
	}
	return s.name
}

// Code is the algorithm's short name in Redis: in keys, and to the script. It is
// empty if the algorithm is unknown.
func (a Algorithm) Code() string {
	s, _ := a.spec() //nolint:errcheck // said by the empty code
	return s.code
}

const (
	// minWindow is the shortest window: below it the way through the network
	// takes longer than the window.
	minWindow = time.Millisecond
	// maxWindow is the longest window, ten years: microseconds since the epoch
	// plus a window stay exact in the double that Redis computes with (2^53).
	maxWindow = 10 * 365 * 24 * time.Hour
	// maxHits bounds what one use may ask for. More is taken for this number,
	// which is above every limit, so that sums stay exact.
	maxHits = math.MaxUint32 + 1
	// maxCount is where a fixed counter stops, well below 2^53.
	maxCount = 1 << 52
)

// Limit is so many requests in such a window. The zero value is not a limit;
// use New.
type Limit struct {
	algorithm     Algorithm
	countsRefused bool // as the algorithm's spec says, for the hot path
	requests      uint32
	burst         uint32 // what may come at once
	window        int64  // microseconds
}

// New checks the parts of a limit. Requests may be 0, which admits nothing. A
// window is rounded up to whole microseconds and must be between a
// millisecond and ten years. A GCRA limit has a burst of one; the window of a
// Concurrency limit is how long a use is held that nobody settles.
func New(a Algorithm, requests uint32, window time.Duration) (Limit, error) {
	s, err := a.spec()
	if err != nil {
		return Limit{}, err
	}
	if window < minWindow || window > maxWindow {
		return Limit{}, fmt.Errorf("window %s is not between %s and %s", window, minWindow, maxWindow)
	}
	burst := requests
	if a == GCRA {
		burst = min(requests, 1)
	}
	return Limit{algorithm: a, countsRefused: s.countsRefused, requests: requests, burst: burst, window: (int64(window) + 999) / 1000}, nil
}

// NewGCRA makes a GCRA limit that lets burst requests pass at once.
func NewGCRA(requests uint32, window time.Duration, burst uint32) (Limit, error) {
	l, err := New(GCRA, requests, window)
	if err == nil && burst == 0 && requests > 0 {
		err = errors.New("burst 0 admits nothing")
	}
	if err == nil && float64(burst)*l.interval() > float64(maxWindow.Microseconds()) {
		err = fmt.Errorf("burst %d: takes longer than %s to be free again", burst, maxWindow)
	}
	if err != nil {
		return Limit{}, err
	}
	l.burst = burst
	return l, nil
}

// Algorithm tells how the limit counts.
func (l Limit) Algorithm() Algorithm { return l.algorithm }

// Requests is how many may pass in a window, or be held.
func (l Limit) Requests() uint32 { return l.requests }

// Burst is how many may come at once.
func (l Limit) Burst() uint32 { return l.burst }

// Window is the length of the window.
func (l Limit) Window() time.Duration { return micros(l.window) }

// CountsRefused says that a use is counted whatever becomes of it and of the
// others in the same decision. Uses of other limits are counted only if nothing
// that they are decided with is refused.
func (l Limit) CountsRefused() bool { return l.countsRefused }

// CounterKey is the name of the counter in Redis of uses under key at now.
func (l Limit) CounterKey(key string, now time.Time) string {
	if s, err := l.algorithm.spec(); err != nil || !s.ownWindows {
		return key
	}
	// As envoyproxy/ratelimit has it, so that both can count side by side. It knows
	// windows of whole seconds only.
	start := l.windowStart(now.UnixMicro())
	if l.Window()%time.Second != 0 {
		return key + "_" + strconv.FormatInt(start, 10) + "us"
	}
	return key + "_" + strconv.FormatInt(start/1e6, 10)
}

// UntilNext is how long it is from now to the beginning of the next window aligned
// to the epoch.
func (l Limit) UntilNext(now time.Time) time.Duration {
	return micros(l.window - mod(now.UnixMicro(), l.window))
}

// windowStart is the beginning of the window aligned to the epoch that now is in.
func (l Limit) windowStart(now int64) int64 { return now - mod(now, l.window) }

func micros(n int64) time.Duration { return time.Duration(n) * time.Microsecond }

// mod is the remainder that is never negative, for times before the epoch.
func mod(a, b int64) int64 {
	m := a % b
	if m < 0 {
		m += b
	}
	return m
}

// left is requests - used, not below zero.
func left(requests uint32, used uint64) uint32 {
	if used >= uint64(requests) {
		return 0
	}
	return requests - uint32(used) //nolint:gosec // used < requests
}

// With is the same limit with other numbers. A burst of 0 is the limit's own; it is at
// most the requests. What was counted under the one counts under the other: uses that a
// window has, and of a GCRA limit the time until its bucket is empty.
func (l Limit) With(requests, burst uint32) Limit {
	switch {
	case l.algorithm != GCRA:
		burst = requests
	case burst == 0:
		burst = max(l.burst, 1)
	}
	l.requests, l.burst = requests, min(burst, requests)
	return l
}
