package security

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbachttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	rbactcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	exprpb "google.golang.org/genproto/googleapis/api/expr/v1alpha1"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
)

const (
	// filterRevoked refuses requests of those whose certificate is revoked, also on
	// connections that were made before. New ones fail in their handshake, by the
	// certificate revocation list that the node agent serves.
	filterRevoked     = "writ.revoked"
	revokedStatPrefix = "writ_revoked_"
	// kindRevocation is in the header of a refusal before the serial or SPIFFE ID.
	kindRevocation = "Revocation"
	// maxNamedCertificates bounds the revoked certificates that have a rule of their
	// own, each of which is tried for every request; those beyond share one.
	maxNamedCertificates = 64
)

// revokedRules are the DENY rules of what is revoked, nil if nothing is.
func revokedRules(r *model.Revoked) *anypb.Any {
	if len(r.Certificates)+len(r.Identities) == 0 {
		return nil
	}
	rules := &rbacv3.RBAC{Action: rbacv3.RBAC_DENY, Policies: map[string]*rbacv3.Policy{}}
	always := []*rbacv3.Permission{{Rule: &rbacv3.Permission_Any{Any: true}}}
	anybody := []*rbacv3.Principal{{Identifier: &rbacv3.Principal_Any{Any: true}}}
	for _, i := range r.Identities {
		rules.Policies[kindRevocation+" "+i.SPIFFEID] = &rbacv3.Policy{Permissions: always, Principals: []*rbacv3.Principal{{
			Identifier: &rbacv3.Principal_Authenticated_{Authenticated: &rbacv3.Principal_Authenticated{
				PrincipalName: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: i.SPIFFEID}},
			}},
		}}}
	}
	named := r.Certificates[max(0, len(r.Certificates)-maxNamedCertificates):]
	for _, c := range named {
		rules.Policies[kindRevocation+" "+c.Serial] = &rbacv3.Policy{Permissions: always, Principals: anybody, Condition: peerDigestIn(c.SHA256)}
	}
	if older := r.Certificates[:len(r.Certificates)-len(named)]; len(older) > 0 {
		digests := make([]string, len(older))
		for i, c := range older {
			digests[i] = c.SHA256
		}
		rules.Policies[fmt.Sprintf("%s one-of-%d-certificates", kindRevocation, len(older))] = &rbacv3.Policy{
			Permissions: always, Principals: anybody, Condition: peerDigestIn(digests...),
		}
	}
	return envoy.Any(perRoute(&rbachttpv3.RBAC{Rules: rules, RulesStatPrefix: revokedStatPrefix}))
}

// peerDigestIn holds for a connection whose client certificate has one of the
// SHA-256 digests. Without a client certificate the attribute is missing, and the
// condition does not hold.
func peerDigestIn(digests ...string) *exprpb.Expr {
	list := &exprpb.Expr_CreateList{}
	for _, d := range digests {
		list.Elements = append(list.Elements, text(strings.ToLower(d)))
	}
	return call("@in", field(ident("connection"), "sha256_peer_certificate_digest"), &exprpb.Expr{ExprKind: &exprpb.Expr_ListExpr{ListExpr: list}})
}

// The expressions of CEL that are needed here. Envoy asks for no ids.

func ident(name string) *exprpb.Expr {
	return &exprpb.Expr{ExprKind: &exprpb.Expr_IdentExpr{IdentExpr: &exprpb.Expr_Ident{Name: name}}}
}

func field(of *exprpb.Expr, name string) *exprpb.Expr {
	return &exprpb.Expr{ExprKind: &exprpb.Expr_SelectExpr{SelectExpr: &exprpb.Expr_Select{Operand: of, Field: name}}}
}

func text(value string) *exprpb.Expr {
	return &exprpb.Expr{ExprKind: &exprpb.Expr_ConstExpr{ConstExpr: &exprpb.Constant{ConstantKind: &exprpb.Constant_StringValue{StringValue: value}}}}
}

func call(function string, args ...*exprpb.Expr) *exprpb.Expr {
	return &exprpb.Expr{ExprKind: &exprpb.Expr_CallExpr{CallExpr: &exprpb.Expr_Call{Function: function, Args: args}}}
}

// addRevoked comes before all other policies.
func (c *Compiler) addRevoked(b *httpBuilder) {
	b.addGeneric(filterRevoked, &rbachttpv3.RBAC{})
	if c.revoked == nil {
		return
	}
	b.PerFilterConfig[filterRevoked] = c.revoked
	b.Sources = append(b.Sources, RevokedRef())
}

// RevokedRef stands for the list of revocations among the objects that a resource is
// made of.
func RevokedRef() model.Ref { return model.Ref{Kind: "Revocations", Namespace: "writ", Name: "ca"} }

// metadataRevoked is the namespace of the metadata of a program's endpoint that has
// what is revoked, each digest and SPIFFE ID a key. See addRevokedTCP.
const metadataRevoked = "writ.revoked"

// RevokedMetadata is that metadata, nil if nothing is revoked.
func RevokedMetadata(r *model.Revoked) *corev3.Metadata {
	if len(r.Certificates)+len(r.Identities) == 0 {
		return nil
	}
	fields := make(map[string]*structpb.Value, len(r.Certificates)+len(r.Identities))
	for _, c := range r.Certificates {
		fields[strings.ToLower(c.SHA256)] = structpb.NewBoolValue(true)
	}
	for _, i := range r.Identities {
		fields[i.SPIFFEID] = structpb.NewBoolValue(true)
	}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{metadataRevoked: {Fields: fields}}}
}

// BothEndpoints gives endpoints that say too what was revoked before. They reach an Envoy
// before listeners do, and whom those of after refuse in another way is not let in between
// the two. It is nil if after will do by itself, or has other endpoints.
func BothEndpoints(before, after *anypb.Any) (*anypb.Any, error) {
	if !bytes.Contains(before.GetValue(), []byte(metadataRevoked)) {
		return nil, nil
	}
	var old, now endpointv3.ClusterLoadAssignment
	if err := errors.Join(before.UnmarshalTo(&old), after.UnmarshalTo(&now)); err != nil {
		return nil, fmt.Errorf("endpoints: %w", err)
	}
	revoked := map[string]map[string]*structpb.Value{}
	each(&old, func(address string, e *endpointv3.LbEndpoint) {
		revoked[address] = e.GetMetadata().GetFilterMetadata()[metadataRevoked].GetFields()
	})
	changed := false
	each(&now, func(address string, e *endpointv3.LbEndpoint) {
		fields := maps.Clone(revoked[address])
		if fields == nil {
			return
		}
		its := e.GetMetadata().GetFilterMetadata()[metadataRevoked].GetFields()
		maps.Copy(fields, its)
		if len(fields) == len(its) {
			return
		}
		changed = true
		if e.GetMetadata() == nil {
			e.Metadata = &corev3.Metadata{}
		}
		if e.Metadata.FilterMetadata == nil {
			e.Metadata.FilterMetadata = map[string]*structpb.Struct{}
		}
		e.Metadata.FilterMetadata[metadataRevoked] = &structpb.Struct{Fields: fields}
	})
	if !changed {
		return nil, nil
	}
	return envoy.Any(&now), nil
}

// each calls f with every endpoint and its address.
func each(a *endpointv3.ClusterLoadAssignment, f func(address string, e *endpointv3.LbEndpoint)) {
	for _, locality := range a.GetEndpoints() {
		for _, e := range locality.GetLbEndpoints() {
			f(string(envoy.Any(e.GetEndpoint().GetAddress()).GetValue()), e)
		}
	}
}

// addRevokedTCP ends TCP connections of those whose certificate is revoked, when the
// client sends something. The filters of a connection never change. What they look at
// may: the metadata of the endpoint that the connection leads to is replaced where it
// is, and this filter looks at it again for all that comes.
func addRevokedTCP(out *TCP) {
	out.add(filterRevoked, revokedTCP("connection"))
}

// RevokedServerTCP ends TCP connections of a client to a server whose certificate is
// revoked, in the same way: the endpoint's metadata has what is revoked of its
// identities.
func RevokedServerTCP() *listenerv3.Filter {
	return &listenerv3.Filter{Name: filterRevoked, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: envoy.Any(revokedTCP("upstream"))}}
}

// revokedTCP looks at the certificate of the other end of a connection, as the
// attributes of peer have it.
func revokedTCP(peer string) *rbactcpv3.RBAC {
	revoked := func(attribute string) *rbacv3.Policy {
		return &rbacv3.Policy{
			Permissions: []*rbacv3.Permission{{Rule: &rbacv3.Permission_Any{Any: true}}},
			Principals:  []*rbacv3.Principal{{Identifier: &rbacv3.Principal_Any{Any: true}}},
			Condition: call("@in", field(ident(peer), attribute),
				call("_[_]", field(field(ident("xds"), "upstream_host_metadata"), "filter_metadata"), text(metadataRevoked))),
		}
	}
	return &rbactcpv3.RBAC{
		StatPrefix: "tcp.", EnforcementType: rbactcpv3.RBAC_CONTINUOUS,
		Rules: &rbacv3.RBAC{Action: rbacv3.RBAC_DENY, Policies: map[string]*rbacv3.Policy{
			kindRevocation + " certificate": revoked("sha256_peer_certificate_digest"),
			kindRevocation + " identity":    revoked("uri_san_peer_certificate"),
		}},
	}
}
