// Package condition is the table of the keys that a condition (when) of an
// AuthorizationPolicy may have. Package meshdir checks by it, package security
// compiles by it and package eval decides by it, and a test has each of them take
// every key. What a key means is theirs; see
// https://istio.io/latest/docs/reference/config/security/conditions/.
package condition

import (
	"slices"
	"strings"
)

// The names of the keys. Headers, Claims and EnvoyFilters are beginnings: a name
// in brackets follows, after EnvoyFilters that of a filter before it.
const (
	Headers        = "request.headers"
	SourceIP       = "source.ip"
	RemoteIP       = "remote.ip"
	Namespace      = "source.namespace"
	ServiceAccount = "source.serviceAccount"
	Principal      = "source.principal"
	TrustDomain    = "source.trustDomain"
	TokenPrincipal = "request.auth.principal"
	Audiences      = "request.auth.audiences"
	Presenter      = "request.auth.presenter"
	Claims         = "request.auth.claims"
	DestinationIP  = "destination.ip"
	Port           = "destination.port"
	SNI            = "connection.sni"
	EnvoyFilters   = "experimental.envoy.filters."
)

// Side is what a condition is about.
type Side uint8

// The sides: who calls, and what is called.
const (
	Caller Side = iota + 1
	Called
)

// Form is what the values of a condition have to be.
type Form uint8

// The forms. Text is anything, with the wildcards that the key allows.
const (
	Text Form = iota
	Networks
	Ports
	Accounts
	Domains
)

// Key is one row of the table.
type Key struct {
	Name string
	// Example is a key as one would write it.
	Example string
	Side    Side
	// HTTPOnly says that connections do not have it.
	HTTPOnly bool
	// Identity says that it is not known before tokens and certificates are
	// looked at, which is after a CUSTOM provider is asked.
	Identity bool
	Values   Form
}

// Keys gives the table.
func Keys() []Key {
	return []Key{
		{Name: Headers, Example: "request.headers[name]", Side: Caller, HTTPOnly: true},
		{Name: SourceIP, Example: SourceIP, Side: Caller, Values: Networks},
		{Name: RemoteIP, Example: RemoteIP, Side: Caller, Values: Networks},
		{Name: Namespace, Example: Namespace, Side: Caller, Identity: true},
		{Name: ServiceAccount, Example: ServiceAccount, Side: Caller, Identity: true, Values: Accounts},
		{Name: Principal, Example: Principal, Side: Caller, Identity: true},
		{Name: TrustDomain, Example: TrustDomain, Side: Caller, Identity: true, Values: Domains},
		{Name: TokenPrincipal, Example: TokenPrincipal, Side: Caller, HTTPOnly: true, Identity: true},
		{Name: Audiences, Example: Audiences, Side: Caller, HTTPOnly: true, Identity: true},
		{Name: Presenter, Example: Presenter, Side: Caller, HTTPOnly: true, Identity: true},
		{Name: Claims, Example: "request.auth.claims[name]", Side: Caller, HTTPOnly: true, Identity: true},
		{Name: DestinationIP, Example: DestinationIP, Side: Called, Values: Networks},
		{Name: Port, Example: Port, Side: Called, Values: Ports},
		{Name: SNI, Example: SNI, Side: Called},
		{Name: EnvoyFilters, Example: "experimental.envoy.filters.network.mysql_proxy[name]", Side: Called},
	}
}

// named says that a key of this name has a name in brackets.
func (k Key) named() bool { return k.Example != k.Name }

// Find gives the row of a key as it is written, and the name in brackets without
// the outer ones: "a" of request.headers[a], "a][b" of request.auth.claims[a][b],
// and the filter too of EnvoyFilters, "network.mysql_proxy[a". Not ok for a key
// that no row has, and, with the row, for one that lacks its name.
func Find(key string) (k Key, name string, ok bool) {
	head, rest, bracket := strings.Cut(key, "[")
	rows := Keys()
	i := slices.IndexFunc(rows, func(k Key) bool {
		return k.Name == key || k.named() && k.Name == head || k.Name == EnvoyFilters && strings.HasPrefix(key, EnvoyFilters)
	})
	if i < 0 {
		return Key{}, "", false
	}
	k = rows[i]
	if !k.named() {
		return k, "", true
	}
	inner, closed := strings.CutSuffix(rest, "]")
	if !bracket || !closed || inner == "" {
		return k, "", false
	}
	if filter, ok := strings.CutPrefix(head, EnvoyFilters); ok {
		inner = filter + "[" + inner
	}
	return k, inner, true
}
