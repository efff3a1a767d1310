package authz

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// The values of the label result.
const (
	resultAllow = "allow"
	resultDeny  = "deny"
	// resultError is a denial because no decision came about.
	resultError = "error"
)

// The values of the label reason of what is not known: a policy, or the content that the
// proxy's routes go with.
const (
	unknownName    = "name"
	unknownContent = "content"
)

// maxPolicySeries bounds the label policy; what is beyond counts as "other".
const maxPolicySeries = 1000

type metrics struct {
	decisions *prometheus.CounterVec
	seconds   prometheus.Histogram
	policy    *prometheus.CounterVec
	observed  *prometheus.CounterVec
	would     *observedCounts
	revision  *prometheus.GaugeVec
	// inForce is the one that is told. The owner, policies, locks.
	inForce    string
	applied    prometheus.Gauge
	count      prometheus.Gauge
	retired    prometheus.Gauge
	earlier    prometheus.Counter
	unknown    *prometheus.CounterVec
	refused    *prometheus.CounterVec
	keyFetches *prometheus.CounterVec
	tokens     *prometheus.CounterVec
	// revokedTokens is how many revocations of tokens are known.
	revokedTokens prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "writ_authz_decisions_total", Help: "Checks answered, by result: allow, deny, or error for a denial because no decision came about.",
		}, []string{"result"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "writ_authz_decision_seconds", Help: "Time to answer a check.",
			Buckets: []float64{10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 50e-3, 250e-3, 1},
		}),
		policy: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "writ_authz_policy_decisions_total", Help: "Decisions of each policy, by result.",
		}, []string{"policy", "result"}),
		observed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "writ_authz_observed_refusals_total", Help: "Refusals that were not enforced, because the policy only observes.",
		}, []string{"policy"}),
		revision: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "writ_authz_revision_info", Help: "1 for the revision in force.",
		}, []string{"revision"}),
		applied: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "writ_authz_revision_applied_timestamp_seconds", Help: "When the revision in force was put in force.",
		}),
		count: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "writ_authz_policies", Help: "Policies in force.",
		}),
		retired: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "writ_authz_policies_retired", Help: "Earlier contents of policies that decide for proxies whose routes still name them.",
		}),
		earlier: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "writ_authz_earlier_decisions_total", Help: "Checks that an earlier content of a policy took part in, because the proxy's routes go with it.",
		}),
		unknown: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "writ_authz_unknown_policies_total", Help: "Checks refused because a policy was not known, by reason: name, or content for routes of an edit that this service has not got yet or keeps no more.",
		}, []string{"reason"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "writ_authz_config_refused_total", Help: "Configurations refused, by type.",
		}, []string{"type"}),
		keyFetches: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "writ_authz_key_fetches_total", Help: "Fetches of token issuers' keys, by result: ok or error.",
		}, []string{"result"}),
		tokens: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "writ_authz_tokens_total", Help: "Tokens verified by this service, by result.",
		}, []string{"result"}),
	}
	m.revokedTokens = prometheus.NewGauge(prometheus.GaugeOpts{Name: "writ_authz_revoked_tokens", Help: "Revocations of JSON Web Tokens that are known."})
	r.MustRegister(m.revokedTokens)
	m.would = newObservedCounts()
	r.MustRegister(m.would.vec, m.decisions, m.seconds, m.policy, m.observed, m.revision, m.applied, m.count, m.retired, m.earlier, m.unknown, m.refused, m.keyFetches, m.tokens)
	return m
}

// swapped forgets the policies that are gone and makes the counters of the new
// ones, so that a check only adds one.
func (m *metrics) swapped(set *policySet) {
	if m.inForce != set.revision {
		m.inForce = set.revision
		m.revision.Reset()
		m.revision.WithLabelValues(set.revision).Set(1)
		m.applied.Set(float64(time.Now().UnixMilli()) / 1000)
	}
	m.count.Set(float64(len(set.policies)))
	m.retired.Set(float64(len(set.retired)))
	for name := range set.forgotten {
		m.policy.DeletePartialMatch(prometheus.Labels{"policy": name})
		m.observed.DeletePartialMatch(prometheus.Labels{"policy": name})
	}
	n := 0
	for name, p := range set.policies {
		if n++; n > maxPolicySeries {
			name = "other"
		}
		if p.counts == nil {
			p.counts = &policyCounts{
				allow:    m.policy.WithLabelValues(name, resultAllow),
				deny:     m.policy.WithLabelValues(name, resultDeny),
				fail:     m.policy.WithLabelValues(name, resultError),
				observed: m.observed.WithLabelValues(name),
			}
		}
	}
}

// policyCounts are a policy's own counters.
type policyCounts struct{ allow, deny, fail, observed prometheus.Counter }

func (m *metrics) fetched(_ string, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.keyFetches.WithLabelValues(result).Inc()
}
