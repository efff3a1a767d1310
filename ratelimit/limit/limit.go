// Package limit holds the arithmetic of rate limits: values and a time in, an
// outcome out, no I/O and no clock of its own.
//
// Two algorithms are offered. [Sliding] lets never more than the limit pass in
// any stretch of time as long as the window, wherever it begins, and a refused
// use takes nothing. [Fixed] counts in windows aligned to the Unix epoch and
// counts refused uses too, exactly as envoyproxy/ratelimit does; twice the limit
// may pass around the edge of two windows, and it is kept only for users who
// come from there.
//
// Times are kept in microseconds, which is what the clock of Redis gives; the
// states of this package and the script of package redisstore agree number for
// number, and one conformance suite (package storetest) holds them together.
package limit

import (
	"fmt"
	"math"
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
)

// String gives the algorithm's name.
func (a Algorithm) String() string {
	switch a {
	case Sliding:
		return "sliding"
	case Fixed:
		return "fixed"
	}
	return fmt.Sprintf("algorithm(%d)", uint8(a))
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
	algorithm Algorithm
	requests  uint32
	window    int64 // microseconds
}

// New checks the parts of a limit. Requests may be 0, which admits nothing. A
// window is rounded up to whole microseconds and must be between a
// millisecond and ten years.
func New(a Algorithm, requests uint32, window time.Duration) (Limit, error) {
	if a != Sliding && a != Fixed {
		return Limit{}, fmt.Errorf("unknown algorithm %d", a)
	}
	if window < minWindow || window > maxWindow {
		return Limit{}, fmt.Errorf("window %s is not between %s and %s", window, minWindow, maxWindow)
	}
	return Limit{algorithm: a, requests: requests, window: (int64(window) + 999) / 1000}, nil
}

// Algorithm tells how the limit counts.
func (l Limit) Algorithm() Algorithm { return l.algorithm }

// Requests is how many may pass in a window.
func (l Limit) Requests() uint32 { return l.requests }

// Window is the length of the window.
func (l Limit) Window() time.Duration { return micros(l.window) }

// WindowStart is the beginning of the fixed window that now is in.
func (l Limit) WindowStart(now time.Time) time.Time {
	at := now.UnixMicro()
	return time.UnixMicro(at - mod(at, l.window))
}

// Use is what one request asks of one limit.
type Use struct {
	// Key names the counter: policy, limit and the caller's values.
	Key   string
	Limit Limit
	// Hits is how much to take. 0 takes nothing and asks: a sliding limit
	// answers whether one more would pass.
	Hits uint64
	// Observe makes the use count as far as it fits and never refuse the request.
	Observe bool
}

// Bounded is Hits, at most 2^32: more than any limit admits.
func (u Use) Bounded() uint64 { return min(u.Hits, maxHits) }

// Outcome is what became of one use.
type Outcome struct {
	// Over says that the use does not fit into its limit.
	Over bool
	// Remaining is what is left after this decision.
	Remaining uint32
	// RetryAfter is, for a use that is over, when the same use would pass if
	// nothing else came; for a use greater than its limit it is the window.
	RetryAfter time.Duration
	// Reset is when the whole limit is free again if nothing else comes.
	Reset time.Duration
}

// Refused says whether a decision with these outcomes refuses the request: any
// use is over that is not only observed. Fixed limits never hold each other back
// but the request is refused all the same.
func Refused(uses []Use, outcomes []Outcome) bool {
	for i := range uses {
		if outcomes[i].Over && !uses[i].Observe {
			return true
		}
	}
	return false
}

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
