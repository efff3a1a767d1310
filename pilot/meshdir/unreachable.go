package meshdir

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

// maxCompared bounds how many matches each further one is compared with.
const maxCompared = 500

// unreachable looks for routes, and matches of routes, for which those before them
// leave nothing.
type unreachable[M proto.Message] struct {
	c *checker
	// covers says that whatever the second match takes the first takes too.
	covers func(first, second M) bool
	// all has no condition.
	all M
	// open is a route without matches, which takes everything; "" for none.
	open string
	// matches are those before, with their places below spec.
	matches []M
	places  []string
}

// route takes the next route: its place and its matches. What a delegate leaves is not
// known here.
func (u *unreachable[M]) route(at string, matches []M, delegated bool) {
	if len(matches) == 0 {
		u.match(at, u.all)
		if u.open == "" && !delegated {
			u.open = strings.TrimPrefix(at, "spec.")
		}
	}
	for j, m := range matches {
		place := index(at+".match", j)
		u.match(place, m)
		if !delegated && len(u.matches) < maxCompared {
			u.matches, u.places = append(u.matches, m), append(u.places, strings.TrimPrefix(place, "spec."))
		}
	}
}

func (u *unreachable[M]) match(at string, m M) {
	if u.open != "" {
		u.c.warnf(at, "is never reached: %s matches everything", u.open)
		return
	}
	i := slices.IndexFunc(u.matches, func(first M) bool { return u.covers(first, m) })
	switch {
	case i < 0:
	case u.covers(u.matches[i], u.all):
		u.c.warnf(at, "is never reached: %s matches everything", u.places[i])
	case u.covers(m, u.matches[i]):
		u.c.warnf(at, "is never reached: %s asks for the same", u.places[i])
	default:
		u.c.warnf(at, "is never reached: %s takes all of it, so put this one first", u.places[i])
	}
}

// unreachableRoutes warns about routes and matches that nothing is left for.
func (c *checker) unreachableRoutes(vs *networking.VirtualService) {
	http := unreachable[*networking.HTTPMatchRequest]{c: c, covers: coversHTTP, all: &networking.HTTPMatchRequest{}}
	for i, r := range vs.Http {
		http.route(index("spec.http", i), r.Match, r.Delegate != nil)
	}
	tls := unreachable[*networking.TLSMatchAttributes]{c: c, covers: coversAny[*networking.TLSMatchAttributes], all: &networking.TLSMatchAttributes{}}
	for i, r := range vs.Tls {
		if len(r.Match) > 0 { // without it is an error
			tls.route(index("spec.tls", i), r.Match, false)
		}
	}
	tcp := unreachable[*networking.L4MatchAttributes]{c: c, covers: coversAny[*networking.L4MatchAttributes], all: &networking.L4MatchAttributes{}}
	for i, r := range vs.Tcp {
		tcp.route(index("spec.tcp", i), r.Match, false)
	}
}

// coversAny: the same, or no condition.
func coversAny[M proto.Message](first, second M) bool {
	return proto.Equal(first, second) || proto.Size(first) == 0
}

// coversHTTP: every condition of the first is one of the second, or wider.
func coversHTTP(first, second *networking.HTTPMatchRequest) bool {
	return coversPath(first, second) && coversText(first.Scheme, second.Scheme) && coversText(first.Method, second.Method) &&
		coversText(first.Authority, second.Authority) && coversTexts(first.Headers, second.Headers) &&
		coversTexts(first.WithoutHeaders, second.WithoutHeaders) && coversTexts(first.QueryParams, second.QueryParams) &&
		coversSource(first, second)
}

func coversSource(first, second *networking.HTTPMatchRequest) bool {
	for name, v := range first.SourceLabels {
		if w, there := second.SourceLabels[name]; !there || v != w {
			return false
		}
	}
	other := func(gateway string) bool { return !slices.Contains(first.Gateways, gateway) }
	return (first.Port == 0 || first.Port == second.Port) && (first.SourceNamespace == "" || first.SourceNamespace == second.SourceNamespace) &&
		(len(first.Gateways) == 0 || len(second.Gateways) > 0 && !slices.ContainsFunc(second.Gateways, other))
}

func coversTexts(first, second map[string]*networking.StringMatch) bool {
	for name, m := range first {
		if n, there := second[name]; !there || !proto.Equal(m, n) {
			return false
		}
	}
	return true
}

func coversText(first, second *networking.StringMatch) bool {
	return first == nil || proto.Equal(first, second)
}

func coversPath(first, second *networking.HTTPMatchRequest) bool {
	prefix, isPrefix := first.Uri.GetMatchType().(*networking.StringMatch_Prefix)
	if first.Uri == nil || isPrefix && (prefix.Prefix == "" || prefix.Prefix == "/") {
		return true
	}
	if second.IgnoreUriCase && !first.IgnoreUriCase {
		return false
	}
	path := func(s string) string {
		if first.IgnoreUriCase {
			return strings.ToLower(s)
		}
		return s
	}
	switch n := second.Uri.GetMatchType().(type) {
	case *networking.StringMatch_Prefix:
		return isPrefix && strings.HasPrefix(path(n.Prefix), path(prefix.Prefix))
	case *networking.StringMatch_Exact:
		exact, isExact := first.Uri.GetMatchType().(*networking.StringMatch_Exact)
		return isPrefix && strings.HasPrefix(path(n.Exact), path(prefix.Prefix)) || isExact && path(n.Exact) == path(exact.Exact)
	case *networking.StringMatch_Regex:
		return proto.Equal(first.Uri, second.Uri)
	}
	return false
}
