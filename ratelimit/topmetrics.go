package ratelimit

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/ratelimit/quota"
	"github.com/writ-mesh/writ/ratelimit/toplist"
)

const (
	// topCallers is how many callers of each limit have a series, topSeries how many
	// series there are at most. However many callers there are, they are no more.
	topCallers = 10
	topSeries  = 1000
)

// topCollector tells of the callers that ask most.
type topCollector struct {
	lists *toplist.Lists
	now   func() time.Time
}

func (topCollector) desc() *prometheus.Desc {
	return prometheus.NewDesc("writ_ratelimit_top_caller_hits",
		"Hits that the callers which ask most asked of each limit in the last 5 to 10 minutes.", []string{"limit", "caller"}, nil)
}

// Describe implements prometheus.Collector.
func (c topCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc() }

// Collect implements prometheus.Collector.
func (c topCollector) Collect(ch chan<- prometheus.Metric) {
	told := make(map[[2]string]bool)
	for _, caller := range c.lists.Top(c.now(), topCallers, func(string) bool { return true }) {
		labels := [2]string{caller.Limit, quota.Masked(caller.Name)}
		if len(told) == topSeries {
			return
		}
		if told[labels] { // the hashes of two values begin alike
			continue
		}
		told[labels] = true
		ch <- prometheus.MustNewConstMetric(c.desc(), prometheus.GaugeValue, float64(caller.Hits), labels[:]...)
	}
}
