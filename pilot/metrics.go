package pilot

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/xds"
)

// metrics of pilot; see docs/metrics.md.
type metrics struct {
	changeToAck prometheus.Histogram
	compile     prometheus.Histogram
	pushes      *prometheus.CounterVec
	resources   *prometheus.CounterVec
	acks        *prometheus.CounterVec
	nacks       *prometheus.CounterVec
	clients     *prometheus.GaugeVec
	problems    *prometheus.GaugeVec
	revision    prometheus.Gauge
	live        prometheus.Gauge
	rejected    prometheus.Counter
	// revocations is the number of the list in force, revocationsConnected 1 while the
	// authority tells of new ones.
	revocations, revocationsConnected prometheus.Gauge
	// revokedTokens is how many revocations of tokens there are.
	revokedTokens prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	byType := []string{"type"}
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, byType)
	}
	m := &metrics{
		changeToAck: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "writ_pilot_change_to_ack_seconds", Help: "From the write of a file to the last acknowledgement of the revision that came of it.",
			Buckets: []float64{.01, .025, .05, .1, .15, .25, .5, 1, 2.5, 5, 10, 30},
		}),
		compile: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "writ_pilot_compile_seconds", Help: "Time to translate the configuration for every proxy.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}),
		pushes:    counter("writ_pilot_pushes_total", "Responses sent to clients."),
		resources: counter("writ_pilot_pushed_resources_total", "Resources sent or removed in responses."),
		acks:      counter("writ_pilot_acks_total", "Responses that clients acknowledged."),
		nacks:     counter("writ_pilot_nacks_total", "Responses that clients refused."),
		clients: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "writ_pilot_clients", Help: "Connected clients.",
		}, []string{"kind"}),
		problems: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "writ_pilot_config_problems", Help: "What is wrong with the configuration as it stands on disk.",
		}, []string{"severity"}),
		revision: prometheus.NewGauge(prometheus.GaugeOpts{Name: "writ_pilot_revision", Help: "The revision that clients are being given."}),
		live:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "writ_pilot_revision_live", Help: "The newest revision that was acknowledged by every client."}),
		rejected: prometheus.NewCounter(prometheus.CounterOpts{Name: "writ_pilot_revisions_rejected_total", Help: "Revisions taken back because a client refused them."}),
	}
	m.revocations = prometheus.NewGauge(prometheus.GaugeOpts{Name: "writ_pilot_revocations_sequence", Help: "The number of the list of revocations that clients are being given."})
	m.revocationsConnected = prometheus.NewGauge(prometheus.GaugeOpts{Name: "writ_pilot_revocations_connected", Help: "1 while the authority tells of new revocations."})
	m.revokedTokens = prometheus.NewGauge(prometheus.GaugeOpts{Name: "writ_pilot_revoked_tokens", Help: "Revocations of JSON Web Tokens in force."})
	reg.MustRegister(m.revocations, m.revocationsConnected, m.revokedTokens)
	reg.MustRegister(m.changeToAck, m.compile, m.pushes, m.resources, m.acks, m.nacks, m.clients, m.problems, m.revision, m.live, m.rejected)
	for _, k := range []xds.Kind{xds.SidecarKind, xds.GatewayKind, xds.ServiceKind} {
		m.clients.WithLabelValues(string(k))
	}
	return m
}

func (m *metrics) since(h prometheus.Histogram, start time.Time) {
	h.Observe(time.Since(start).Seconds())
}

func (m *metrics) setProblems(list []meshdir.Problem) {
	errors := len(meshdir.Errors(list))
	m.problems.WithLabelValues("error").Set(float64(errors))
	m.problems.WithLabelValues("warning").Set(float64(len(list) - errors))
}

// Pushed implements xds.Observer.
func (m *metrics) Pushed(typeURL string, set, removed int) {
	m.pushes.WithLabelValues(shortType(typeURL)).Inc()
	m.resources.WithLabelValues(shortType(typeURL)).Add(float64(set + removed))
}

// Acked implements xds.Observer.
func (m *metrics) Acked(typeURL string) { m.acks.WithLabelValues(shortType(typeURL)).Inc() }

// Refused implements xds.Observer.
func (m *metrics) Refused(typeURL string) { m.nacks.WithLabelValues(shortType(typeURL)).Inc() }

// shortType is the name of the message alone, for example Cluster.
func shortType(typeURL string) string { return typeURL[strings.LastIndexByte(typeURL, '.')+1:] }
