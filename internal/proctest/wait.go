package proctest

import (
	"errors"
	"testing"
	"time"
)

// often and seldom are how long is waited between two questions: what comes soon is
// found soon, and what takes seconds costs other tests no processor for it.
const often, seldom = 5 * time.Millisecond, 50 * time.Millisecond

// Eventually calls f until it returns nil: every 5 ms at first, and later every
// twentieth of the time that it waits already, up to 50 ms. After the bound the last
// error fails the test.
func Eventually(t testing.TB, bound time.Duration, f func() error) {
	t.Helper()
	began := time.Now()
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		<-tick.C
		err := f()
		if err == nil {
			return
		}
		waited := time.Since(began)
		if waited > bound {
			t.Fatalf("not within %s: %v", bound, err)
		}
		tick.Reset(min(max(often, waited/20), seldom))
	}
}

// Until is Eventually for what has no more to say than whether it is so yet;
// what names it if it never is.
func Until(t testing.TB, bound time.Duration, what string, f func() bool) {
	t.Helper()
	Eventually(t, bound, func() error {
		if !f() {
			return errors.New(what)
		}
		return nil
	})
}
