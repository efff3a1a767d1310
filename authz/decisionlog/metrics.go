package decisionlog

import "github.com/prometheus/client_golang/prometheus"

// Why records were dropped.
const (
	// reasonSampled: allow_percent left it out.
	reasonSampled = "sampled"
	// reasonQueue: the disk, or nothing but refusals in a full spool, held it up.
	reasonQueue = "queue"
	// reasonSpool: it made room in the spool.
	reasonSpool = "spool"
	// reasonDamaged: it could not be encoded or read again.
	reasonDamaged = "damaged"
	// reasonRefused: the sink will never take it.
	reasonRefused = "refused"
)

type metrics struct {
	dropped *prometheus.CounterVec
	late    prometheus.Counter
	batches *prometheus.CounterVec
	spooled prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "writ_authz_decisions_dropped_total", Help: "Records that are not in the decision log, by kind (refusal, observed, allow) and reason.",
		}, []string{"kind", "reason"}),
		late: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "writ_authz_refusals_unwritten_total", Help: "Refusals that were not written yet when their answer left: the process could die with them.",
		}),
		batches: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "writ_authz_log_batches_total", Help: "Batches of the decision log offered to its sink, by result: ok, error or refused.",
		}, []string{"result"}),
		spooled: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "writ_authz_log_spool_bytes", Help: "Size of what waits for the sink of the decision log.",
		}),
	}
	// The one to watch is there from the start.
	m.dropped.WithLabelValues(kinds[classRefusal], reasonQueue)
	r.MustRegister(m.dropped, m.late, m.batches, m.spooled)
	return m
}

func (m *metrics) drop(class, records int, reason string) {
	if class >= classes {
		class = classAllow
	}
	m.dropped.WithLabelValues(kinds[class], reason).Add(float64(records))
}
