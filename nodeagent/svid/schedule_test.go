package svid

import (
	"testing"
	"time"
)

func TestRenewIn(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	for _, tc := range []struct {
		name                string
		notBefore, notAfter time.Duration
		jitter              float64
		want                time.Duration
	}{
		{"half", 0, time.Hour, 0.5, 30 * time.Minute},
		{"earliest", 0, time.Hour, 0, 24 * time.Minute},
		{"backdated", -time.Hour, time.Hour, 0.5, 30 * time.Minute},
		{"shortest", 0, 10 * time.Second, 0.5, 5 * time.Second},
		{"clock an hour behind", time.Hour, 2 * time.Hour, 0.5, 30 * time.Minute},
		{"nearly expired", -time.Hour, time.Millisecond, 0.5, minRenew},
	} {
		if got := renewIn(now.Add(tc.notBefore), now.Add(tc.notAfter), now, tc.jitter); got.Round(time.Millisecond) != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}

func TestRetryIn(t *testing.T) {
	for _, tc := range []struct {
		attempt int
		left    time.Duration
		want    time.Duration
	}{
		{0, 0, 100 * time.Millisecond},
		{2, 0, 400 * time.Millisecond},
		{30, 0, time.Second},
		{30, time.Hour, 5 * time.Second},
		{30, 5 * time.Second, 500 * time.Millisecond},
		{1000, time.Millisecond, 100 * time.Millisecond},
	} {
		if got := retryIn(tc.attempt, tc.left, 0.5); got != tc.want {
			t.Errorf("attempt %d with %s left: %s, want %s", tc.attempt, tc.left, got, tc.want)
		}
	}
}

func TestAtLeast(t *testing.T) {
	for _, tc := range []struct{ wait, after, want time.Duration }{
		{time.Second, 0, time.Second},
		{time.Second, 4 * time.Second, 5 * time.Second},
		{10 * time.Second, time.Second, 10 * time.Second},
	} {
		if got := atLeast(tc.wait, tc.after, 0.5); got != tc.want {
			t.Errorf("%s, at least %s: %s, want %s", tc.wait, tc.after, got, tc.want)
		}
	}
}
