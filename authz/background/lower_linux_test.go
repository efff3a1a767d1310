package background

import (
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/writ-mesh/writ/internal/proctest"
)

// The work's thread is nicer than the others, none of which becomes so by it. Where it may
// rise again it steps back besides.
func TestPriority(t *testing.T) {
	own, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := make(chan thread)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends
		found <- lower()
	}()
	free := (<-found).free
	type priority struct {
		left   int
		policy uint32
	}
	ask := func() (p priority, err error) {
		if p.left, err = unix.Getpriority(unix.PRIO_PROCESS, 0); err != nil {
			return p, err
		}
		a, err := unix.SchedGetAttr(0, 0)
		if err == nil {
			p.policy = a.Policy
		}
		return p, err
	}
	var within, beside priority
	err = Run(t.Context(), func() error {
		started := make(chan error)
		go func() {
			var err error
			beside, err = ask()
			started <- err
		}()
		if err := <-started; err != nil {
			return err
		}
		within, err = ask()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want, policy := max(own-less, niceBase-nicest), uint32(unix.SCHED_IDLE)
	if !free {
		want, policy = max(own-less-1, niceBase-nicest), unix.SCHED_NORMAL
	}
	if within != (priority{want, policy}) || beside != (priority{own, unix.SCHED_NORMAL}) {
		t.Errorf("the kernel says %v for the work, want %v %v; %v for what it started, want %v", within, want, policy, beside, own)
	}
}

// A thread that does not get on rises, for a while.
func TestStarved(t *testing.T) {
	const got, little = lookEvery, lookEvery / tenth / 2
	type step struct {
		used time.Duration // since the one before
		room bool
		want bool
	}
	times := func(n int, s step) (out []step) {
		for range n {
			out = append(out, s)
		}
		return out
	}
	on, up := step{got, true, true}, step{got, true, false}
	for name, steps := range map[string][]step{
		"gets on":         times(100, on),
		"gets a little":   times(100, step{lookEvery / tenth, true, true}),
		"is late once":    append(append(times(3, on), step{0, true, true}, step{0, true, true}), times(100, on)...),
		"starves":         append(append(times(3, on), step{little, true, true}, step{little, true, true}, step{little, true, false}), append(times(49, up), times(9, on)...)...),
		"from the first":  {{0, true, true}, {0, true, true}, {0, true, true}, {0, true, false}},
		"starves again":   append(append(times(1, on), times(2, step{0, true, true})...), append(times(50, step{0, true, false}), step{0, true, true}, step{0, true, true}, step{0, true, true}, step{0, true, false})...),
		"garbage":         append(append(times(3, on), step{got, false, false}), append(times(49, step{got, false, false}), step{got, false, false}, step{got, true, true})...),
		"garbage, starve": {on, {0, true, true}, {0, false, false}, up},
	} {
		w := watching{back: true}
		now, used := time.Unix(1, 0), time.Duration(0)
		for i, s := range steps {
			now, used = now.Add(lookEvery), used+s.used
			if w.back = w.look(now, used, s.room); w.back != s.want {
				t.Errorf("%s: %v at step %d", name, w.back, i)
				break
			}
		}
	}
}

// A thread that steps back is one of the kernel's idle ones until it does not get on, and
// never afterwards; its clock is its own.
func TestRises(t *testing.T) {
	found, end := make(chan thread), make(chan struct{})
	defer close(end)
	go func() {
		runtime.LockOSThread()
		found <- lower()
		<-end // it waits, and so does not get on
	}()
	th := <-found
	before, err := th.used()
	if err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); time.Since(begin) < 50*time.Millisecond; {
		runtime.Gosched()
	}
	if after, err := th.used(); err != nil || after-before > 10*time.Millisecond {
		t.Errorf("it used %v by waiting, error %v", after-before, err)
	}
	if !th.free {
		t.Skip("a thread may not rise here") // needs CAP_SYS_NICE or RLIMIT_NICE
	}
	is := func(want uint32) error {
		a, err := unix.SchedGetAttr(th.id, 0)
		if err == nil && a.Policy != want {
			err = fmt.Errorf("policy %d, want %d", a.Policy, want)
		}
		return err
	}
	stop := th.watch()
	if err := is(unix.SCHED_IDLE); err != nil {
		t.Error(err)
	}
	proctest.Eventually(t, 30*time.Second, func() error { return is(unix.SCHED_NORMAL) })
	stop()
	left, err := unix.Getpriority(unix.PRIO_PROCESS, th.id)
	if err := errors.Join(err, is(unix.SCHED_NORMAL)); err != nil || left != niceBase-th.nice {
		t.Errorf("afterwards %d is left, error %v", left, err)
	}
}
