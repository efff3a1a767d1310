// Package security compiles the policies that apply to one workload or gateway
// into Envoy configuration: PeerAuthentication into a mode per port,
// RequestAuthentication into jwt_authn, AuthorizationPolicy into RBAC and (for
// CUSTOM) ext_authz, RegoPolicy into ext_authz towards writ-authz, and
// QuotaPolicy into rate limits decided by writ-ratelimit. It is pure: one
// revision of the mesh in, configuration out.
//
// The meaning of Istio's kinds is Istio's. Where an AuthorizationPolicy meets a
// TCP port, an ALLOW rule with a condition that only HTTP has matches nothing,
// and any other rule is taken without that condition.
//
// HTTP filters are generic: they stand in the listener, disabled, and the
// virtual host brings the content under the filter's name. A policy that is
// written, changed or removed therefore alters a route configuration only, so no
// connection drains and the next request on an old connection meets the new
// rule. The filter for RequestAuthentications and those for providers of CUSTOM are in
// every listener, switched off where no virtual host asks for them. What the mode of a
// PeerAuthentication demands of callers is in the listener's chains and in the virtual
// host, so that it holds for requests of whatever listener.
//
// The filters run in this order: malformed requests, revoked certificates, CUSTOM, JWT,
// AUDIT, access lists, DENY, ALLOW, Rego, quota. ServiceRoles are among what allows (package eval). What is known of
// RegoPolicies without evaluating them is decided before authz is asked about the
// rest, see placeRego.
// DENY and ALLOW have two filters each: rules that can be looked up by the caller or the
// path are an index, the others a list.
// As in Istio, CUSTOM comes before JWT, so that a provider may log the user in.
//
// Every refusal says who refused: see DeniedByHeader.
package security
