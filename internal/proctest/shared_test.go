package proctest_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/writ-mesh/writ/internal/proctest"
)

// TestSharedOutlivesItsUsers: tests at the same time share one, which ends after the
// last of them, whichever started it; who comes later has another one, also after a
// start that failed.
func TestSharedOutlivesItsUsers(t *testing.T) {
	var s proctest.Shared[string]
	var mu sync.Mutex
	running := ""
	set := func(to string) {
		mu.Lock()
		defer mu.Unlock()
		running = to
	}
	start := func(t testing.TB) string {
		set(t.Name())
		t.Cleanup(func() { set("") })
		return t.Name()
	}
	check := func(t *testing.T, want string) {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		if running != want {
			t.Errorf("%q runs, want %q", running, want)
		}
	}
	t.Run("fails", func(t *testing.T) {
		s.Get(t, func(t testing.TB) string { t.Skip("cannot start"); return "" })
	})
	for _, last := range []int{0, 1, 2} { // who uses it longest; 0 is who started it
		t.Run(fmt.Sprint("last is ", last), func(t *testing.T) {
			var tests, others sync.WaitGroup
			owner, all := t.Name()+"/0", make(chan struct{})
			others.Add(2)
			for n := range 3 {
				got := make(chan struct{})
				tests.Go(func() {
					t.Run(fmt.Sprint(n), func(t *testing.T) {
						if which := s.Get(t, start); which != owner {
							t.Errorf("it is that of %q, want %q", which, owner)
						}
						close(got)
						<-all
						if n != last {
							others.Done()
							return
						}
						others.Wait()
						check(t, owner)
					})
				})
				<-got
			}
			close(all)
			tests.Wait()
			check(t, "")
		})
	}
}
