package authz

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/authz/cache"
	"github.com/writ-mesh/writ/authz/decisionlog"
	"github.com/writ-mesh/writ/authz/rego"
)

// evaluator asks policies, or its memory of what they said about the same inputs.
//
// What a decision depends on is in its key: the rules and the data that the program can
// look at, and all that it can read of the input, tokens included. A change of any of them
// makes another key, so nothing of before is found for it, and a decision that is under
// way at that moment is kept for the program that made it. Tokens are verified, and looked
// up among the revoked, before any of this, for each request.
type evaluator struct {
	cache   *cache.Cache[decided]
	timeout time.Duration
	workers *rego.Workers
	// secrets knows what of a request is not to be remembered.
	secrets *decisionlog.Redactor
	metrics evaluatorMetrics
}

// decided is what a policy said, and whether it said anything.
type decided struct {
	decision rego.Decision
	err      error
	// of is what it was said of, nil if that is not remembered.
	of *rego.Remembered
}

// sure says that the same would come out again. That nothing was decided is as sure as a
// decision; a failure may be one of the moment.
func (d *decided) sure() bool { return d.err == nil || errors.Is(d.err, rego.ErrUndefined) }

func (d *decided) entry(expires time.Time) cache.Entry[decided] {
	e := cache.Entry[decided]{Value: *d, Bytes: d.decision.Size(), Expires: expires, Keep: d.sure()}
	if d.of != nil {
		e.Bytes += d.of.Size()
	}
	return e
}

// CacheConfig bounds the decisions that are kept for inputs that come again.
type CacheConfig struct {
	// Entries bounds how many there are; 0 keeps none.
	Entries int `yaml:"entries"`
	// Bytes bounds the memory that they take, about.
	Bytes int `yaml:"bytes"`
}

// defaultCache is for some 10,000 callers' usual requests.
func defaultCache() CacheConfig { return CacheConfig{Entries: 1 << 16, Bytes: 64 << 20} }

// memory is EvaluationMemory as package rego takes it.
func (d *DecisionConfig) memory() int64 {
	if d.EvaluationMemory == 0 {
		return -1
	}
	return int64(d.EvaluationMemory)
}

// newEvaluator makes an evaluator, whose metrics are registered with r.
func newEvaluator(c DecisionConfig, secrets *decisionlog.Redactor, r prometheus.Registerer) *evaluator {
	e := &evaluator{timeout: c.Timeout.D(), workers: rego.NewWorkers(), secrets: secrets, metrics: newEvaluatorMetrics(r)}
	if c.Cache.Entries > 0 {
		e.cache = cache.New[decided](c.Cache.Entries, c.Cache.Bytes, e.metrics.evictions.Inc)
		e.metrics.sizes(r, e.cache.Size)
	}
	return e
}

// eval decides a request as the program does. The decision may be shared with other
// requests: read it only. cached says that nothing was evaluated for it.
func (e *evaluator) eval(ctx context.Context, p *rego.Program, in *rego.Input, now time.Time) (d rego.Decision, cached bool, err error) {
	if e.cache == nil {
		e.metrics.off.Inc()
		d, err = e.ask(ctx, p, in)
		return d, false, err
	}
	key, ok := p.Key(in)
	if !ok {
		e.metrics.impure.Inc()
		d, err = e.ask(ctx, p, in)
		return d, false, err
	}
	if v, ok := e.cache.Get(key, now); ok {
		e.metrics.hits.Inc()
		return v.decision, true, v.err
	}
	v, from := e.cache.Fill(ctx, key, now, func() cache.Entry[decided] {
		var made decided
		if made.decision, made.err = e.ask(ctx, p, in); made.sure() && e.mayRemember(p, in) {
			made.of = p.Remember(in)
		}
		return made.entry(in.Expires())
	})
	switch from {
	case cache.Kept:
		e.metrics.hits.Inc()
	case cache.Shared:
		e.metrics.shared.Inc()
	case cache.Computed:
		e.metrics.misses.Inc()
	}
	return v.decision, from != cache.Computed, v.err
}

// ask evaluates, and counts the evaluations that had to be stopped.
func (e *evaluator) ask(ctx context.Context, p *rego.Program, in *rego.Input) (rego.Decision, error) {
	d, err := e.workers.Eval(ctx, p, in, e.timeout)
	switch {
	case err == nil:
	case errors.Is(err, rego.ErrTimeout):
		e.metrics.slow.Inc()
	case errors.Is(err, rego.ErrMemory):
		e.metrics.large.Inc()
	case errors.Is(err, rego.ErrStuck):
		e.metrics.stuck.Inc()
	}
	return d, err
}

// evaluatorMetrics are made once, so that a check only adds one.
type evaluatorMetrics struct {
	hits, shared, misses, impure, off prometheus.Counter
	slow, large, stuck                prometheus.Counter
	evictions, ahead                  prometheus.Counter
}

func newEvaluatorMetrics(r prometheus.Registerer) evaluatorMetrics {
	lookups := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "writ_authz_cache_lookups_total",
		Help: "Decisions of policies by where they came from: hit (kept), shared (made for another request at the same moment), miss, impure (the policy calls a function that is never cached), off.",
	}, []string{"result"})
	stopped := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "writ_authz_evaluations_stopped_total",
		Help: "Evaluations that were cancelled or not begun, by reason: time, memory, or stuck for a policy whose evaluations do not end.",
	}, []string{"reason"})
	evictions := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "writ_authz_cache_evictions_total", Help: "Decisions that had to go for newer ones.",
	})
	ahead := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "writ_authz_cache_ahead_total", Help: "Decisions that a bundle's new version made, before it counted, about requests that had come of late.",
	})
	r.MustRegister(lookups, stopped, evictions, ahead)
	return evaluatorMetrics{
		hits: lookups.WithLabelValues("hit"), shared: lookups.WithLabelValues("shared"), misses: lookups.WithLabelValues("miss"),
		impure: lookups.WithLabelValues("impure"), off: lookups.WithLabelValues("off"),
		slow: stopped.WithLabelValues("time"), large: stopped.WithLabelValues("memory"), stuck: stopped.WithLabelValues("stuck"),
		evictions: evictions, ahead: ahead,
	}
}

// sizes registers what the cache holds.
func (evaluatorMetrics) sizes(r prometheus.Registerer, size func() (entries, bytes int)) {
	r.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "writ_authz_cache_entries", Help: "Decisions that are kept."},
			func() float64 { n, _ := size(); return float64(n) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "writ_authz_cache_bytes", Help: "Memory that kept decisions take, about."},
			func() float64 { _, n := size(); return float64(n) }))
}
