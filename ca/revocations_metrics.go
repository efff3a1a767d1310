package ca

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/ca/revocation"
)

// revocationMetrics are those of what is revoked.
type revocationMetrics struct {
	// live is how many certificates, identities and authorities are revoked.
	live *prometheus.GaugeVec
	// sequence is the number of the list.
	sequence prometheus.Gauge
	// current is 1 if the certificate revocation lists are those of the list.
	current prometheus.Gauge
}

func newRevocationMetrics(r prometheus.Registerer) *revocationMetrics {
	m := &revocationMetrics{
		live: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "writ_ca_revocations", Help: "What is revoked now, expired certificates left out, by kind.",
		}, []string{"kind"}),
		sequence: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "writ_ca_revocations_sequence", Help: "The number of the list of revocations.",
		}),
		current: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "writ_ca_crls_current", Help: "1 if the certificate revocation lists have all that is revoked, 0 if they could not be made.",
		}),
	}
	r.MustRegister(m.live, m.sequence, m.current)
	return m
}

func (m *revocationMetrics) set(live []revocation.Entry, sequence uint64, current bool) {
	kinds := map[string]float64{"certificate": 0, "identity": 0, "authority": 0}
	for _, e := range live {
		switch {
		case e.Serial != "":
			kinds["certificate"]++
		case e.OfAuthority():
			kinds["authority"]++
		default:
			kinds["identity"]++
		}
	}
	for kind, n := range kinds {
		m.live.WithLabelValues(kind).Set(n)
	}
	m.sequence.Set(float64(sequence))
	m.current.Set(0)
	if current {
		m.current.Set(1)
	}
}
