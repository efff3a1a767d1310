package nodeagent

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/writ-mesh/writ/nodeagent/svid"
	"github.com/writ-mesh/writ/nodeagent/workloadapi"
)

// metrics hears from the subpackages what happens.
type metrics struct {
	issued, failed  prometheus.Counter
	pushes          *prometheus.CounterVec
	sdsStreams      prometheus.Gauge
	adsStreams      *prometheus.GaugeVec
	corrected       prometheus.Counter
	attestations    *prometheus.CounterVec
	attestationTime prometheus.Histogram
	connected       *prometheus.GaugeVec
	workloadCalls   *prometheus.GaugeVec
	workloadAnswers *prometheus.CounterVec
	tokens          *prometheus.CounterVec
	revocations     prometheus.Gauge
	crlsRejected    prometheus.Gauge
	ledgerSize      prometheus.Gauge
	ledgerWrong     prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		issued:       prometheus.NewCounter(prometheus.CounterOpts{Name: "writ_nodeagent_svid_issued_total", Help: "Workload certificates obtained from the authority."}),
		failed:       prometheus.NewCounter(prometheus.CounterOpts{Name: "writ_nodeagent_svid_failures_total", Help: "Attempts to obtain a workload certificate that failed."}),
		pushes:       prometheus.NewCounterVec(prometheus.CounterOpts{Name: "writ_nodeagent_sds_pushes_total", Help: "Secrets pushed to proxies, by how the proxy answered."}, []string{"result"}),
		sdsStreams:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "writ_nodeagent_sds_streams", Help: "Open secret streams of attested proxies."}),
		adsStreams:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "writ_nodeagent_ads_streams", Help: "Open configuration streams of attested proxies: live is relayed to pilot, offline is answered from disk."}, []string{"mode"}),
		corrected:    prometheus.NewCounter(prometheus.CounterOpts{Name: "writ_nodeagent_node_corrections_total", Help: "Configuration streams that claimed another node id than the attested one."}),
		attestations: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "writ_nodeagent_attestations_total", Help: "Streams by whether their caller was recognized."}, []string{"result"}),
		attestationTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "writ_nodeagent_attestation_seconds", Help: "How long callers waited to be recognized or refused.",
			Buckets: []float64{.001, .01, .1, .5, 1, 2.5, 5, 10},
		}),
		connected: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "writ_nodeagent_connected", Help: "1 while a service is connected, else 0."}, []string{"peer"}),
	}
	m.workloadCalls = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "writ_nodeagent_workload_api_calls", Help: "Calls of the SPIFFE Workload API under way, streams included."}, []string{"method"})
	m.workloadAnswers = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "writ_nodeagent_workload_api_answers_total", Help: "Calls of the SPIFFE Workload API that have ended, by gRPC code."}, []string{"method", "code"})
	m.tokens = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "writ_nodeagent_jwt_svids_total", Help: "JWT-SVIDs handed out, cached or new, and requests for one that the authority did not grant (failed)."}, []string{"result"})
	for _, r := range []string{workloadapi.TokenCached, workloadapi.TokenNew, workloadapi.TokenFailed} {
		m.tokens.WithLabelValues(r)
	}
	m.revocations = prometheus.NewGauge(prometheus.GaugeOpts{Name: "writ_nodeagent_revocations_sequence", Help: "The number of the authority's list of revocations that came last."})
	m.crlsRejected = prometheus.NewGauge(prometheus.GaugeOpts{Name: "writ_nodeagent_crls_rejected", Help: "1 while the newest certificate revocation lists are not used because something is wrong with them."})
	m.ledgerSize = prometheus.NewGauge(prometheus.GaugeOpts{Name: "writ_nodeagent_ledger_size", Help: "Entries of the authority's ledger by the newest checkpoint that was seen."})
	m.ledgerWrong = prometheus.NewGauge(prometheus.GaugeOpts{Name: "writ_nodeagent_ledger_contradiction", Help: "1 since the authority's ledger did not go on from what was seen of it, else 0."})
	// Present from the start, so that a rate can be computed from the first event.
	for _, r := range []string{"acked", "nacked"} {
		m.pushes.WithLabelValues(r)
	}
	for _, r := range []string{"recognized", "refused"} {
		m.attestations.WithLabelValues(r)
	}
	for _, r := range []string{"live", "offline"} {
		m.adsStreams.WithLabelValues(r)
	}
	for _, r := range []string{peerCA, peerPilot} {
		m.connected.WithLabelValues(r)
	}
	reg.MustRegister(m.issued, m.failed, m.pushes, m.sdsStreams, m.adsStreams, m.corrected, m.attestations, m.attestationTime, m.connected,
		m.workloadCalls, m.workloadAnswers, m.tokens, m.revocations, m.crlsRejected, m.ledgerSize, m.ledgerWrong)
	return m
}

// The values of the label peer.
const (
	peerCA    = "ca"
	peerPilot = "pilot"
)

// SVIDIssued implements svid.Observer.
func (m *metrics) SVIDIssued() { m.issued.Inc() }

// SVIDFailed implements svid.Observer.
func (m *metrics) SVIDFailed() { m.failed.Inc() }

// SDSStream implements sds.Observer.
func (m *metrics) SDSStream(change int) { m.sdsStreams.Add(float64(change)) }

// SDSPush implements sds.Observer.
func (m *metrics) SDSPush(accepted bool) {
	if accepted {
		m.pushes.WithLabelValues("acked").Inc()
	} else {
		m.pushes.WithLabelValues("nacked").Inc()
	}
}

// ADSStream implements relay.Observer.
func (m *metrics) ADSStream(live bool, change int) {
	mode := "offline"
	if live {
		mode = "live"
	}
	m.adsStreams.WithLabelValues(mode).Add(float64(change))
}

// NodeCorrected implements relay.Observer.
func (m *metrics) NodeCorrected() { m.corrected.Inc() }

// WorkloadCall implements workloadapi.Observer.
func (m *metrics) WorkloadCall(method string, change int) {
	m.workloadCalls.WithLabelValues(method).Add(float64(change))
}

// WorkloadAnswer implements workloadapi.Observer.
func (m *metrics) WorkloadAnswer(method string, code codes.Code) {
	m.workloadAnswers.WithLabelValues(method, code.String()).Inc()
}

// JWTSVID implements workloadapi.TokenObserver.
func (m *metrics) JWTSVID(result string) { m.tokens.WithLabelValues(result).Inc() }

// setCRLs takes down which list came last and whether its lists are in use.
func (m *metrics) setCRLs(sequence uint64, used bool) {
	m.revocations.Set(float64(sequence))
	m.crlsRejected.Set(1)
	if used {
		m.crlsRejected.Set(0)
	}
}

// setLedger takes down what was seen of the authority's ledger.
func (m *metrics) setLedger(size uint64, contradiction bool) {
	m.ledgerSize.Set(float64(size))
	m.ledgerWrong.Set(0)
	if contradiction {
		m.ledgerWrong.Set(1)
	}
}

func (m *metrics) setConnected(peer string, up bool) {
	v := 0.0
	if up {
		v = 1
	}
	m.connected.WithLabelValues(peer).Set(v)
}

// expiry reads the certificates' remaining life when it is asked for.
type expiry struct {
	desc   *prometheus.Desc
	status func() []svid.Status
}

func newExpiry(status func() []svid.Status) expiry {
	return expiry{
		desc:   prometheus.NewDesc("writ_nodeagent_svid_expiry_seconds", "Remaining life of a proxy's certificate, negative when it has expired.", []string{"proxy"}, nil),
		status: status,
	}
}

// Describe implements prometheus.Collector.
func (e expiry) Describe(ch chan<- *prometheus.Desc) { ch <- e.desc }

// Collect implements prometheus.Collector.
func (e expiry) Collect(ch chan<- prometheus.Metric) {
	seen := make(map[string]bool)
	for _, s := range e.status() {
		// For a moment after a workload got another identity there are two.
		if s.SVID == nil || seen[s.ProxyID] {
			continue
		}
		seen[s.ProxyID] = true
		ch <- prometheus.MustNewConstMetric(e.desc, prometheus.GaugeValue, time.Until(s.SVID.NotAfter()).Seconds(), s.ProxyID)
	}
}
