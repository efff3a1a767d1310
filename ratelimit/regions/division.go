package regions

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

// maxWeight bounds a region's weight, and maxRegions how many there are.
const (
	maxWeight  = 1000
	maxRegions = 16
)

// Division says how limits are divided among regions. It is not changed once made.
type Division struct {
	own string
	// names are sorted; region i has what lies between the weights before it and those
	// up to it.
	names []string
	upTo  []uint64
	text  string
}

// NewDivision makes the division of a region of this name. Each region has so much of
// a limit as its weight is of all weights.
func NewDivision(own string, weights map[string]int) (*Division, error) {
	if n := len(weights); n < 2 || n > maxRegions {
		return nil, fmt.Errorf("shares: %d regions, want 2 to %d", n, maxRegions)
	}
	if _, ok := weights[own]; !ok {
		return nil, fmt.Errorf("shares: this region, %s, has none", own)
	}
	d := &Division{own: own, names: slices.Sorted(maps.Keys(weights))}
	sum, text := uint64(0), make([]string, 0, len(weights))
	for _, name := range d.names {
		w := weights[name]
		if w < 1 || w > maxWeight {
			return nil, fmt.Errorf("shares.%s: %d is not between 1 and %d", name, w, maxWeight)
		}
		if err := checkName(name); err != nil {
			return nil, err
		}
		sum += uint64(w)
		d.upTo = append(d.upTo, sum)
		text = append(text, fmt.Sprintf("%s=%d", name, w))
	}
	d.text = strings.Join(text, ",")
	return d, nil
}

// maxName bounds the name of a region in bytes.
const maxName = 63

func checkName(name string) error {
	bad := func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }
	if name == "" || len(name) > maxName || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("region %q: a name has 1 to %d of a-z, 0-9 and -", name, maxName)
	}
	return nil
}

// String is the same in all regions that divide limits in the same way.
func (d *Division) String() string { return d.text }

// part is what a region has of n. The parts of all add up to n.
func (d *Division) part(region string, n uint32) uint32 {
	i, ok := slices.BinarySearch(d.names, region)
	if !ok {
		return 0
	}
	all, before := d.upTo[len(d.upTo)-1], uint64(0)
	if i > 0 {
		before = d.upTo[i-1]
	}
	return uint32(uint64(n)*d.upTo[i]/all - uint64(n)*before/all) //nolint:gosec // at most n
}

// Of is this region's part of a limit.
//
// Of a bucket both rate and burst are divided, and a burst is at least one where
// anything passes: in any window at most requests + burst - 1 pass in all regions, as
// the limit says, but at once one more for each further region.
func (d *Division) Of(l limit.Limit) (limit.Limit, error) {
	requests := d.part(d.own, l.Requests())
	if l.Algorithm() == limit.GCRA && requests > 0 {
		return limit.NewGCRA(requests, l.Window(), max(d.part(d.own, l.Burst()), 1))
	}
	return limit.New(l.Algorithm(), requests, l.Window())
}
