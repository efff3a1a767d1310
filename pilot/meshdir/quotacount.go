package meshdir

import (
	"slices"
	"strings"

	"github.com/writ-mesh/writ/pilot/model"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// What is written out for what holds if nothing is written.
const (
	quotaSliding = "sliding"
	quotaExact   = "exact"
)

// checkCount checks how a limit counts and where; at is the limit's place.
func (c *checker) checkCount(at string, limit *quotaLimit) {
	if limit.Concurrent != nil {
		c.checkConcurrent(at, limit)
	} else {
		c.checkWindow(at, limit)
	}
	algorithms := []string{"", quotaSliding, configpb.QuotaGCRA}
	if !slices.Contains(algorithms, limit.Algorithm) {
		c.errorf(at+".algorithm", "unknown algorithm %q: write sliding or gcra", shorten(limit.Algorithm))
	}
	switch {
	case limit.Burst == nil:
	case limit.Algorithm != configpb.QuotaGCRA:
		c.errorf(at+".burst", "only algorithm: gcra has a burst: the others let all of the limit pass at once")
	case *limit.Burst == 0 || limit.Requests != nil && *limit.Burst > *limit.Requests:
		c.errorf(at+".burst", "%d is not between 1 and the limit's requests", *limit.Burst)
	}
	modes := []string{"", quotaExact, configpb.QuotaLeased, configpb.QuotaLocal, configpb.QuotaAssigned}
	if !slices.Contains(modes, limit.Mode) {
		c.errorf(at+".mode", "unknown mode %q: write exact, leased, local or assigned", shorten(limit.Mode))
	}
	if limit.Mode == configpb.QuotaAssigned {
		c.checkAssigned(at, limit)
	}
}

// checkWindow checks requests and every.
func (c *checker) checkWindow(at string, limit *quotaLimit) {
	if limit.Requests == nil {
		c.errorf(at+".requests", "the number of requests is missing")
	}
	if limit.Timeout != nil {
		c.errorf(at+".timeout", "only a limit of what is under way (concurrent) has a timeout: remove it")
	}
	switch {
	case limit.Every == nil || *limit.Every <= 0:
		c.errorf(at+".every", "a duration above 0 is needed: write for example every: 1m")
	case limit.Every.value() < configpb.MinQuotaEvery || limit.Every.value() > configpb.MaxQuotaEvery:
		c.errorf(at+".every", "%s is not between %s and %.0fh", limit.Every.value(), configpb.MinQuotaEvery, configpb.MaxQuotaEvery.Hours())
	}
}

// checkConcurrent checks a limit of what is under way.
func (c *checker) checkConcurrent(at string, limit *quotaLimit) {
	if limit.Requests != nil || limit.Every != nil || limit.Algorithm != "" {
		c.errorf(at+".concurrent", "a limit counts what is under way (concurrent) or what comes in a time (requests, every, algorithm), not both: write two limits")
	}
	if limit.Cost != nil {
		c.errorf(at+".cost", "a limit of what is under way counts requests, not their cost: remove it")
	}
	if n := *limit.Concurrent; n > configpb.MaxQuotaConcurrent {
		c.errorf(at+".concurrent", "%d are too many: at most %d are counted", n, configpb.MaxQuotaConcurrent)
	}
	if limit.Timeout != nil && (limit.Timeout.value() < configpb.MinHold || limit.Timeout.value() > configpb.MaxHold) {
		c.errorf(at+".timeout", "%s is not between %s and %s", limit.Timeout.value(), configpb.MinHold, configpb.MaxHold)
	}
	if limit.Mode != "" && limit.Mode != quotaExact && limit.Mode != configpb.QuotaLocal {
		c.errorf(at+".mode", "what is under way is counted exactly or locally: write exact or local")
	}
}

// checkAssigned checks a limit that proxies keep themselves.
func (c *checker) checkAssigned(at string, limit *quotaLimit) {
	if limit.Every != nil && limit.Every.value() > 0 && limit.Every.value() < configpb.MinAssignedEvery {
		c.errorf(at+".every", "a limit that proxies keep themselves (mode: assigned) needs %s or more: they report every five seconds; write mode: leased for shorter ones", configpb.MinAssignedEvery)
	}
	if limit.Cost != nil {
		c.errorf(at+".cost", "a limit that proxies keep themselves (mode: assigned) counts requests, not their cost: write another mode")
	}
	for j, text := range limit.Per {
		d, problem := parseDimension(text)
		plain := d.Template() != "" && len(d.TemplateNames()) == 0
		if problem == "" && !plain && !slices.Contains([]string{"source.principal", "source.namespace", "constant"}, d.Kind) {
			c.errorf(index(at+".per", j), "a limit that proxies keep themselves (mode: assigned) tells callers apart by source.principal, source.namespace, constants and templates of paths without names: "+
				"what a caller may choose at will would fill the proxies' memory; write another mode")
		}
		if problem == "" && d.Kind == "constant" && strings.ContainsFunc(d.Arg, func(r rune) bool { return r < ' ' || r > '~' }) {
			c.errorf(index(at+".per", j), "a constant of such a limit (mode: assigned) is of ASCII letters, digits and signs")
		}
	}
}

// countOf is how a checked limit counts.
func countOf(limit *quotaLimit) model.QuotaLimit {
	l := model.QuotaLimit{Algorithm: limit.Algorithm, Mode: limit.Mode, Cost: limit.Cost.value(), Plan: limit.Plan.value(), Fair: limit.Fair.value()}
	if l.Algorithm == quotaSliding {
		l.Algorithm = ""
	}
	if l.Mode == quotaExact {
		l.Mode = ""
	}
	if limit.Burst != nil {
		l.Burst = *limit.Burst
	}
	if limit.Concurrent != nil {
		l.Algorithm, l.Requests, l.Every = configpb.QuotaConcurrency, *limit.Concurrent, configpb.DefaultQuotaTimeout
		if limit.Timeout != nil {
			l.Every = limit.Timeout.value()
		}
		return l
	}
	l.Requests, l.Every = *limit.Requests, limit.Every.value()
	return l
}
