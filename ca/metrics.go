package ca

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the authority.
type metrics struct {
	// issued counts requests by kind (join, renew, issue, mint, istio, self) and
	// result (ok or a reason).
	issued *prometheus.CounterVec
	// took is the time of a request, waiting for a placement and for the disk
	// included.
	took *prometheus.HistogramVec
	// commit is the time of one commit of the ledger, which many certificates share.
	commit *prometheus.HistogramVec
	// records counts what was recorded.
	records prometheus.Counter
	// notAfter is the end of an authority's or server's certificate, in seconds
	// since 1970.
	notAfter *prometheus.GaugeVec
	// placements counts the sets of placements received from pilot.
	placements *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	// From 250 microseconds to 4 seconds: an issuance takes about a millisecond, a
	// slow disk a hundred.
	buckets := prometheus.ExponentialBuckets(0.00025, 2, 15)
	m := &metrics{
		issued: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "writ_ca_issued_total", Help: "Requests for certificates by kind and result.",
		}, []string{"kind", "result"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "writ_ca_issue_seconds", Help: "Time from request to certificate.", Buckets: buckets,
		}, []string{"kind"}),
		commit: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "writ_ca_ledger_commit_seconds", Help: "Time of a commit of the ledger.", Buckets: buckets,
		}, []string{"result"}),
		records: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "writ_ca_ledger_records_total", Help: "Records made durable.",
		}),
		notAfter: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "writ_ca_not_after_seconds", Help: "When a certificate of the authority expires, in seconds since 1970.",
		}, []string{"certificate"}),
		placements: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "writ_ca_placements_total", Help: "Sets of placements from pilot by result.",
		}, []string{"result"}),
	}
	r.MustRegister(m.issued, m.took, m.commit, m.records, m.notAfter, m.placements)
	return m
}

func (m *metrics) answered(kind string, begin, end time.Time, err error) {
	result := "ok"
	if err != nil {
		result = string(reasonOf(err))
	}
	m.issued.WithLabelValues(kind, result).Inc()
	m.took.WithLabelValues(kind).Observe(end.Sub(begin).Seconds())
}

func (m *metrics) committed(records int, took time.Duration, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	} else {
		m.records.Add(float64(records))
	}
	m.commit.WithLabelValues(result).Observe(took.Seconds())
}
