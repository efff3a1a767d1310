package translate

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

// mergeDelegate gives the rule that stands for leaf, a rule of a delegate, below
// root, the rule that names the delegate: both must match, and what the leaf
// leaves open comes from the root. Nil if no request can match both.
func mergeDelegate(root, leaf *networking.HTTPRoute) *networking.HTTPRoute {
	out := proto.Clone(leaf).(*networking.HTTPRoute)
	out.Name = strings.Trim(root.GetName()+"-"+leaf.GetName(), "-")
	out.Match = mergeMatches(root.GetMatch(), leaf.GetMatch())
	if out.Match == nil && (len(root.GetMatch()) > 0 || len(leaf.GetMatch()) > 0) {
		return nil
	}
	inherit := func(set bool, take func()) {
		if !set {
			take()
		}
	}
	inherit(out.Rewrite != nil, func() { out.Rewrite = root.Rewrite })
	inherit(out.Timeout != nil, func() { out.Timeout = root.Timeout })
	inherit(out.Retries != nil, func() { out.Retries = root.Retries })
	inherit(out.Fault != nil, func() { out.Fault = root.Fault })
	inherit(out.Mirror != nil, func() { out.Mirror = root.Mirror })
	inherit(out.MirrorPercent != nil, func() { out.MirrorPercent = root.MirrorPercent }) //nolint:staticcheck // the older spelling of mirrorPercentage
	inherit(out.MirrorPercentage != nil, func() { out.MirrorPercentage = root.MirrorPercentage })
	inherit(len(out.Mirrors) > 0, func() { out.Mirrors = root.Mirrors })
	inherit(out.CorsPolicy != nil, func() { out.CorsPolicy = root.CorsPolicy })
	inherit(out.Headers != nil, func() { out.Headers = root.Headers })
	return out
}

// mergeMatches is nil if one of the leaf's matches is within none of the root's: then
// the whole rule does not hold.
func mergeMatches(root, leaf []*networking.HTTPMatchRequest) []*networking.HTTPMatchRequest {
	if len(root) == 0 {
		return leaf
	}
	if len(leaf) == 0 {
		return root
	}
	var out []*networking.HTTPMatchRequest
	for _, l := range leaf {
		before := len(out)
		for _, r := range root {
			if m := mergeMatch(r, l); m != nil {
				out = append(out, m)
			}
		}
		if len(out) == before {
			return nil
		}
	}
	return out
}

func mergeMatch(root, leaf *networking.HTTPMatchRequest) *networking.HTTPMatchRequest {
	for _, pair := range [][2]*networking.StringMatch{
		{root.Uri, leaf.Uri}, {root.Scheme, leaf.Scheme}, {root.Method, leaf.Method}, {root.Authority, leaf.Authority},
	} {
		if conflict(pair[0], pair[1]) {
			return nil
		}
	}
	if root.IgnoreUriCase != leaf.IgnoreUriCase && root.Uri != nil && leaf.Uri != nil {
		return nil
	}
	if root.Port != 0 && leaf.Port != 0 && root.Port != leaf.Port {
		return nil
	}
	for _, maps := range [][2]map[string]*networking.StringMatch{
		{root.Headers, leaf.Headers}, {root.QueryParams, leaf.QueryParams}, {root.WithoutHeaders, leaf.WithoutHeaders},
	} {
		for k, v := range maps[1] {
			if conflict(maps[0][k], v) {
				return nil
			}
		}
	}
	if !sameClients(root, leaf) {
		return nil
	}
	// The leaf refines the root wherever both speak, so the leaf's word stays
	// and only what it is silent about comes from the root.
	out := proto.Clone(leaf).(*networking.HTTPMatchRequest)
	out.Name = strings.Trim(root.GetName()+"-"+leaf.GetName(), "-")
	merged := proto.Clone(root).(*networking.HTTPMatchRequest)
	if out.Uri == nil {
		out.Uri, out.IgnoreUriCase = merged.Uri, merged.IgnoreUriCase
	}
	if out.Scheme == nil {
		out.Scheme = merged.Scheme
	}
	if out.Method == nil {
		out.Method = merged.Method
	}
	if out.Authority == nil {
		out.Authority = merged.Authority
	}
	if out.Port == 0 {
		out.Port = merged.Port
	}
	if len(out.Gateways) == 0 {
		out.Gateways = merged.Gateways
	}
	if out.SourceNamespace == "" {
		out.SourceNamespace = merged.SourceNamespace
	}
	if out.StatPrefix == "" {
		out.StatPrefix = merged.StatPrefix
	}
	out.Headers = union(merged.Headers, out.Headers)
	out.WithoutHeaders = union(merged.WithoutHeaders, out.WithoutHeaders)
	out.QueryParams = union(merged.QueryParams, out.QueryParams)
	out.SourceLabels = union(merged.SourceLabels, out.SourceLabels)
	return out
}

// sameClients says whether the leaf's clients and gateways are among the root's.
func sameClients(root, leaf *networking.HTTPMatchRequest) bool {
	for k, v := range leaf.SourceLabels {
		if other, ok := root.SourceLabels[k]; ok && other != v {
			return false
		}
	}
	if root.SourceNamespace != "" && leaf.SourceNamespace != "" && root.SourceNamespace != leaf.SourceNamespace {
		return false
	}
	return len(root.Gateways) == 0 || !slices.ContainsFunc(leaf.Gateways, func(g string) bool { return !slices.Contains(root.Gateways, g) })
}

// conflict says whether leaf is not within root. Beside a regular expression nothing
// else can be said, because nobody can tell what is within it.
func conflict(root, leaf *networking.StringMatch) bool {
	if root.GetMatchType() == nil || leaf.GetMatchType() == nil {
		return false
	}
	if root.GetRegex() == "" && proto.Equal(root, leaf) {
		return false
	}
	prefix, ok := root.GetMatchType().(*networking.StringMatch_Prefix)
	if !ok {
		return true
	}
	switch l := leaf.GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		return !strings.HasPrefix(l.Exact, prefix.Prefix)
	case *networking.StringMatch_Prefix:
		return !strings.HasPrefix(l.Prefix, prefix.Prefix)
	}
	return true
}

func union[V any](base, over map[string]V) map[string]V {
	if len(base) == 0 {
		return over
	}
	for k, v := range over {
		base[k] = v
	}
	return base
}
