package regions

import "github.com/prometheus/client_golang/prometheus"

// metrics are by the name of the other region.
type metrics struct {
	borrowed, returned, lent, failures *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	by := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"region"})
	}
	m := &metrics{
		borrowed: by("writ_ratelimit_region_borrowed_hits_total", "Hits that were borrowed from another region."),
		returned: by("writ_ratelimit_region_returned_hits_total", "Hits that were borrowed from another region and given back unused."),
		lent:     by("writ_ratelimit_region_lent_hits_total", "Hits that were lent to another region."),
		failures: by("writ_ratelimit_region_failures_total", "Calls to another region that it refused or did not answer in time."),
	}
	reg.MustRegister(m.borrowed, m.returned, m.lent, m.failures)
	return m
}
