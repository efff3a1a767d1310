package background

import (
	"testing"
	"testing/synctest"
	"time"
)

// The thread more stays from one work to the next, as long as the next comes soon.
func TestWidth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		narrowed := 0
		w := widening{stays: time.Minute, narrow: func() { narrowed++ }} // as if there was work before
		is := func(after time.Duration, want int) {
			t.Helper()
			time.Sleep(after) // time of the bubble
			synctest.Wait()
			w.mu.Lock()
			defer w.mu.Unlock()
			if narrowed != want || (w.narrow == nil) != (want == 1) {
				t.Errorf("narrowed %d times, want %d", narrowed, want)
			}
		}
		first, second := w.widen(), w.widen()
		first()
		is(time.Hour, 0) // the second works
		second()
		is(time.Minute-time.Second, 0)
		w.widen()()
		is(2*time.Second, 0) // the second's minute is over
		is(time.Minute-3*time.Second, 0)
		is(2*time.Second, 1)
	})
}
