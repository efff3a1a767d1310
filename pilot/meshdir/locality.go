package meshdir

import (
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
)

// topologyLabels are those that make a locality.
var topologyLabels = []string{"topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"}

func (c *checker) locality(at string, l *networking.LocalityLoadBalancerSetting, outlier bool) {
	if l == nil {
		return
	}
	if len(l.Distribute) > 0 && len(l.Failover) > 0 {
		c.errorf(at, "only one of distribute and failover can be given")
	}
	if len(l.Failover) > 0 {
		c.topologyPriority(at, l.FailoverPriority, "failover says so already")
	}
	c.distribute(at+".distribute", l.Distribute)
	for i, f := range l.Failover {
		c.failover(index(at+".failover", i), f.From, f.To)
	}
	c.failoverDetects(at, len(l.Failover)+len(l.FailoverPriority) > 0, outlier)
}

func (c *checker) failoverDetects(at string, failover, outlier bool) {
	if failover && !outlier {
		c.warnf(at, "failover needs outlierDetection beside it, else no endpoint is ever found bad")
	}
}

func (c *checker) zoneAware(at string, l *networking.ZoneAwareLoadBalancerSetting, outlier bool) {
	if l == nil {
		return
	}
	c.topologyPriority(at, l.FailoverPriority, "zones are taken into account anyway")
	c.failoverDetects(at, len(l.Failover)+len(l.FailoverPriority) > 0, outlier)
	for i, f := range l.Failover {
		c.failover(index(at+".failover", i), f.From, f.To)
	}
}

func (c *checker) topologyPriority(at string, priority []string, why string) {
	for i, label := range priority {
		if slices.Contains(topologyLabels, label) {
			c.errorf(index(at+".failoverPriority", i), "%s cannot be given here, %s: remove it", label, why)
		}
	}
}

func (c *checker) failover(at, from, to string) {
	switch {
	case from == to:
		c.errorf(at, "from and to are the same region")
	case strings.ContainsAny(from+to, "/*"):
		c.errorf(at, "from and to are regions, without zone and without *")
	}
}

func (c *checker) distribute(at string, list []*networking.LocalityLoadBalancerSetting_Distribute) {
	var from []string
	for i, d := range list {
		place := index(at, i)
		c.overlap(place+".from", d.From, from)
		from = append(from, d.From)
		var total uint32
		var to []string
		for _, l := range catchAllLast(d.To) {
			weight := d.To[l]
			if weight < 1 || weight > 100 {
				c.errorf(place+".to["+l+"]", "weight %d is out of range: it must be from 1 to 100", weight)
			}
			total += weight
			c.overlap(place+".to["+l+"]", l, to)
			to = append(to, l)
		}
		if total != 100 {
			c.errorf(place+".to", "the weights make %d, not 100", total)
		}
	}
}

// catchAllLast sorts localities; a mapping has no order in which one would go before
// another.
func catchAllLast(to map[string]uint32) []string {
	var exact, open []string
	for l := range to {
		if strings.HasSuffix(l, "*") {
			open = append(open, l)
		} else {
			exact = append(exact, l)
		}
	}
	slices.Sort(exact)
	slices.SortFunc(open, func(a, b string) int { return len(b) - len(a) })
	return append(exact, open...)
}

// overlap checks a locality, region/zone/subzone with a * at its end for the rest,
// and that none before it leaves nothing for it.
func (c *checker) overlap(at, locality string, before []string) {
	parts := strings.SplitN(locality, "/", 3)
	switch n := strings.Count(locality, "*"); {
	case slices.Contains(parts, ""):
		c.errorf(at, "%q is not a locality: write region, region/zone or region/zone/subzone", shorten(locality))
		return
	case n > 1 || n == 1 && !strings.HasSuffix(locality, "*"):
		c.errorf(at, "%q: one * at the end is allowed", shorten(locality))
		return
	}
	for _, b := range before {
		if coversLocality(strings.SplitN(b, "/", 3), parts) {
			c.errorf(at, "%q overlaps with %q: remove one", shorten(locality), shorten(b))
			return
		}
	}
}

// coversLocality: a region alone is the whole of it, whichever comes first; a * takes
// only what comes after it.
func coversLocality(first, second []string) bool {
	for i := range 3 {
		switch {
		case i == len(first) || i == len(second):
			return true
		case first[i] == "*":
			return true
		case first[i] != second[i]:
			return false
		}
	}
	return true
}
