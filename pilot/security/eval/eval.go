// Package eval decides AuthorizationPolicies in Go, straight from Istio's
// documentation and without Envoy. It is pure.
//
// It is the one evaluator on the model: the answers of `writ explain`, `writ
// whocan` and `writ diff` begin here (package explain), and the differential test
// of package security compares Envoy's decisions with its own. [Select] finds the
// policies of a proxy, [Rules] takes a policy apart into rules and clauses, each of
// which can be asked about a request, and [Authorize] decides.
//
// What a CUSTOM provider says it cannot know. Of QuotaPolicies it says which limits count
// a request ([Layers], [Speaks]).
package eval

import (
	"net/netip"
	"slices"

	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/pilot/model"
)

// Request is what a sidecar knows of a request or connection.
type Request struct {
	// TCP means that no request is seen: only Principal, the addresses, the port
	// and SNI count.
	TCP          bool
	Method, Host string
	// Path is without its query, Query with its question mark; empty without one.
	Path, Query string
	// Headers have names in lower case, and values joined by commas where several lines
	// have one name. Lines are these lines, nil if there are none.
	Headers map[string]string
	Lines   map[string][]string
	// Principal is the caller's SPIFFE ID without scheme, "" for plain text.
	Principal string
	// Source is the peer of the connection, Remote the client as
	// X-Forwarded-For or the PROXY protocol tell it.
	Source, Remote, Destination netip.Addr
	DestinationPort             uint32
	SNI                         string
	// Claims is the payload of the verified token, nil without one.
	Claims map[string]any
	// Metadata is what Envoy's filters left, by filter and key.
	Metadata map[string]map[string]any
}

// Decision is the outcome.
type Decision struct {
	Allowed bool
	// Policy and Rule are the rule that decided; Policy is nil if there was no
	// ALLOW policy to satisfy, or if no rule of those allows.
	Policy *model.AuthorizationPolicy
	Rule   int
	// Audited says whether an AUDIT policy matches.
	Audited bool
}

// Domains are the trust domains of a mesh.
type Domains struct {
	// Own is the mesh's and its aliases.
	Own []string
	// Federated are others whose identities are accepted.
	Federated []string
}

// Authorize decides by the policies that apply to a workload. There is no decision,
// and an error, if one of them has a condition whose key is not known.
func Authorize(d Domains, policies []*model.AuthorizationPolicy, r Request) (Decision, error) {
	audit, err := first(d, policies, security.AuthorizationPolicy_AUDIT, &r)
	if err != nil {
		return Decision{}, err
	}
	deny, err := first(d, policies, security.AuthorizationPolicy_DENY, &r)
	if err != nil {
		return Decision{}, err
	}
	allow, err := first(d, policies, security.AuthorizationPolicy_ALLOW, &r)
	if err != nil {
		return Decision{}, err
	}
	out := Decision{Audited: audit != nil, Allowed: true}
	decides := func(rule *Rule) {
		if rule != nil {
			out.Policy, out.Rule = rule.Policy, rule.Index
		}
	}
	if deny != nil {
		decides(deny)
		out.Allowed = false
	} else if slices.ContainsFunc(policies, func(p *model.AuthorizationPolicy) bool {
		return p.Spec.GetAction() == security.AuthorizationPolicy_ALLOW && !model.DryRun(p)
	}) {
		decides(allow)
		out.Allowed = allow != nil
	}
	return out, nil
}

// first finds an enforced rule of an action that matches.
func first(d Domains, policies []*model.AuthorizationPolicy, action security.AuthorizationPolicy_Action, r *Request) (*Rule, error) {
	for _, pol := range policies {
		if pol.Spec.GetAction() != action || model.DryRun(pol) {
			continue
		}
		rules, err := Rules(d, pol, r.TCP)
		if err != nil {
			return nil, err
		}
		for _, rule := range rules {
			if rule.Match(r) {
				return rule, nil
			}
		}
	}
	return nil, nil
}
