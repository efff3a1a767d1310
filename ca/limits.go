package ca

import (
	"path"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/ca/limit"
)

// limited is what the limits refuse, in the counts of refusals.
const limited = "limited"

// limiter bounds what callers over TLS may ask. What it refuses is counted in the
// ledger and not written down one by one: it is what floods consist of.
func (a *Authority) limiter(c limit.Config, m prometheus.Registerer) *limit.Limiter {
	return limit.New(c, limit.Options{Now: a.now, Log: a.log, Metrics: m, Refused: func(method string) {
		a.refusals.count(path.Base(method), limited)
	}})
}
