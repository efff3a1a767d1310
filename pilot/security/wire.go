package security

import (
	"fmt"
	"maps"
	"slices"

	rbachttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// An index is put together in wire form, as marshaling deterministically would: fields
// by number, maps by key. So what is marshaled once need not be again.

// Numbers of fields of xds.type.matcher.v3.Matcher and of the messages in it.
const (
	matcherList, matcherTree, matcherOnNoMatch = 1, 2, 3
	onMatchMatcher                             = 1
	listMatchers                               = 1
	fieldMatcherPredicate, fieldMatcherOnMatch = 1, 2
	treeInput, treeExactMap, treePrefixMap     = 1, 2, 3
	matchMapMap                                = 1
	mapKey, mapValue                           = 1, 2
)

// Numbers of fields of envoy.extensions.filters.http.rbac.v3.RBACPerRoute and RBAC.
const (
	perRouteRBAC = 2
	rbacMatcher  = 4
)

// wire marshals as envoy.Any does, and panics as that does.
func wire(m proto.Message) []byte {
	out, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("marshal %T: %v", m, err))
	}
	return out
}

// appendField appends a field of a message in wire form, unless its value is nil.
func appendField(to []byte, number protowire.Number, value []byte) []byte {
	if value == nil {
		return to
	}
	return protowire.AppendBytes(protowire.AppendTag(to, number, protowire.BytesType), value)
}

// fieldSize bounds what appendField appends for any of our numbers, which take one byte.
func fieldSize(value int) int { return 1 + protowire.SizeBytes(value) }

// goOn is an OnMatch that leads to a Matcher.
func goOn(matcher []byte) outcome { return appendField(nil, onMatchMatcher, matcher) }

// fieldMatcher is one of a MatcherList.
func fieldMatcher(p *predicate, then outcome) []byte {
	return appendField(appendField(nil, fieldMatcherPredicate, wire(p)), fieldMatcherOnMatch, then)
}

// listOf is a Matcher that tries FieldMatchers one after the other.
func listOf(list [][]byte, otherwise outcome) []byte {
	var all []byte
	for _, m := range list {
		all = appendField(all, listMatchers, m)
	}
	return appendField(appendField(nil, matcherList, all), matcherOnNoMatch, otherwise)
}

// treeOf is a Matcher that looks texts up, in one of the maps of a MatcherTree.
func treeOf(in []byte, kind protowire.Number, texts map[string]outcome, otherwise outcome) []byte {
	size := 0
	for text, then := range texts {
		size += fieldSize(fieldSize(len(text)) + fieldSize(len(then)))
	}
	all := make([]byte, 0, size)
	for _, text := range slices.Sorted(maps.Keys(texts)) {
		then := texts[text]
		all = protowire.AppendTag(all, matchMapMap, protowire.BytesType)
		all = protowire.AppendVarint(all, uint64(fieldSize(len(text))+fieldSize(len(then)))) //nolint:gosec // not negative
		all = appendField(appendField(all, mapKey, []byte(text)), mapValue, then)
	}
	tree := appendField(appendField(make([]byte, 0, size+len(in)+32), treeInput, in), kind, all)
	return appendField(appendField(make([]byte, 0, len(tree)+len(otherwise)+32), matcherTree, tree), matcherOnNoMatch, otherwise)
}

// perRouteWith is what perRoute makes of an RBAC that has the matcher besides.
func perRouteWith(rbac *rbachttpv3.RBAC, matcher []byte) *anypb.Any {
	after := &rbachttpv3.RBAC{RulesStatPrefix: rbac.GetRulesStatPrefix()}
	before := proto.CloneOf(rbac)
	before.RulesStatPrefix = ""
	body := append(appendField(wire(before), rbacMatcher, matcher), wire(after)...)
	return &anypb.Any{TypeUrl: "type.googleapis.com/" + string((&rbachttpv3.RBACPerRoute{}).ProtoReflect().Descriptor().FullName()), Value: appendField(nil, perRouteRBAC, body)}
}
