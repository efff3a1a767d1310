package ca

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/ca/root"
	"github.com/writ-mesh/writ/ca/roots"
)

// metrics of the authority.
type metrics struct {
	// issued counts requests by kind (join, renew, issue, mint, istio, self,
	// kubernetes, acme) and
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
	// rootNotAfter is the end of each root in the bundle, in seconds since 1970.
	rootNotAfter *prometheus.GaugeVec
	// sequence is that of the current bundle.
	sequence prometheus.Gauge
	// acknowledged counts the watchers of the bundle by whether they, and all whom
	// they serve, use the current one.
	acknowledged *prometheus.GaugeVec
	// holds is how many hold the gate of a rotation shut.
	holds prometheus.Gauge
	// filesRefused is since when the files of a plugged-in authority are not taken.
	filesRefused prometheus.Gauge
	// upstreamAway is since when an upstream authority does not sign.
	upstreamAway prometheus.Gauge
	// rotation is 1 for the step of the rotation under way.
	rotation *prometheus.GaugeVec
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
	m.registerRoots(r)
	m.registerOutside(r)
	r.MustRegister(m.issued, m.took, m.commit, m.records, m.notAfter, m.placements)
	return m
}

// registerRoots makes the metrics of the roots and their rotation.
func (m *metrics) registerRoots(r prometheus.Registerer) {
	m.rootNotAfter = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "writ_ca_root_not_after_seconds", Help: "When a root in the bundle expires, in seconds since 1970; active is true for the one that signs.",
	}, []string{"root", "active"})
	m.sequence = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "writ_ca_bundle_sequence", Help: "The number of the current trust bundle.",
	})
	m.acknowledged = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "writ_ca_bundle_acknowledged", Help: "Watchers of the trust bundle, by whether they and all whom they serve use the current one.",
	}, []string{"current"})
	m.holds = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "writ_ca_rotation_holds", Help: "How many hold up the next step of the rotation of the root.",
	})
	m.rotation = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "writ_ca_rotation_step", Help: "1 for the step that the rotation of the root is at, else 0.",
	}, []string{"step"})
	r.MustRegister(m.rootNotAfter, m.sequence, m.acknowledged, m.holds, m.rotation)
}

// registerOutside makes the metrics of authorities from outside.
func (m *metrics) registerOutside(r prometheus.Registerer) {
	m.filesRefused = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "writ_ca_authority_files_refused_seconds", Help: "How long the files of the plugged-in authority have not been taken; 0 if they are in force.",
	})
	m.upstreamAway = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "writ_ca_upstream_unreachable_seconds", Help: "How long the upstream authority has not signed the certificate that is due; 0 if none is.",
	})
	r.MustRegister(m.filesRefused, m.upstreamAway)
}

// roots takes in a new trust.
func (m *metrics) roots(t *trust) {
	m.sequence.Set(float64(t.state.Sequence))
	m.notAfter.WithLabelValues("root").Set(float64(t.end.Unix()))
	m.rootNotAfter.Reset()
	for _, cert := range t.bundle.X509Authorities() {
		id := root.KeyID(cert)
		m.rootNotAfter.WithLabelValues(id, strconv.FormatBool(id == t.state.Active)).Set(float64(cert.NotAfter.Unix()))
	}
	for _, step := range []roots.Step{roots.Distributing, roots.Draining} {
		at := 0.0
		if r := t.state.Rotation; r != nil && r.Step == step {
			at = 1
		}
		m.rotation.WithLabelValues(string(step)).Set(at)
	}
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
