package plans

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// results names the ways to numbers in metrics.
var results = [...]string{byNothing: "none", byPlan: "plan", byItself: "own", byDefault: "default", byRefusal: "refused"}

// collector tells how the tables stand when it is asked.
type collector struct {
	book                            *Book
	callers, age, failures, lookups *prometheus.Desc
}

// Collector gives the metrics of the tables; their names are configuration, which
// bounds the series.
func (b *Book) Collector() prometheus.Collector {
	desc := func(name, help string, more ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, append([]string{"table"}, more...), nil)
	}
	return &collector{
		book:     b,
		callers:  desc("writ_ratelimit_plan_callers", "Callers that a table of plans names."),
		age:      desc("writ_ratelimit_plan_age_seconds", "Time since a table of plans was last known to be what its file or Redis has."),
		failures: desc("writ_ratelimit_plan_failures_total", "Times that a table of plans could not be read, or not all of it, and the last good one stayed."),
		lookups:  desc("writ_ratelimit_plan_lookups_total", "Numbers looked up in a table of plans, by what was found.", "result"),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	out <- c.callers
	out <- c.age
	out <- c.failures
	out <- c.lookups
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	for _, h := range c.book.all() {
		callers := 0
		if t := h.table.Load(); t != nil {
			callers = t.Callers()
			age := c.book.options.Now().Sub(time.Unix(0, h.current.Load())).Seconds()
			out <- prometheus.MustNewConstMetric(c.age, prometheus.GaugeValue, age, h.name)
		}
		out <- prometheus.MustNewConstMetric(c.callers, prometheus.GaugeValue, float64(callers), h.name)
		out <- prometheus.MustNewConstMetric(c.failures, prometheus.CounterValue, float64(h.failures.Load()), h.name)
		for by := range h.lookups {
			out <- prometheus.MustNewConstMetric(c.lookups, prometheus.CounterValue, float64(h.lookups[by].Load()), h.name, results[by])
		}
	}
}
