package explain

import (
	"errors"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
)

// Deciders answer what other services of the mesh decide.
type Deciders struct {
	// Find gives the tokens of a request at the places where a rule looks, given its
	// headers (names in lower case) and its path with the query.
	Find func(rule *security.JWTRule, headers map[string]string, path string) []string
	// Verify verifies a token by a rule's inline keys at a time.
	Verify func(raw string, rule *security.JWTRule, now time.Time) Verified
	// Rego decides a check by one policy.
	Rego func(policy *model.RegoPolicy, check *authv3.CheckRequest, issuer string, claims map[string]any) (allowed bool, reason string, err error)
	// Where says where a RegoPolicy of a proxy's port is decided, and why there; nil: in
	// authz.
	Where func(proxy *model.Proxy, port model.WorkloadPort, policy *model.RegoPolicy) (runs, why string)
	// Sends says how the Envoy of a workload speaks to that of another behind a port of a
	// service: DISABLE is plain text, ISTIO_MUTUAL the mesh's mutual TLS. by is the
	// DestinationRule that says so, if one does. nil: by mutual TLS wherever it is taken.
	Sends func(from *model.Proxy, service *model.Service, to *model.Proxy, port uint32) (mode networking.ClientTLSSettings_TLSmode, by model.Ref)
	// Revoked says under what a verified token is revoked, empty if it is not; nil if
	// nobody knows.
	Revoked func(claims map[string]any) (reason string, err error)
	// Now is the time of the request.
	Now time.Time
	// Compiled keeps what is made of the mesh from one request to the next; nil for
	// somebody who asks once.
	Compiled *eval.Compiled
}

// ErrMalformed is of a request whose path or query a RegoPolicy's decider cannot take
// apart.
var ErrMalformed = errors.New("refused whatever the policy says")

// Verified is what a rule makes of a token.
type Verified struct {
	// Claims are the payload, nil if the token is refused.
	Claims map[string]any
	// Reason is why it is refused, or why that cannot be told.
	Reason string
	// Unknown says that only who has the keys can tell; Claims are then what the token
	// says about itself.
	Unknown bool
	// WrongAudience is the one reason that is answered with 403, not 401.
	WrongAudience bool
}
