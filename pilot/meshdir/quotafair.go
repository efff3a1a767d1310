package meshdir

import (
	"slices"

	"github.com/writ-mesh/writ/pilot/model"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// quotaFair says between whom a limit is shared fairly.
type quotaFair struct {
	By      string            `json:"by"`
	Weights map[string]uint32 `json:"weights"`
	Plan    *fairPlan         `json:"plan"`
}

// fairPlan names the table that has the weights of those who have none here.
type fairPlan struct {
	Table   string `json:"table"`
	Numbers string `json:"numbers"`
}

// checkFair checks who shares a limit; at is the limit's place, local says that proxies
// go on counting by themselves while ratelimit is away.
func (c *checker) checkFair(at string, limit *quotaLimit, local bool) {
	f := limit.Fair
	if f == nil {
		return
	}
	at += ".fair"
	d, problem := parseDimension(f.By)
	switch {
	case f.By == "":
		c.errorf(at+".by", "it is missing: say by what those who share the limit are told apart, such as source.namespace")
	case problem != "":
		c.errorf(at+".by", "%s", problem)
	case d.Kind == "constant":
		c.errorf(at+".by", "%q is the same for all requests: write what tells those apart who share the limit, such as source.namespace", shorten(f.By))
	case slices.Contains(limit.Per, f.By):
		c.errorf(at+".by", "%q is in per too, where each has a limit of its own: write it in one of them", shorten(f.By))
	}
	if n := len(f.Weights); n > configpb.MaxQuotaWeights {
		c.errorf(at+".weights", "%d are too many: at most %d are kept", n, configpb.MaxQuotaWeights)
	}
	for name, weight := range f.Weights {
		if weight < 1 || weight > configpb.MaxQuotaWeight {
			c.errorf(at+".weights", "%d for %q is not between 1 and %d", weight, shorten(name), configpb.MaxQuotaWeight)
		}
	}
	if p := f.Plan; p != nil {
		c.checkTable(at+".plan", p.Table, p.Numbers)
	}
	switch {
	case limit.Concurrent != nil || limit.Algorithm != "" && limit.Algorithm != quotaSliding:
		c.errorf(at, "only a sliding window is shared fairly: remove algorithm, or this")
	case limit.Mode != "" && limit.Mode != quotaExact && limit.Mode != configpb.QuotaLocal:
		c.errorf(at, "a limit that is shared fairly is counted exactly or locally: write mode: exact or local")
	case limit.Cost != nil || limit.Plan != nil:
		c.errorf(at, "a limit that is shared fairly counts requests, as many as it says: remove cost and plan, or this")
	case local:
		c.errorf(at, "whenUnavailable: Local would give all of the limit to each who shares it: write Allow or Deny, or another policy for this limit")
	case limit.Every != nil && limit.Every.value() < configpb.MinFairEvery:
		c.errorf(at, "a limit that is shared fairly needs %s or more", configpb.MinFairEvery)
	}
}

// fairBy is the dimension by which a limit is shared, if it is.
func (l *quotaLimit) fairBy() string {
	if l.Fair == nil {
		return ""
	}
	return l.Fair.By
}

// value gives the sharing of a checked limit.
func (q *quotaFair) value() *model.QuotaFair {
	if q == nil {
		return nil
	}
	fair := &model.QuotaFair{By: q.By, Weights: q.Weights}
	if p := q.Plan; p != nil {
		fair.Plan = &model.QuotaPlan{Table: p.Table, By: q.By, Numbers: p.Numbers}
	}
	return fair
}
