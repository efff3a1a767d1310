package security

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	networkv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	sslv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/ssl/v3"
	ipv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/input_matchers/ip/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/input_matchers/metadata/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/pilot/security/eval"
)

// matchEval decides matcher trees as Envoy does: what is nested and decides nothing
// goes on with the next of a list, the next shorter prefix of a trie, and then
// on_no_match.
type matchEval struct {
	// path is with the query.
	path string
	r    eval.Request
	// regexes are kept, because they are tried often.
	regexes map[string]*regexp.Regexp
}

// errNotAvailable is what Envoy makes of a question about the certificate of plain
// text: no decision at all.
var errNotAvailable = errors.New("the input is not available")

// decide gives the name and the action that is decided; nil for none.
func (e matchEval) decide(m *xdsmatcherv3.Matcher) (*rbacv3.Action, error) {
	if m == nil {
		return nil, nil
	}
	var found *rbacv3.Action
	var err error
	switch t := m.GetMatcherType().(type) {
	case *xdsmatcherv3.Matcher_MatcherList_:
		found, err = e.list(t.MatcherList)
	case *xdsmatcherv3.Matcher_MatcherTree_:
		found, err = e.tree(t.MatcherTree)
	default:
		return nil, fmt.Errorf("a matcher of type %T", t)
	}
	if found != nil || err != nil {
		return found, err
	}
	return e.onMatch(m.GetOnNoMatch())
}

func (e matchEval) onMatch(on *xdsmatcherv3.Matcher_OnMatch) (*rbacv3.Action, error) {
	if action := on.GetAction(); action != nil {
		out := new(rbacv3.Action)
		return out, action.GetTypedConfig().UnmarshalTo(out)
	}
	return e.decide(on.GetMatcher())
}

func (e matchEval) list(l *xdsmatcherv3.Matcher_MatcherList) (*rbacv3.Action, error) {
	for _, f := range l.GetMatchers() {
		holds, err := e.holds(f.GetPredicate())
		if err != nil {
			return nil, err
		}
		if !holds {
			continue
		}
		if found, err := e.onMatch(f.GetOnMatch()); found != nil || err != nil {
			return found, err
		}
	}
	return nil, nil
}

func (e matchEval) tree(t *xdsmatcherv3.Matcher_MatcherTree) (*rbacv3.Action, error) {
	text, there, err := e.text(t.GetInput())
	if err != nil || !there {
		return nil, err
	}
	if m := t.GetExactMatchMap(); m != nil {
		return e.onMatch(m.GetMap()[text])
	}
	for n := len(text); n >= 0; n-- {
		if found, err := e.onMatch(t.GetPrefixMatchMap().GetMap()[text[:n]]); found != nil || err != nil {
			return found, err
		}
	}
	return nil, nil
}

func (e matchEval) holds(p *predicate) (bool, error) {
	switch m := p.GetMatchType().(type) {
	case *xdsmatcherv3.Matcher_MatcherList_Predicate_AndMatcher:
		for _, one := range m.AndMatcher.GetPredicate() {
			if holds, err := e.holds(one); err != nil || !holds {
				return false, err
			}
		}
		return true, nil
	case *xdsmatcherv3.Matcher_MatcherList_Predicate_OrMatcher:
		for _, one := range m.OrMatcher.GetPredicate() {
			if holds, err := e.holds(one); err != nil || holds {
				return holds, err
			}
		}
		return false, nil
	case *xdsmatcherv3.Matcher_MatcherList_Predicate_NotMatcher:
		holds, err := e.holds(m.NotMatcher)
		return !holds, err
	}
	return e.single(p.GetSinglePredicate())
}

func (e matchEval) single(s *xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate) (bool, error) {
	if value := s.GetValueMatch(); value != nil {
		text, there, err := e.text(s.GetInput())
		return there && e.matches(value, text), err
	}
	config, err := s.GetCustomMatch().GetTypedConfig().UnmarshalNew()
	if err != nil {
		return false, err
	}
	switch c := config.(type) {
	case *xdsmatcherv3.CelMatcher: // connection.mtls, see peerCertificate
		return e.r.Principal != "", nil
	case *ipv3.Ip:
		text, _, err := e.text(s.GetInput())
		if err != nil {
			return false, err
		}
		return within(c, netip.MustParseAddr(text)), nil
	case *metadatav3.Metadata:
		in := new(networkv3.DynamicMetadataInput)
		if err := s.GetInput().GetTypedConfig().UnmarshalTo(in); err != nil {
			return false, err
		}
		return e.value(c.GetValue(), e.metadata(in)), nil
	}
	return false, fmt.Errorf("a matcher of type %T", config)
}

func within(c *ipv3.Ip, a netip.Addr) bool {
	for _, r := range c.GetCidrRanges() {
		if netip.PrefixFrom(netip.MustParseAddr(r.GetAddressPrefix()), int(r.GetPrefixLen().GetValue())).Contains(a) {
			return true
		}
	}
	return false
}

// metadata is what jwt_authn left.
func (e matchEval) metadata(in *networkv3.DynamicMetadataInput) any {
	if in.GetFilter() != jwtMetadata || in.GetPath()[0].GetKey() != jwtPayload || e.r.Claims == nil {
		return nil
	}
	var at any = e.r.Claims
	for _, segment := range in.GetPath()[1:] {
		object, _ := at.(map[string]any)
		at = object[segment.GetKey()]
	}
	return at
}

func (e matchEval) value(m *matcherv3.ValueMatcher, v any) bool {
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.ValueMatcher_StringMatch:
		text, ok := v.(string)
		return ok && e.matches(xdsString(p.StringMatch), text)
	case *matcherv3.ValueMatcher_ListMatch:
		list, _ := v.([]string)
		return slices.ContainsFunc(list, func(one string) bool { return e.value(p.ListMatch.GetOneOf(), one) })
	case *matcherv3.ValueMatcher_OrMatch:
		return slices.ContainsFunc(p.OrMatch.GetValueMatchers(), func(m *matcherv3.ValueMatcher) bool { return e.value(m, v) })
	}
	panic(fmt.Sprintf("a value of type %T", m.GetMatchPattern()))
}

func (e matchEval) matches(m *xdsmatcherv3.StringMatcher, text string) bool {
	fold := func(s string) string { return s }
	if m.GetIgnoreCase() {
		fold = strings.ToLower
	}
	switch p := m.GetMatchPattern().(type) {
	case *xdsmatcherv3.StringMatcher_Exact:
		return fold(text) == fold(p.Exact)
	case *xdsmatcherv3.StringMatcher_Prefix:
		return strings.HasPrefix(fold(text), fold(p.Prefix))
	case *xdsmatcherv3.StringMatcher_Suffix:
		return strings.HasSuffix(fold(text), fold(p.Suffix))
	case *xdsmatcherv3.StringMatcher_SafeRegex:
		re := e.regexes[p.SafeRegex.GetRegex()]
		if re == nil {
			re = regexp.MustCompile("^(?:" + p.SafeRegex.GetRegex() + ")$")
			e.regexes[p.SafeRegex.GetRegex()] = re
		}
		return re.MatchString(text)
	}
	panic(fmt.Sprintf("a text of type %T", m.GetMatchPattern()))
}

// text is what an input gives, and whether it gives anything.
func (e matchEval) text(in *xdscorev3.TypedExtensionConfig) (text string, there bool, err error) {
	config, err := in.GetTypedConfig().UnmarshalNew()
	if err != nil {
		return "", false, err
	}
	return e.input(config)
}

func (e matchEval) input(config proto.Message) (text string, there bool, err error) {
	switch c := config.(type) {
	case *matcherv3.HttpRequestHeaderMatchInput:
		text, there := map[string]string{":path": e.path, ":method": e.r.Method, ":authority": e.r.Host}[c.GetHeaderName()]
		return text, there, nil
	case *sslv3.UriSanInput:
		if e.r.Principal == "" {
			return "", false, errNotAvailable
		}
		return spiffeScheme + e.r.Principal, true, nil
	case *networkv3.DestinationPortInput:
		return strconv.FormatUint(uint64(e.r.DestinationPort), 10), true, nil
	case *networkv3.DestinationIPInput:
		return e.r.Destination.String(), true, nil
	case *networkv3.DirectSourceIPInput:
		return e.r.Source.String(), true, nil
	case *networkv3.SourceIPInput:
		return e.r.Remote.String(), true, nil
	case *networkv3.ServerNameInput:
		return e.r.SNI, e.r.SNI != "", nil
	}
	return "", false, fmt.Errorf("an input of type %T", config)
}
