package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"time"
)

// row is one line of the table. Zero values are printed as "-".
type row struct {
	name string
	// ours and floor are CPU time per operation.
	ours, floor time.Duration
	// rate is operations of ours per second, which is bounded by the load
	// generator on the same machine and only there to see that it was busy.
	rate float64
	note string
}

func printHead(w io.Writer) {
	_, _ = fmt.Fprintf(w, "%-52s %10s %10s %7s %9s  %s\n", "what", "ours", "floor", "ratio", "ops/s", "")
}

func (r row) print(w io.Writer) {
	ours, floor, ratio, rate := "-", "-", "-", "-"
	if r.ours > 0 {
		ours = micro(r.ours)
	}
	if r.floor > 0 {
		floor, ratio = micro(r.floor), fmt.Sprintf("%.2f", float64(r.ours)/float64(r.floor))
	}
	if r.rate > 0 {
		rate = fmt.Sprintf("%.0f", r.rate)
	}
	_, _ = fmt.Fprintf(w, "%-52s %10s %10s %7s %9s  %s\n", r.name, ours, floor, ratio, rate, r.note)
}

// micro writes a time in microseconds, or in milliseconds where that reads better.
func micro(d time.Duration) string {
	if d >= 10*time.Millisecond {
		return fmt.Sprintf("%.0f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%.1f us", float64(d)/float64(time.Microsecond))
}

// medianRatio is the round with the median of the ratios: what disturbs a round
// disturbs ours and the floor. Its note has the least and the greatest ratio.
func medianRatio(rounds []row) row {
	ratio := func(r row) float64 { return float64(r.ours) / float64(r.floor) }
	slices.SortFunc(rounds, func(a, b row) int { return cmp.Compare(ratio(a), ratio(b)) })
	out := rounds[(len(rounds)-1)/2]
	out.note = fmt.Sprintf("%.2f to %.2f", ratio(rounds[0]), ratio(rounds[len(rounds)-1]))
	return out
}

// median of an odd number of values is the middle one, of an even number the
// lower of the two.
func median[T int64 | float64 | time.Duration](values []T) T {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[(len(sorted)-1)/2]
}
