package security

import (
	"fmt"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// TestTreeLosesNothing changes every field of lists that have a tree, those that
// Writ never sets included. The changed list must have another tree or none.
func TestTreeLosesNothing(t *testing.T) {
	for name, policy := range treePolicies() {
		t.Run(name, func(t *testing.T) {
			list := &rbacv3.RBAC{Action: rbacv3.RBAC_ALLOW, Policies: map[string]*rbacv3.Policy{"p": policy}}
			base := messageOf(list)
			if base == nil {
				t.Fatal("no tree, so that this tests nothing")
			}
			changes := 0
			eachChange(list.ProtoReflect(), "", func(what string) {
				changes++
				if got := messageOf(list); got != nil && proto.Equal(got, base) {
					t.Errorf("%s does not change the tree", what)
				}
			})
			if changes < 40 || !proto.Equal(messageOf(list), base) {
				t.Errorf("%d changes were tried, and the list is %v", changes, list)
			}
		})
	}
}

// treePolicies has every form that trees know.
func treePolicies() map[string]*rbacv3.Policy {
	caller := func(name string) *rbacv3.Principal { return peer(exact(spiffeScheme + name)) }
	block := &corev3.CidrRange{AddressPrefix: "10.0.0.0", PrefixLen: wrapperspb.UInt32(8)}
	get := &rbacv3.Permission{Rule: &rbacv3.Permission_Header{Header: &routev3.HeaderMatcher{
		Name: ":method", HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: exact("GET")},
	}}}
	at := func(m *matcherv3.StringMatcher) *rbacv3.Permission {
		return &rbacv3.Permission{Rule: &rbacv3.Permission_UrlPath{UrlPath: &matcherv3.PathMatcher{Rule: &matcherv3.PathMatcher_Path{Path: m}}}}
	}
	out := map[string]*rbacv3.Policy{}
	permissions := []*rbacv3.Permission{
		get, at(exact("/a")), at(prefix("/a")), notRule(get), orRules([]*rbacv3.Permission{get, at(exact("/a"))}),
		andRules([]*rbacv3.Permission{get, at(exact("/a"))}),
		{Rule: &rbacv3.Permission_DestinationPort{DestinationPort: 80}},
		{Rule: &rbacv3.Permission_DestinationIp{DestinationIp: block}},
		{Rule: &rbacv3.Permission_RequestedServerName{RequestedServerName: regex("a.*")}},
	}
	for i, p := range permissions {
		out[fmt.Sprintf("permission %d", i)] = &rbacv3.Policy{Permissions: []*rbacv3.Permission{p}, Principals: []*rbacv3.Principal{caller("a")}}
	}
	principals := []*rbacv3.Principal{
		caller("a"), orIDs([]*rbacv3.Principal{caller("a"), caller("b")}), andIDs([]*rbacv3.Principal{caller("a"), peer(prefix("b"))}),
		notID(caller("a")), peer(regex("a")), metadataID(claim([]string{"a", "b"}, []string{"c"})),
		orIDs([]*rbacv3.Principal{peer(prefix("a")), peer(suffix("b"))}),
		{Identifier: &rbacv3.Principal_Header{Header: header(":authority", "b", true)}},
		{Identifier: &rbacv3.Principal_DirectRemoteIp{DirectRemoteIp: block}},
		{Identifier: &rbacv3.Principal_RemoteIp{RemoteIp: block}},
	}
	for i, id := range principals {
		out[fmt.Sprintf("principal %d", i)] = &rbacv3.Policy{Permissions: []*rbacv3.Permission{andRules([]*rbacv3.Permission{at(prefix("/p")), get})}, Principals: []*rbacv3.Principal{id}}
		out[fmt.Sprintf("principal %d of a caller", i)] = &rbacv3.Policy{Permissions: []*rbacv3.Permission{get}, Principals: []*rbacv3.Principal{andIDs([]*rbacv3.Principal{caller("c"), id})}}
	}
	return out
}

// eachChange calls try with m changed in one field after the other, in the
// messages within it too, and puts each field back.
func eachChange(m protoreflect.Message, at string, try func(what string)) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		what := at + "." + string(f.Name())
		set, before := m.Has(f), m.Get(f)
		var rival protoreflect.FieldDescriptor // that setting f removes
		var rivalValue protoreflect.Value
		if o := f.ContainingOneof(); o != nil && !set {
			if rival = m.WhichOneof(o); rival != nil {
				rivalValue = m.Get(rival)
			}
		}
		if f.IsMap() {
			before.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				eachChange(v.Message(), fmt.Sprintf("%s[%s]", what, k.String()), try)
				return true
			})
			continue
		}
		if f.IsList() {
			list := before.List()
			if f.Message() != nil {
				for j := range list.Len() {
					eachChange(list.Get(j).Message(), fmt.Sprintf("%s[%d]", what, j), try)
				}
			}
			list = m.Mutable(f).List()
			list.Append(list.NewElement())
			try(what + " with one more")
			list.Truncate(list.Len() - 1)
			continue
		}
		if set && f.Message() != nil {
			eachChange(before.Message(), what, try)
			continue
		}
		m.Set(f, another(m, f))
		try(what)
		switch {
		case rival != nil:
			m.Set(rival, rivalValue)
		case set:
			m.Set(f, before)
		default:
			m.Clear(f)
		}
	}
}

// another gives a value of f that m does not have.
func another(m protoreflect.Message, f protoreflect.FieldDescriptor) protoreflect.Value {
	v := m.Get(f)
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(!v.Bool())
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(v.String() + "x")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(string(v.Bytes()) + "x"))
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(v.Enum() + 1)
	case protoreflect.MessageKind:
		return m.NewField(f)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(v.Uint()) + 1)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(v.Int()) + 1)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(v.Uint() + 1)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(v.Int() + 1)
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(v.Float() + 1)
	}
	panic("a kind that the test does not know: " + f.Kind().String())
}
