package proctest

import (
	"errors"
	"testing"
	"time"
)

// Eventually calls f every 5 ms until it returns nil. After the bound the last
// error fails the test.
func Eventually(t testing.TB, bound time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(bound)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", bound, err)
		}
		<-tick.C
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
