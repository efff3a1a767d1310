package background

import (
	"context"
	"runtime/metrics"
	"time"

	"golang.org/x/sys/unix"

	"github.com/writ-mesh/writ/internal/service"
)

const (
	// less is by how much nicer the thread is than the process: it gets about a tenth of
	// what one that serves gets where both want to run, and all of what is left over. It
	// is not less, because collecting garbage has to wait until it has stopped.
	less = 10
	// nicest is the kernel's bound, and niceBase what its call counts down from.
	nicest, niceBase = 19, 20

	// lookEvery is how often a thread that steps back is looked at.
	lookEvery = 20 * time.Millisecond
	// starved is for how long it may get less than a tenth of a processor, and upright for
	// how long it does not step back after that.
	starved, upright = 3 * lookEvery, time.Second
	tenth            = 10
	// Of the room for garbage it steps back until two thirds are used: the collection
	// that begins at seven tenths at the earliest would have to wait for it.
	roomUsed, roomWhole = 2, 3
)

// thread is the work's.
type thread struct {
	id, nice int
	// free says that it may get a higher priority again.
	free bool
}

// lower lowers the priority of this thread. If that fails it stays as it is.
func lower() thread {
	t := thread{id: unix.Gettid()}
	left, err := unix.Getpriority(unix.PRIO_PROCESS, t.id)
	if err != nil {
		return t
	}
	own := niceBase - left
	t.nice = min(own+less, nicest)
	// A step too far and back shows whether there is a way back: the kernel asks for the
	// same right as below.
	tooFar := min(t.nice+1, nicest)
	_ = unix.Setpriority(unix.PRIO_PROCESS, t.id, tooFar)
	t.free = unix.Setpriority(unix.PRIO_PROCESS, t.id, t.nice) == nil && tooFar != t.nice
	return t
}

// stepBack has the thread run only where nobody else wants to, or as lower left it. Others
// that wake take the processor from it at once then, which they do not from one that is
// only nicer, and the kernel gives them a processor where nothing else runs rather than
// one where they would wait.
func (t thread) stepBack(on bool) error {
	a := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: int32(t.nice)} //nolint:gosec // at most nicest
	if on {
		a.Policy = unix.SCHED_IDLE
	}
	return unix.SchedSetAttr(t.id, &a, 0)
}

// used is the processor time that the thread has had.
func (t thread) used() (time.Duration, error) {
	// The clock of a thread: ~id, the bit for threads, and which one (CPUCLOCK_SCHED).
	const perThread, sched = 4, 2
	var ts unix.Timespec
	err := unix.ClockGettime(int32(^t.id<<3|perThread|sched), &ts) //nolint:gosec // as the kernel defines it
	return time.Duration(ts.Nano()), err
}

// watch has the thread step back while it gets on nevertheless, until end. What it holds
// meanwhile, others may want: the runtime's locks, and that it stops for a collection.
func (t thread) watch() (end func()) {
	if !t.free {
		return func() {}
	}
	back := roomLeft()
	if t.stepBack(back) != nil {
		return func() {}
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w := watching{back: back}
		_ = service.Every(ctx, lookEvery, func(now time.Time) {
			used, err := t.used()
			if back := err == nil && w.look(now, used, roomLeft()); back != w.back {
				w.back = back
				_ = t.stepBack(back)
			}
		})
	}()
	return func() {
		stop()
		<-ended
		_ = t.stepBack(false)
	}
}

// watching is what was seen of a thread.
type watching struct {
	// back says that it steps back.
	back bool
	// since is when it had used so much, or when it rose.
	since time.Time
	used  time.Duration
}

// look says whether the thread shall step back, which has used so much until now.
func (w *watching) look(now time.Time, used time.Duration, room bool) bool {
	passed := now.Sub(w.since)
	switch {
	case w.since.IsZero(), w.back && (used-w.used)*tenth >= passed:
		w.since, w.used = now, used
		return w.back && room
	case w.back && passed < starved:
		return room
	case w.back:
		w.since = now
		return false
	case passed < upright || !room:
		return false
	}
	w.since, w.used = now, used
	return true
}

// roomLeft says that no collection of garbage is near.
func roomLeft() bool {
	s := []metrics.Sample{{Name: "/gc/heap/goal:bytes"}, {Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(s)
	for _, one := range s {
		if one.Value.Kind() != metrics.KindUint64 {
			return false
		}
	}
	goal, live, is := s[0].Value.Uint64(), s[1].Value.Uint64(), s[2].Value.Uint64()
	return is < live || (is-live)*roomWhole < (goal-min(live, goal))*roomUsed
}
