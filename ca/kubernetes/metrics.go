package kubernetes

import "github.com/prometheus/client_golang/prometheus"

// metrics of a cluster.
type metrics struct {
	// synced is 1 while what is known of the cluster is what there is.
	synced prometheus.Gauge
	// secrets counts the accounts by how their Secret is: current, due, foreign or
	// failed.
	secrets *prometheus.GaugeVec
	// writes counts Secrets that were written, by result.
	writes *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		synced: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "writ_ca_kubernetes_synced", Help: "1 while the authority follows the Kubernetes cluster, 0 while it does not.",
		}),
		secrets: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "writ_ca_kubernetes_secrets", Help: "Service accounts by the state of their Secret: current, due (to be written), foreign (somebody else's has the name) or failed.",
		}, []string{"state"}),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "writ_ca_kubernetes_secret_writes_total", Help: "Secrets written to the Kubernetes API by result.",
		}, []string{"result"}),
	}
	r.MustRegister(m.synced, m.secrets, m.writes)
	return m
}

func (m *metrics) setSynced(is bool) {
	value := 0.0
	if is {
		value = 1
	}
	m.synced.Set(value)
}
