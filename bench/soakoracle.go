package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"
)

// counting is how a limit of the soak counts.
type counting uint8

const (
	slides  counting = iota // a sliding window
	bucket                  // GCRA
	places                  // what is under way
	forever                 // never used up: whoever is refused is refused wrongly
	fairly                  // a sliding window that tenants share: refusals follow what all of them ask for
)

// soakRule is a limit as the oracle knows it.
type soakRule struct {
	name   string
	counts counting
	most   int
	burst  int // of a bucket
	window time.Duration
	leased bool
	// replicas, each of which may let pass as much by itself while Redis is away.
	replicas int
}

// keeps is for how long a hit counts at most, for a sliding window with its steps.
func (r soakRule) keeps() time.Duration { return r.window + r.window/32 + 2*time.Millisecond }

// reach is how far back what passed can make a difference: what passed during an outage
// and still counts at its end counts from then, for a window.
func (r soakRule) reach() time.Duration { return 2*r.keeps() + time.Second }

// settles is how long it takes replicas to tell Redis of what single decisions owe it:
// a second, and some for a busy machine. It may take longer, for as long as they say that
// they owe something.
const settles = 3 * time.Second / 2

// clears is how long after what disturbed the service it can make a difference: what
// passed meanwhile was told by then, or it would still be disturbed, and counts for a
// window. A share counts for longer by the time that it may be used, and parts of
// tenants follow what they asked for in the window before, too.
func (r soakRule) clears() time.Duration {
	switch {
	case r.counts == forever: // nothing ever lets it refuse
		return 0
	case r.counts == fairly:
		return 2*r.keeps() + settles
	case r.leased:
		return r.keeps() + r.window/8 + settles
	}
	return r.keeps() + settles
}

// account is what the oracle knows about one counter: when requests that passed were
// sent and answered. The decision was in between; each judgement takes for granted
// what is best for the service. Times are since the beginning of the soak.
type account struct {
	rule   soakRule
	mu     sync.Mutex
	under  int // requests that are not answered
	peak   int
	passed []passage // by the time of the answer
	// slow are when it was asked for longer than Redis is waited for: these may have been
	// decided without it.
	slow []span
}

type passage struct {
	sent, answered time.Duration
	// ended and over are when the end of what holds a place was sent and answered, 0
	// before that.
	ended, over time.Duration
	id          uint64
}

// verdict is what the oracle says about an answer.
type verdict struct {
	// wrong as long as nothing disturbed the service between from and to.
	wrong bool
	// lenient: wrong whatever disturbed it.
	lenient  bool
	from, to time.Duration
	what     string
	// excess is by how much more passed than the limit.
	excess int
	// of is whose it is.
	of *account
}

func (a *account) begin() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.under++
	a.peak = max(a.peak, a.under)
}

// fail is a request that got no answer: it may have passed.
func (a *account) fail(now func() time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.under--
	a.passed = append(a.passed, passage{sent: -a.rule.reach(), answered: now()})
}

// pass takes in that a request passed.
func (a *account) pass(id uint64, sent time.Duration, now func() time.Duration) verdict {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.under--
	answered := now()
	a.forget(answered)
	a.passed = append(a.passed, passage{sent: sent, answered: answered, id: id})
	most, surely := a.rule.most, 0
	switch a.rule.counts {
	case forever:
		return verdict{to: answered, from: sent, of: a}
	case places:
		for _, p := range a.passed { // held by now for sure
			if p.ended == 0 && answered-p.sent < a.rule.window-2*time.Millisecond {
				surely++
			}
		}
	case bucket:
		most += a.rule.burst - 1
		surely = a.within(answered)
	case slides, fairly:
		surely = a.within(answered)
	}
	return verdict{
		wrong: surely > most, lenient: surely > most*a.rule.replicas+a.peak, excess: max(surely-most, 0),
		from: sent - a.rule.clears(), to: answered, of: a,
		what: fmt.Sprintf("%s: %d passed of %d", a.rule.name, surely, most),
	}
}

// within is how many passed in the window that ends now, for sure.
func (a *account) within(now time.Duration) (n int) {
	since := now - a.rule.window + 2*time.Millisecond
	for _, p := range slices.Backward(a.passed) {
		if p.answered <= since {
			break
		}
		if p.sent > since {
			n++
		}
	}
	return n
}

// refuse takes in that a request was refused.
func (a *account) refuse(sent time.Duration, now func() time.Duration) verdict {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.under--
	answered := now()
	v := verdict{from: sent - a.rule.clears(), to: answered, of: a}
	// Those that are under way may have been decided before this one.
	counted, ever := a.under, 2*a.under
	for _, p := range a.passed {
		if a.mayCount(p, sent) {
			counted++
		}
		if p.answered > sent-a.rule.reach() {
			ever += 2 // counted by Redis, which did not say so, and again when it was back
		}
	}
	enough := a.rule.most
	switch a.rule.counts {
	case forever:
		v.wrong, v.lenient = true, true
	case fairly:
		v.wrong = counted == 0
	case bucket:
		v.wrong, v.lenient = a.level(sent)+a.under+1 <= a.rule.burst, ever == 0
		v.from = a.roomSince(sent) - settles
	default:
		if a.rule.leased { // the rest may be in another replica's hands
			enough /= 2
		}
		v.wrong, v.lenient = counted < enough, ever < enough
	}
	v.what = fmt.Sprintf("%s: refused with at most %d of %d used", a.rule.name, counted, a.rule.most)
	return v
}

// mayCount says whether what passed may count against a request sent then.
func (a *account) mayCount(p passage, sent time.Duration) bool {
	if a.rule.counts == places && p.over != 0 && p.over <= sent {
		return false
	}
	return p.answered > sent-a.rule.keeps()
}

// level is how many hits are in the bucket at most when a request that was sent at a time
// is decided. What was answered later may have been decided before it all the same, and
// nothing of it has run out then.
func (a *account) level(at time.Duration) int {
	interval := a.rule.window / time.Duration(a.rule.most)
	var level, as time.Duration
	for _, p := range a.passed {
		decided := min(p.answered, at)
		level = max(level-(decided-as), 0) + interval
		as = decided
	}
	level = max(level-(at-as), 0)
	return int((level + interval - 1) / interval)
}

// roomSince is since when a bucket that was as full as one can be, after a request that
// passed, has had to get room for one more before a request was sent then; 0, when all of
// them were empty, if it has not. What disturbed it before is over: while it is asked for
// more than runs out of it, what a bucket was told too much of stays in it for ever.
func (a *account) roomSince(sent time.Duration) time.Duration {
	interval := a.rule.window / time.Duration(a.rule.most)
	since := a.under + 1 // that one, and requests that may have come to it since
	for _, p := range slices.Backward(a.passed) {
		if time.Duration(since)*interval <= sent-p.answered {
			return p.sent
		}
		since++
	}
	return 0
}

// end takes in that the end of what passed is told.
func (a *account) end(id uint64, at time.Duration, answered bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range a.passed {
		if p := &a.passed[i]; p.id == id {
			if answered {
				p.over = at
			} else {
				p.ended = at
			}
			return
		}
	}
}

// forget drops what cannot matter any more.
func (a *account) forget(now time.Duration) {
	gone := 0
	for gone < len(a.passed) && a.passed[gone].answered < now-a.rule.reach() {
		gone++
	}
	if gone > len(a.passed)/2 {
		a.passed = slices.Delete(a.passed, 0, gone)
	}
}

// slowly takes in that a request waited for longer than Redis is waited for. What it is
// asked for is known only to this account.
func (a *account) slowly(sent, answered time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.slow = slices.DeleteFunc(a.slow, func(s span) bool { return s.to < sent-time.Minute })
	a.slow = append(a.slow, span{sent, answered})
}

// slowIn says whether there was such a request then, or one of before was still owed.
func (a *account) slowIn(from, to time.Duration, w *weather) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.ContainsFunc(a.slow, func(s span) bool { return s.from <= to && w.settledAfter(s.to) >= from })
}

// ledger counts all that passed, by epoch: a new one begins whenever Redis forgets.
type ledger struct {
	mu     sync.Mutex
	epoch  int
	passed int64 // in this epoch
	// twice is how much more was counted than passed in this epoch, all in all of them:
	// what Redis counted without saying so in time is counted again when it is back.
	twice, all int64
}

func (l *ledger) now() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.epoch
}

// add takes in one that passed and was sent in the epoch.
func (l *ledger) add(epoch int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if epoch == l.epoch {
		l.passed++
	}
}

// forgotten begins a new epoch.
func (l *ledger) forgotten() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.epoch, l.passed, l.twice = l.epoch+1, 0, 0
}

// audit compares with what is counted while nothing is under way, and says how many
// that passed since the last audit are not.
func (l *ledger) audit(used int64) (lost int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	more := used - l.passed
	if more < l.twice {
		return l.twice - more
	}
	l.all += more - l.twice
	l.twice = more
	return 0
}

// weather is when something disturbed the service: a fault of ours, or a Redis that did
// not answer in time because the machine had other things to do. Single answers that
// came too late are no weather, but their account's.
type weather struct {
	mu    sync.Mutex
	spans []span // in order
	// settled is when it was looked and no replica owed Redis anything, in order.
	settled []span
	// storm is since when there is a fault of ours, 0 if there is none.
	storm time.Duration
}

type span struct{ from, to time.Duration }

func (w *weather) disturbed(from, to time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.spans); n > 0 && from <= w.spans[n-1].to+50*time.Millisecond {
		w.spans[n-1].from = min(w.spans[n-1].from, from)
		w.spans[n-1].to = max(w.spans[n-1].to, to)
		return
	}
	w.spans = append(w.spans, span{from, to})
}

// set says that a fault of ours begins or ends.
func (w *weather) set(storm bool, now time.Duration) {
	if !storm {
		w.disturbed(w.since(), now)
		now = 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.storm = now
}

// since is when the fault that there is began, 0 if there is none.
func (w *weather) since() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.storm
}

// settles takes in that no replica owed anything at some time in a look.
func (w *weather) settles(from, to time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.settled = append(w.settled, span{from, to})
}

// settledAfter is by when replicas had told Redis all that they owed it at a time; for
// ever as long as nobody knows.
func (w *weather) settledAfter(at time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.settledBy(at)
}

func (w *weather) settledBy(at time.Duration) time.Duration {
	i, _ := slices.BinarySearchFunc(w.settled, at, func(s span, at time.Duration) int { return cmp.Compare(s.from, at) })
	if i == len(w.settled) {
		return math.MaxInt64
	}
	return w.settled[i].to
}

func (w *weather) touched(from, to time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.storm != 0 && to >= w.storm {
		return true
	}
	for _, s := range slices.Backward(w.spans) {
		if w.settledBy(s.to) < from {
			return false
		}
		if s.from <= to {
			return true
		}
	}
	return false
}

// judge collects what the oracle found wrong.
type judge struct {
	mu       sync.Mutex
	weather  *weather
	suspects []verdict // wrong unless it turns out that something disturbed
	// Of all answers, calm are those while there was no fault of ours.
	answers, calm, strictly,
	refusedWrongly, overshot int
	// worst is by how much more passed than the limit in disturbed weather.
	worst    int
	examples []string
}

// take takes a verdict in; refused says of which kind.
func (j *judge) take(v verdict, refused bool) {
	calm, storm := v.to > 0 && !j.touched(v), j.weather.since() != 0
	j.mu.Lock()
	defer j.mu.Unlock()
	j.answers++
	if !storm {
		j.calm++
	}
	if calm {
		j.strictly++
	}
	if v.excess > j.worst {
		j.worst = v.excess
	}
	switch {
	case v.lenient:
		j.guilty(v, refused)
	case v.wrong && calm:
		v.lenient = refused // tells the kind until it is decided
		j.suspects = append(j.suspects, v)
	}
}

// touched says whether something disturbed what a verdict is about.
func (j *judge) touched(v verdict) bool {
	return j.weather.touched(v.from, v.to) || v.of != nil && v.of.slowIn(v.from, v.to, j.weather)
}

func (j *judge) guilty(v verdict, refused bool) {
	if refused {
		j.refusedWrongly++
	} else {
		j.overshot++
	}
	if len(j.examples) < 20 {
		j.examples = append(j.examples, fmt.Sprintf("%.3f s: %s", v.to.Seconds(), v.what))
	}
}

// decide judges the suspects from before known: up to then all disturbances are known.
func (j *judge) decide(known time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var open []verdict
	for _, v := range j.suspects {
		switch {
		case v.to >= known:
			open = append(open, v)
		case !j.touched(v):
			j.guilty(v, v.lenient)
		}
	}
	j.suspects = open
}
