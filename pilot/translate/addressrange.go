package translate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/pilot/model"
)

// rangeRoutes are the routes of services that have ranges of IPv4 addresses, for what asks
// the explicit proxy for an address within one. Envoy finds virtual hosts by name, which
// is no range: so these routes are those of the virtual host of all other names, and look
// at the name that was asked for. The narrowest range goes first, as in a listener.
func (s *scope) rangeRoutes(src *sources) ([]*routev3.Route, error) {
	type ranged struct {
		bits   int
		routes []*routev3.Route
	}
	var found []ranged
	for _, v := range s.services {
		for _, p := range v.ports {
			blocks := addressRanges(v.Service, p)
			if len(blocks) == 0 {
				continue
			}
			vh, err := s.serviceHost(v.Service, p, src)
			if err != nil {
				return nil, err
			}
			for _, block := range blocks {
				found = append(found, ranged{block.Bits(), routesWithin(vh.GetRoutes(), block, p)})
			}
		}
	}
	slices.SortStableFunc(found, func(a, b ranged) int { return cmp.Compare(b.bits, a.bits) })
	var out []*routev3.Route
	for _, f := range found {
		out = append(out, f.routes...)
	}
	return out, nil
}

// addressRanges are the ranges of IPv4 addresses of a port of a service: any address for a
// TCP port of a ServiceEntry that neither has addresses nor looks names up, which is known
// by its number alone. Ranges of IPv6 have too many spellings to be recognized in a name.
func addressRanges(svc *model.Service, port model.ServicePort) []netip.Prefix {
	opaque := !port.Protocol.IsHTTP() && port.Protocol != model.TLS && port.Protocol != model.HTTPS
	if len(svc.Addresses) == 0 && svc.Resolution == model.None && opaque {
		return []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0)}
	}
	var out []netip.Prefix
	for _, a := range svc.Addresses {
		if p, err := netip.ParsePrefix(a); err == nil && p.Addr().Is4() && !p.IsSingleIP() {
			out = append(out, p.Masked())
		}
	}
	return out
}

// routesWithin are the routes for requests and tunnels to a port of an address in block.
func routesWithin(routes []*routev3.Route, block netip.Prefix, port model.ServicePort) []*routev3.Route {
	out := make([]*routev3.Route, 0, len(routes))
	for _, r := range routes {
		within := proto.CloneOf(r)
		within.Match.Headers = append(within.Match.Headers, &routev3.HeaderMatcher{
			Name: ":authority",
			HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
				MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: authorityPattern(block, port.Port)}},
			}},
		})
		out = append(out, within)
	}
	return out
}

// authorityPattern is a regular expression for the addresses of an IPv4 block with a port,
// which may be missing where it is HTTP's own.
func authorityPattern(block netip.Prefix, port uint32) string {
	var octets []string
	for i, b := range block.Addr().As4() {
		free := min(max(8*(i+1)-block.Bits(), 0), 8) // bits of this octet that may be anything
		octets = append(octets, octetPattern(int(b), int(b)|(1<<free-1)))
	}
	pattern := strings.Join(octets, `\.`)
	if port == 80 {
		return pattern + "(:80)?"
	}
	return fmt.Sprintf("%s:%d", pattern, port)
}

// octetPattern is a regular expression for the numbers from first to last.
func octetPattern(first, last int) string {
	switch {
	case first == 0 && last == 255:
		return "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
	case first == last:
		return fmt.Sprint(first)
	}
	var parts []string
	for tens := first / 10; tens <= last/10; tens++ {
		low, high := max(first-10*tens, 0), min(last-10*tens, 9)
		text := fmt.Sprintf("[%d-%d]", low, high)
		if tens > 0 {
			text = fmt.Sprint(tens) + text
		}
		parts = append(parts, text)
	}
	return "(" + strings.Join(parts, "|") + ")"
}
