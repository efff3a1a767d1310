package security

import (
	"fmt"
	"strings"

	"github.com/writ-mesh/writ/internal/regoform"
	"github.com/writ-mesh/writ/pilot/model"
)

// Where a RegoPolicy is decided.
const (
	regoInEnvoy = "envoy"
	regoInBoth  = "envoy and authz"
	regoInAuthz = "authz"
)

// RegoPlacement says where one RegoPolicy of a proxy is decided.
type RegoPlacement struct {
	Policy model.Ref
	// Runs is "envoy", "envoy and authz" or "authz".
	Runs string
	// Remote says why what is decided by authz is; empty for "envoy".
	Remote []RegoReason
}

// RegoReason is an expression that only authz can evaluate.
type RegoReason struct {
	// Expression is empty if the reason is about the whole policy.
	Expression string
	// File and Line tell where it stands; Line is 0 if that is not known.
	File string
	Line int
	Why  string
}

// RegoPlacements says where each RegoPolicy of a proxy's port is decided, in the
// order in which they are asked. The zero port stands for all that speak HTTP.
func (c *Compiler) RegoPlacements(p *model.Proxy, port model.WorkloadPort) []RegoPlacement {
	var out []RegoPlacement
	s := c.selectFor(p)
	all := c.placeRego(p, s)
	if port != (model.WorkloadPort{}) && !port.Protocol.IsHTTP() {
		all = c.placeRegoTCP(p, port, s)
	}
	for _, placed := range all {
		out = append(out, RegoPlacement{Policy: placed.policy.Ref, Runs: placed.runs(), Remote: placed.remote})
	}
	return out
}

// placedRego is a RegoPolicy and what of it an Envoy decides.
type placedRego struct {
	policy *model.RegoPolicy
	// form is nil if all of it is authz's.
	form   *regoform.Policy
	remote []RegoReason
}

func (r *placedRego) runs() string {
	switch {
	case r.form == nil:
		return regoInAuthz
	case r.form.Whole():
		return regoInEnvoy
	}
	return regoInBoth
}

// whole says that authz has not to be asked about the policy.
func (r *placedRego) whole() bool { return r.form != nil && r.form.Whole() }

// placeRego decides for each policy what the proxy can decide itself. In doubt it
// is nothing.
func (c *Compiler) placeRego(p *model.Proxy, s selection) []*placedRego {
	var out []*placedRego
	// before is a policy that goes first and whose refusal says more than no.
	before := ""
	for _, pol := range s.rego {
		placed := &placedRego{policy: pol}
		out = append(out, placed)
		form, why := c.formFor(p, s, pol)
		if why == "" && before != "" {
			why = fmt.Sprintf("RegoPolicy %s, which goes first, may answer with more than yes or no", before)
		}
		if why == "" && form.Surely.Atoms()+form.Perhaps.Atoms() > maxRegoAtoms {
			why = fmt.Sprintf("it comes to more than %d conditions", maxRegoAtoms)
		}
		switch {
		case why != "":
			placed.remote = append(reasonsOf(pol, form), RegoReason{File: pol.File, Line: pol.Line, Why: why})
		case form.Nothing():
			placed.remote = reasonsOf(pol, form)
		default:
			placed.form = form
			if !form.Whole() {
				placed.remote = reasonsOf(pol, form)
			}
		}
		if !placed.whole() && !pol.Observe && (pol.Form == nil || !pol.Form.Plain) {
			before = pol.Namespace + "/" + pol.Name
		}
	}
	return out
}

// formFor is what is known of a policy at a proxy, or why it may not be used.
func (c *Compiler) formFor(p *model.Proxy, s selection, pol *model.RegoPolicy) (form *regoform.Policy, why string) {
	form = pol.Form
	certificates := []regoform.Kind{regoform.Principal, regoform.DestinationPrincipal}
	switch {
	case pol.Observe:
		return form, "mode observe is counted by authz"
	case pol.BundleURL != "":
		return nil, "authz has the bundle"
	case form == nil:
		return nil, "nobody has looked at its text"
	case p.Type == model.GatewayProxy && form.Reads(append(certificates, regoform.SourceIP)...):
		return form, "who calls a gateway may have any certificate"
	case len(c.mesh.FederatedDomains) > 0 && form.Reads(certificates...):
		return form, "certificates of other trust domains may have several names"
	}
	noToken := c.noToken(p, s)
	own := fmt.Sprintf("%s%s/ns/%s/sa/%s", spiffeScheme, c.mesh.TrustDomain, p.Namespace, p.ServiceAccount)
	return form.Map(func(a regoform.Atom) *regoform.Formula {
		switch a.Kind {
		case regoform.NoToken:
			return noToken
		case regoform.DestinationPrincipal:
			// A sidecar shows one identity, to who shows one.
			if !a.Holds(own) {
				return regoform.False()
			}
			return regoform.Of(regoform.Atom{Kind: regoform.Principal, Test: regoform.Prefix, Value: spiffeScheme})
		}
		return regoform.Of(a)
	}), ""
}

// noToken are the requests of which it is certain that authz would find no token
// in them either when jwt_authn has left none.
func (c *Compiler) noToken(p *model.Proxy, s selection) *regoform.Formula {
	issuers := 0
	for _, ra := range c.mesh.RequestAuthentications {
		if ra.Namespace != c.mesh.RootNamespace && ra.Namespace != p.Namespace {
			continue
		}
		for _, rule := range ra.Spec.GetJwtRules() {
			issuers++
			if len(rule.GetFromHeaders())+len(rule.GetFromParams())+len(rule.GetFromCookies()) > 0 {
				return regoform.False()
			}
		}
	}
	if issuers == 0 && len(s.jwt) == 0 {
		return regoform.Always()
	}
	header := func(name string, t regoform.Test, value string) *regoform.Formula {
		return regoform.Of(regoform.Atom{Kind: regoform.Header, Name: name, Test: t, Value: value})
	}
	return regoform.Not(regoform.Or(header("authorization", regoform.Present, ""), header(":path", regoform.Contains, "access_token"), header(":path", regoform.Contains, "%")))
}

// reasonsOf gives the reasons with the places of their lines.
func reasonsOf(pol *model.RegoPolicy, form *regoform.Policy) []RegoReason {
	if form == nil {
		return nil
	}
	var out []RegoReason
	for _, r := range form.Remote {
		reason := RegoReason{Expression: strings.TrimSpace(r.Expression), File: pol.ModuleFile, Why: r.Why}
		if r.Line > 0 && pol.ModuleLine >= 0 {
			reason.Line = pol.ModuleLine + r.Line
		} else {
			reason.File, reason.Line = pol.File, pol.Line
		}
		out = append(out, reason)
	}
	if len(out) == 0 && !form.Whole() {
		out = append(out, RegoReason{File: pol.File, Line: pol.Line, Why: "requests with characters beyond ASCII in what it compares, with a token that this proxy has not verified, or with a claim of an unusual form"})
	}
	return out
}
