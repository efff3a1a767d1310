package main

import (
	"bytes"
	"cmp"
	"errors"
	"os"
	"slices"
	"strconv"
	"time"
)

const (
	// spellLength is into what runs are cut to see in which the host had the processors. It
	// counts what it kept in ticks of 10 ms.
	spellLength = 500 * time.Millisecond
	// lookAtHost is how often it is asked.
	lookAtHost = 50 * time.Millisecond
)

// spell is a part of a run.
type spell struct {
	took []time.Duration
	// stolen is how long the host kept processors that this machine wanted, all of them
	// together.
	stolen time.Duration
}

// calmest gives how long calls took, sorted, in the third of the spells in which the host
// kept the processors least, and the most it kept of any of them. A virtual processor
// that is gone for milliseconds says nothing of who waits for it.
func calmest(spells []spell) (took []time.Duration, stolen time.Duration) {
	sorted := slices.SortedStableFunc(slices.Values(spells), func(a, b spell) int { return cmp.Compare(a.stolen, b.stolen) })
	for _, s := range sorted[:(len(sorted)+2)/3] {
		took = append(took, s.took...)
		stolen = s.stolen
	}
	slices.Sort(took)
	return took, stolen
}

// longer puts n neighbours together; what is left over at the end is left out.
func longer(spells []spell, n int) []spell {
	var out []spell
	for part := range slices.Chunk(spells, n) {
		if len(part) < n {
			break
		}
		var s spell
		for _, p := range part {
			s.took, s.stolen = append(s.took, p.took...), s.stolen+p.stolen
		}
		out = append(out, s)
	}
	return out
}

// hostLog is what the host had kept at moments, the earlier first.
type hostLog struct {
	at     []time.Time
	stolen []time.Duration
}

// watchHost looks until stop is called, which gives what was seen.
func watchHost() (stop func() hostLog) {
	over, seen := make(chan struct{}), make(chan hostLog)
	go func() {
		var log hostLog
		tick := time.NewTicker(lookAtHost)
		defer tick.Stop()
		for {
			if data, err := os.ReadFile("/proc/stat"); err == nil {
				if stolen, err := parseStolen(data); err == nil {
					log.at, log.stolen = append(log.at, time.Now()), append(log.stolen, stolen)
				}
			}
			select {
			case <-over:
				seen <- log
				return
			case <-tick.C:
			}
		}
	}()
	return func() hostLog {
		close(over)
		return <-seen
	}
}

// between is what was kept from one moment to another, as far as it was seen.
func (l hostLog) between(from, to time.Time) time.Duration {
	if len(l.at) == 0 {
		return 0
	}
	look := func(t time.Time) time.Duration {
		i, _ := slices.BinarySearchFunc(l.at, t, time.Time.Compare)
		return l.stolen[min(i, len(l.at)-1)]
	}
	return look(to) - look(from)
}

// parseStolen takes the time that the host kept of all processors, since the start, out
// of /proc/stat (proc(5), the eighth number of the first line).
func parseStolen(data []byte) (time.Duration, error) {
	line, _, _ := bytes.Cut(data, []byte("\n"))
	fields := bytes.Fields(line)
	if len(fields) < 9 || string(fields[0]) != "cpu" {
		return 0, errors.New("/proc/stat has another form")
	}
	ticks, err := strconv.ParseInt(string(fields[8]), 10, 64)
	return time.Duration(ticks) * (time.Second / ticksPerSecond), err
}
