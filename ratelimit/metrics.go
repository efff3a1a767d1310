package ratelimit

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/ratelimit/memory"
)

// The results of a decision, of a request and of one of its limits.
const (
	resultOK       = "ok"
	resultOver     = "over_limit"
	resultObserved = "observed" // over a limit that refuses nothing
	resultError    = "error"
)

// Why a descriptor met no limit.
const (
	unmatchedPolicy = "unknown_policy"
	unmatchedRefund = "refund" // giving hits back is not in this version: nothing is counted
	unmatchedDomain = "unknown_domain"
	unmatchedRule   = "no_rule"
)

type metrics struct {
	decisions *prometheus.CounterVec
	ok, over  prometheus.Counter
	observed  prometheus.Counter
	failed    prometheus.Counter
	seconds   prometheus.Histogram
	unmatched *prometheus.CounterVec
	rejected  prometheus.Counter
	void      prometheus.Counter
	rules     prometheus.Gauge
	// contents are those of policies that are not in force and decide, earlier what they
	// took part in, unknown what named one that is not known.
	contents         prometheus.Gauge
	earlier, unknown prometheus.Counter

	byLimit *prometheus.CounterVec
	costs   *prometheus.CounterVec
	// limits caches byLimit's counters by limit ID: *limitCounters.
	limits sync.Map
}

// limitCounters are those of one limit. later are hits taken once a request was over.
type limitCounters struct{ ok, over, observed, later prometheus.Counter }

func newMetrics(reg prometheus.Registerer, store *memory.Store) *metrics {
	m := &metrics{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "writ_ratelimit_decisions_total", Help: "Requests decided, by result.",
		}, []string{"result"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "writ_ratelimit_decision_seconds", Help: "Time from the request's arrival to the answer.",
			Buckets: []float64{.00001, .000025, .00005, .0001, .00025, .0005, .001, .0025, .005, .01, .05},
		}),
		unmatched: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "writ_ratelimit_unmatched_total", Help: "Descriptors that met no limit and were let through, by reason. Those of closed policies are not let through.",
		}, []string{"reason"}),
		rejected: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "writ_ratelimit_config_rejected_total", Help: "Configurations that were refused while the last good one stayed.",
		}),
		void: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "writ_ratelimit_settled_void_total", Help: "Costs that were not charged because their reservation was settled before or is long gone.",
		}),
		costs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "writ_ratelimit_cost_total", Help: "Hits charged to each limit once a request was over.",
		}, []string{"limit"}),
		rules: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "writ_ratelimit_limits", Help: "Limits in force.",
		}),
		contents: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "writ_ratelimit_policies_retired", Help: "Earlier contents of policies that decide for proxies whose routes still name them.",
		}),
		earlier: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "writ_ratelimit_earlier_decisions_total", Help: "Requests that an earlier content of a policy took part in, because the proxy's routes go with it.",
		}),
		unknown: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "writ_ratelimit_unknown_contents_total", Help: "Descriptors of a known policy that name a content which is not known: the newest decides, and where the policy is closed nothing passes.",
		}),
		byLimit: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "writ_ratelimit_limit_decisions_total", Help: "Uses of each limit, by result.",
		}, []string{"limit", "result"}),
	}
	m.ok, m.over = m.decisions.WithLabelValues(resultOK), m.decisions.WithLabelValues(resultOver)
	m.observed, m.failed = m.decisions.WithLabelValues(resultObserved), m.decisions.WithLabelValues(resultError)
	reg.MustRegister(m.decisions, m.seconds, m.unmatched, m.rejected, m.rules, m.contents, m.earlier, m.unknown, m.byLimit, m.void, m.costs,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "writ_ratelimit_counters", Help: "Counters held in this process.",
		}, func() float64 { return float64(store.Len()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "writ_ratelimit_counters_evicted_total", Help: "Counters forgotten for want of room while they still counted.",
		}, func() float64 { return float64(store.Evicted()) }))
	return m
}

// limit gives the counters of one limit. IDs come from the configuration, never
// from a request, which bounds the series.
func (m *metrics) limit(id string) *limitCounters {
	if c, ok := m.limits.Load(id); ok {
		return c.(*limitCounters) //nolint:forcetypeassert // nothing else is stored
	}
	c := &limitCounters{
		ok:       m.byLimit.WithLabelValues(id, resultOK),
		over:     m.byLimit.WithLabelValues(id, resultOver),
		observed: m.byLimit.WithLabelValues(id, resultObserved),
		later:    m.costs.WithLabelValues(id),
	}
	m.limits.Store(id, c)
	return c
}

// keep drops the series of limits that decide no longer.
func (m *metrics) keep(ids map[string]bool) {
	m.limits.Range(func(id, _ any) bool {
		if name, ok := id.(string); ok && !ids[name] {
			m.limits.Delete(name)
			m.byLimit.DeletePartialMatch(prometheus.Labels{"limit": name})
			m.costs.DeletePartialMatch(prometheus.Labels{"limit": name})
		}
		return true
	})
}
