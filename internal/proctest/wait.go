package proctest

import (
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
