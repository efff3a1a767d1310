package regions

import (
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

// Declare says for operators how a limit is kept with other regions, and how much more
// than it may pass at worst. here says the same of this region's part.
func (s *Store) Declare(l limit.Limit, m limit.Mode, here string) string {
	part, err := s.division.Of(l)
	if err != nil || m == limit.Local {
		return here
	}
	text := fmt.Sprintf("%s; region %s has %d of %d", here, s.division.own, part.Requests(), l.Requests())
	if valid, ok := validFor(l); ok {
		text += fmt.Sprintf(" and borrows for %s at a time: in all regions no more than the limit passes, %d here if cut off", valid, part.Requests())
	} else {
		text += " and borrows nothing of this kind of limit: in all regions no more than it passes"
	}
	var others []string
	for _, p := range s.peers {
		up, ever, last := p.state()
		age := (s.up() - last).Round(100 * time.Millisecond)
		switch {
		case up:
			others = append(others, fmt.Sprintf("%s answered %s ago", p.name, age))
		case !ever:
			others = append(others, "nothing was heard of "+p.name+" yet")
		default:
			others = append(others, fmt.Sprintf("%s is away for %s", p.name, age))
		}
	}
	return text + "; " + strings.Join(others, ", ")
}

// ageCollector tells how long ago each region answered.
type ageCollector struct{ store *Store }

// Describe implements prometheus.Collector.
func (a ageCollector) Describe(out chan<- *prometheus.Desc) { out <- a.desc() }

// Collect implements prometheus.Collector. A region that never answered has none.
func (a ageCollector) Collect(out chan<- prometheus.Metric) {
	for _, p := range a.store.peers {
		if _, ever, last := p.state(); ever {
			out <- prometheus.MustNewConstMetric(a.desc(), prometheus.GaugeValue, (a.store.up() - last).Seconds(), p.name)
		}
	}
}

func (ageCollector) desc() *prometheus.Desc {
	return prometheus.NewDesc("writ_ratelimit_region_last_answer_seconds", "How long ago another region was asked something that it answered.", []string{"region"}, nil)
}
