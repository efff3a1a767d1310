// Package limit holds the arithmetic of rate limits: values and a time in, an
// outcome out, no I/O and no clock of its own.
//
// Two algorithms are offered. [Sliding] lets never more than the limit pass in
// any stretch of time as long as the window, wherever it begins, and a refused
// use takes nothing. [Fixed] counts in windows aligned to the Unix epoch and
// counts refused uses too, exactly as envoyproxy/ratelimit does: it keeps the
// limit in each of those windows, and twice the limit may pass in a stretch that
// lies across the edge of two. It is only for users who come from there.
//
// An algorithm is one file here, with its [State] and its place in
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
	state func() State
}

// spec is the only list of the algorithms.
func (a Algorithm) spec() (spec, error) {
	switch a {
	case Sliding:
		return spec{name: "sliding", code: "s", state: func() State { return newSliding() }}, nil
	case Fixed:
		return spec{name: "fixed", code: "f", countsRefused: true, ownWindows: true, state: func() State { return new(fixed) }}, nil
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

// State is what is remembered of the uses of one limit under one key. It is not
// safe for concurrent use.
type State interface {
	// Check says what would become of hits, on top of pending hits that were
	// checked before in the same decision. It takes nothing.
	Check(l Limit, now time.Time, hits, pending uint64) Outcome
	// Add takes hits, whether they fit or not.
	Add(l Limit, now time.Time, hits uint64)
	// After describes the limit once a decision is made.
	After(l Limit, now time.Time) (remaining uint32, reset time.Duration)
	// Idle says that nothing counts any more, so that the state may be forgotten.
	Idle(l Limit, now time.Time) bool
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
	window        int64 // microseconds
}

// New checks the parts of a limit. Requests may be 0, which admits nothing. A
// window is rounded up to whole microseconds and must be between a
// millisecond and ten years.
func New(a Algorithm, requests uint32, window time.Duration) (Limit, error) {
	s, err := a.spec()
	if err != nil {
		return Limit{}, err
	}
	if window < minWindow || window > maxWindow {
		return Limit{}, fmt.Errorf("window %s is not between %s and %s", window, minWindow, maxWindow)
	}
	return Limit{algorithm: a, countsRefused: s.countsRefused, requests: requests, window: (int64(window) + 999) / 1000}, nil
}

// Algorithm tells how the limit counts.
func (l Limit) Algorithm() Algorithm { return l.algorithm }

// Requests is how many may pass in a window.
func (l Limit) Requests() uint32 { return l.requests }

// Window is the length of the window.
func (l Limit) Window() time.Duration { return micros(l.window) }

// CountsRefused says that a use is counted whatever becomes of it and of the
// others in the same decision. Uses of other limits are counted only if nothing
// that they are decided with is refused.
func (l Limit) CountsRefused() bool { return l.countsRefused }

// NewState makes the state of a limit that was not used yet. Limits with the same
// algorithm may follow each other on one state, as when a limit is edited. Of what
// is not a limit it fails.
func (l Limit) NewState() (State, error) {
	s, err := l.algorithm.spec()
	if err != nil {
		return nil, err
	}
	return s.state(), nil
}

// CounterKey is the name of the counter in Redis of uses under key at now.
func (l Limit) CounterKey(key string, now time.Time) string {
	if s, err := l.algorithm.spec(); err != nil || !s.ownWindows {
		return key
	}
	// As envoyproxy/ratelimit has it, so that both can count side by side. It knows
	// windows of whole seconds only.
	start := l.windowStart(now)
	if l.Window()%time.Second != 0 {
		return key + "_" + strconv.FormatInt(start.UnixMicro(), 10) + "us"
	}
	return key + "_" + strconv.FormatInt(start.Unix(), 10)
}

// windowStart is the beginning of the window aligned to the epoch that now is in.
func (l Limit) windowStart(now time.Time) time.Time {
	at := now.UnixMicro()
	return time.UnixMicro(at - mod(at, l.window))
}

// Use is what one request asks of one limit.
type Use struct {
	// Key names the counter: policy, limit and the caller's values. Limits with
	// different algorithms have different keys, see Algorithm.Code.
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
// use is over that is not only observed.
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
