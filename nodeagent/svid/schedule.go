package svid

import "time"

const (
	// minRenew keeps an authority that hands out nearly expired certificates
	// from being asked in a tight loop.
	minRenew = time.Second
	retryMin = 100 * time.Millisecond
	// retryMax bounds the back-off while a valid certificate is at hand, and
	// retryMaxNone while a proxy waits for its first one.
	retryMax     = 5 * time.Second
	retryMaxNone = time.Second
	// hurryMax bounds how long a certificate of an authority that does not sign any
	// more is used on.
	hurryMax = 30 * time.Second
)

// hurryIn says how long to use a certificate on when another authority signs now:
// some part of hurryMax, or of a quarter of the life that is left, so that not all
// certificates of all nodes are renewed at once. One that is useless because its
// root is not trusted any more is used up to minRenew. jitter is in [0, 1).
func hurryIn(left time.Duration, useless bool, jitter float64) time.Duration {
	if useless {
		return time.Duration(float64(minRenew) * jitter)
	}
	return max(time.Duration(float64(min(left/4, hurryMax))*jitter), minRenew)
}

// renewIn says how long to use a certificate that was received now: half of the
// life that is left, give or take a tenth of that life. jitter is in [0, 1).
func renewIn(notBefore, notAfter, now time.Time, jitter float64) time.Duration {
	life := notAfter.Sub(now)
	// With a clock behind the authority's, more seems to be left than there is.
	if whole := notAfter.Sub(notBefore); whole < life {
		life = whole
	}
	return max(time.Duration(float64(life)*(0.4+0.2*jitter)), minRenew)
}

// retryIn says how long to wait after the attempt-th failure, counted from 0. left
// is how long the certificate at hand is still valid, not positive if none is.
// jitter is in [0, 1).
func retryIn(attempt int, left time.Duration, jitter float64) time.Duration {
	limit := retryMaxNone
	if left > 0 {
		// Ten more tries before it expires, if it is that short.
		limit = min(retryMax, max(left/10, retryMin))
	}
	wait := min(retryMin<<min(attempt, 10), limit)
	return time.Duration(float64(wait) * (0.5 + jitter))
}

// atLeast holds a wait to what the authority asked for, after, and up to half of
// that more. jitter is in [0, 1).
func atLeast(wait, after time.Duration, jitter float64) time.Duration {
	return max(wait, after+time.Duration(float64(after)*jitter/2))
}

// turnedBack tells whether the clock went back, since a certificate came, to before
// its life: nobody whose clock is like ours takes it. One of an authority whose clock
// is ahead of ours is none: the next would be the same.
func turnedBack(notBefore, since, now time.Time) bool {
	return now.Before(since) && now.Before(notBefore)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
