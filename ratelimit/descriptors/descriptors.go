// Package descriptors reads the configuration of envoyproxy/ratelimit, from files or
// as a management server sends it, and finds the limit that a request's descriptor
// falls under, as that service does.
//
// One file holds one domain, or several as YAML documents; a folder holds any
// number of files. A mistake is reported with file and line and costs only its
// own domain: the others are taken, and of the broken one the last good version
// stays. The format: https://github.com/envoyproxy/ratelimit#configuration
package descriptors

import (
	"strconv"
	"strings"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

// Unit is a unit of time of a limit.
type Unit = rlsv3.RateLimitResponse_RateLimit_Unit

// window gives the length of a unit; a month has 30 days and a year 365, as in
// envoyproxy/ratelimit.
func window(u Unit) (time.Duration, bool) {
	const day = 24 * time.Hour
	switch u {
	case rlsv3.RateLimitResponse_RateLimit_SECOND:
		return time.Second, true
	case rlsv3.RateLimitResponse_RateLimit_MINUTE:
		return time.Minute, true
	case rlsv3.RateLimitResponse_RateLimit_HOUR:
		return time.Hour, true
	case rlsv3.RateLimitResponse_RateLimit_DAY:
		return day, true
	case rlsv3.RateLimitResponse_RateLimit_WEEK:
		return 7 * day, true
	case rlsv3.RateLimitResponse_RateLimit_MONTH:
		return 30 * day, true
	case rlsv3.RateLimitResponse_RateLimit_YEAR:
		return 365 * day, true
	case rlsv3.RateLimitResponse_RateLimit_UNKNOWN:
	}
	return 0, false
}

// Rule is the rate_limit block of a descriptor.
type Rule struct {
	// ID is the path of keys and values from the domain on, for messages and metrics.
	ID string
	// Limit is what may pass; not set if Unlimited.
	Limit     limit.Limit
	Unit      Unit
	Unlimited bool
	// Shadow rules count and never refuse.
	Shadow bool
	// Quota rules refuse a request only if all quota rules of it are over.
	Quota bool
	// Name and Replaces: a rule does not apply to a request that another rule
	// applies to which replaces its name.
	Name     string
	Replaces []string
	// Detailed rules have their callers told apart in metrics: those of a descriptor
	// with detailed_metric, or with value_to_metric on the way to it.
	Detailed bool
	// Metadata goes along with answers, nil if there is none. Do not change it.
	Metadata *structpb.Struct
}

// node is one level of a domain's tree.
type node struct {
	rule     *Rule
	children map[string]*node // by "key_value", or "key" for any value
	// wildcards are the children whose composite key has a "*", in file order.
	wildcards []wildcard
	// share is the composite key that stands for all that match it in the counter's
	// key, for a wildcard with share_threshold.
	share string
	// valued: value_to_metric is set here or above.
	valued bool
}

type wildcard struct {
	parts []string // what stands between the stars
	child *node
}

// Domain is one domain's rules.
type Domain struct {
	// Name is the domain, File where it was read from, Line where it begins.
	Name, File string
	Line       int
	root       *node
	rules      []*Rule
}

// Rules lists the domain's rules in file order.
func (d *Domain) Rules() []*Rule { return d.rules }

// Match is the rule that a descriptor falls under and the counter for it.
type Match struct {
	Rule *Rule
	// Key is that of envoyproxy/ratelimit without the start of the window.
	Key string
}

// Match finds the rule for a descriptor: at each level the child with key and
// value, else the first wildcard that matches, else the child with the key alone.
// A rule applies only if it stands at the depth of the last entry. ok is false if
// no rule applies. A descriptor that brings its own limit gets that, unless its
// unit is unknown.
func (d *Domain) Match(desc *commonv3.RateLimitDescriptor) (m Match, ok bool) {
	if o := desc.GetLimit(); o != nil {
		return d.override(desc, o)
	}
	var shares []string // parallel to the entries, only if one is shared
	at := d.root
	entries := desc.GetEntries()
	for i, e := range entries {
		next := at.next(e.GetKey(), e.GetValue())
		if next == nil {
			return Match{}, false
		}
		if next.share != "" {
			if shares == nil {
				shares = make([]string, len(entries))
			}
			shares[i] = strings.TrimPrefix(next.share, e.GetKey()+"_")
		}
		at = next
	}
	if at.rule == nil {
		return Match{}, false
	}
	return Match{Rule: at.rule, Key: d.key(entries, shares)}, true
}

func (n *node) next(key, value string) *node {
	if len(n.children) == 0 {
		return nil
	}
	composite := key + "_" + value
	if c := n.children[composite]; c != nil {
		return c
	}
	for _, w := range n.wildcards {
		if w.match(composite) {
			return w.child
		}
	}
	return n.children[key]
}

func (d *Domain) override(desc *commonv3.RateLimitDescriptor, o *commonv3.RateLimitDescriptor_RateLimitOverride) (Match, bool) {
	unit := Unit(o.GetUnit())
	if o.GetUnit() == typev3.RateLimitUnit_UNKNOWN {
		return Match{}, false
	}
	every, ok := window(unit)
	if !ok {
		return Match{}, false
	}
	l, err := limit.New(limit.Fixed, o.GetRequestsPerUnit(), every)
	if err != nil {
		return Match{}, false
	}
	return Match{Rule: &Rule{ID: d.Name + ".override", Limit: l, Unit: unit}, Key: d.key(desc.GetEntries(), nil)}, true
}

// key names the counter as envoyproxy/ratelimit does, so that both can count
// side by side in one Redis.
func (d *Domain) key(entries []*commonv3.RateLimitDescriptor_Entry, shares []string) string {
	var b strings.Builder
	b.WriteString(d.Name)
	b.WriteByte('_')
	for i, e := range entries {
		value := e.GetValue()
		if shares != nil && shares[i] != "" {
			value = shares[i]
		}
		b.WriteString(e.GetKey())
		b.WriteByte('_')
		b.WriteString(value)
		if i < len(entries)-1 {
			b.WriteByte('_')
		}
	}
	return b.String()
}

// match says whether s is the pattern with something, or nothing, for each star.
func (w wildcard) match(s string) bool {
	first, last := w.parts[0], w.parts[len(w.parts)-1]
	if len(s) < len(first)+len(last) || !strings.HasPrefix(s, first) || !strings.HasSuffix(s, last) {
		return false
	}
	s = s[len(first) : len(s)-len(last)]
	for _, p := range w.parts[1 : len(w.parts)-1] {
		_, after, found := strings.Cut(s, p)
		if !found {
			return false
		}
		s = after
	}
	return true
}

// At is "<file>:<line>" of the domain, or what it came from without lines.
func (d *Domain) At() string {
	if d.Line == 0 {
		return d.File
	}
	return d.File + ":" + strconv.Itoa(d.Line)
}
