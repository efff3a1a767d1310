package authz

import (
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/authz/bundle"
	"github.com/writ-mesh/writ/authz/rego"
)

// bundleMetrics are about bundles, in both forms of the service.
type bundleMetrics struct {
	loads     *prometheus.CounterVec
	failing   *prometheus.GaugeVec
	activated *prometheus.GaugeVec
	revision  *prometheus.GaugeVec

	mu sync.Mutex
	// seen is the revision of each bundle whose series is there.
	seen map[string]string
}

func newBundleMetrics(r prometheus.Registerer) *bundleMetrics {
	m := &bundleMetrics{
		loads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "writ_authz_bundle_loads_total", Help: "Attempts to load a bundle, by result: ok (also where it had not changed) or error.",
		}, []string{"bundle", "result"}),
		failing: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "writ_authz_bundle_failing", Help: "1 while the newest attempt to load the bundle failed; the last good one is in force.",
		}, []string{"bundle"}),
		activated: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "writ_authz_bundle_activated_timestamp_seconds", Help: "When the bundle in force was put in force.",
		}, []string{"bundle"}),
		revision: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "writ_authz_bundle_revision_info", Help: "1 for the bundle's revision in force.",
		}, []string{"bundle", "revision"}),
		seen: make(map[string]string),
	}
	r.MustRegister(m.loads, m.failing, m.activated, m.revision)
	return m
}

// report takes the states of bundles. OPA reports all of them after each attempt
// to load one.
func (m *bundleMetrics) report(all []bundle.Report) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range all {
		result, failing := "ok", 0.0
		if r.Err != nil {
			result, failing = resultError, 1
		}
		if r.Attempted {
			m.loads.WithLabelValues(r.Name, result).Inc()
		}
		m.failing.WithLabelValues(r.Name).Set(failing)
		if r.Activated.IsZero() {
			continue
		}
		m.activated.WithLabelValues(r.Name).Set(float64(r.Activated.UnixMilli()) / 1000)
		if old, ok := m.seen[r.Name]; !ok || old != r.Revision {
			m.revision.DeletePartialMatch(prometheus.Labels{"bundle": r.Name})
			m.revision.WithLabelValues(r.Name, r.Revision).Set(1)
			m.seen[r.Name] = r.Revision
		}
	}
}

// forget drops the series of a bundle that is not followed any more.
func (m *bundleMetrics) forget(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	labels := prometheus.Labels{"bundle": name}
	m.loads.DeletePartialMatch(labels)
	m.failing.DeletePartialMatch(labels)
	m.activated.DeletePartialMatch(labels)
	m.revision.DeletePartialMatch(labels)
	delete(m.seen, name)
}

func newUnlogged(r prometheus.Registerer) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "writ_authz_opa_log_errors_total", Help: "Decisions that OPA's decision log, in place of the OPA-Envoy plugin, did not take.",
	})
	r.MustRegister(c)
	return c
}

// pluginMetrics are the OPA-Envoy plugin's own, under its names.
type pluginMetrics struct {
	seconds *prometheus.HistogramVec
	errors  *prometheus.CounterVec
}

// pluginBuckets are the plugin's defaults.
func pluginBuckets() []float64 {
	return []float64{1e-6, 5e-6, 1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 3e-3, 5e-3, 0.1, 1}
}

func newPluginMetrics(r prometheus.Registerer, buckets []float64) *pluginMetrics {
	m := &pluginMetrics{
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "grpc_request_duration_seconds", Help: "Time to answer a check, as the OPA-Envoy plugin counts it.", Buckets: buckets,
		}, []string{"handler"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "error_counter", Help: "Checks without a decision, as the OPA-Envoy plugin counts them.", //nolint:promlinter // the plugin's name
		}, []string{"reason"}),
	}
	r.MustRegister(m.seconds, m.errors)
	return m
}

// observe counts a check; without performance metrics it does nothing.
func (m *pluginMetrics) observe(took time.Duration, err error) {
	if m == nil {
		return
	}
	var malformed *rego.InputError
	switch {
	case err == nil:
		m.seconds.WithLabelValues("check").Observe(took.Seconds())
	case errors.As(err, &malformed):
		m.errors.WithLabelValues("request_parse_error").Inc()
	default:
		m.errors.WithLabelValues("envoyauth_eval_error").Inc()
	}
}
