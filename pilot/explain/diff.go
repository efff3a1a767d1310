package explain

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
	"github.com/writ-mesh/writ/pilot/security/region"
)

// Differences is where two meshes decide differently.
type Differences struct {
	Flips []Flip `json:"flips"`
	// Notes say where the answer is not exact, and what was not compared.
	Notes []string `json:"notes,omitempty"`
}

// Flip is a set of requests that one mesh treats one way and the other another:
// those of which all conditions hold. No two flips of a workload have a request in
// common.
type Flip struct {
	// Workloads are those at which it is so, with their ports.
	Workloads  []string    `json:"workloads"`
	Before     string      `json:"before"`
	After      string      `json:"after"`
	Conditions []Condition `json:"conditions"`
	// Callers are the identities of the mesh among those whom it concerns.
	Callers []string `json:"callers,omitempty"`
	Example string   `json:"example"`
	// ByBefore and ByAfter are the rules that decide the example.
	ByBefore string `json:"byBefore,omitempty"`
	ByAfter  string `json:"byAfter,omitempty"`
}

// Diff compares two meshes, workload by workload and port by port.
func Diff(before, after *model.Mesh) (*Differences, error) {
	out := &Differences{Flips: []Flip{}}
	old := byWorkload(before)
	for _, p := range onePerWorkload(after.Proxies) {
		key := workloadKey(p)
		was := old[key]
		delete(old, key)
		if was == nil {
			out.note(key + " is only in the second: nobody to compare it with")
			continue
		}
		for _, port := range portsOf(after, p) {
			if err := out.compare(before, after, was, p, port); err != nil {
				return nil, fmt.Errorf("%s port %d: %w", key, port.Port, err)
			}
		}
	}
	for key := range old {
		out.note(key + " is only in the first: nobody to compare it with")
	}
	slices.Sort(out.Notes)
	return out, nil
}

func (d *Differences) note(text string) {
	if !slices.Contains(d.Notes, text) {
		d.Notes = append(d.Notes, text)
	}
}

func workloadKey(p *model.Proxy) string {
	if p.Type == model.GatewayProxy {
		return "gateway " + p.Namespace + "/" + p.Name
	}
	return p.Namespace + "/" + workloadOf(p)
}

func byWorkload(m *model.Mesh) map[string]*model.Proxy {
	out := map[string]*model.Proxy{}
	for _, p := range onePerWorkload(m.Proxies) {
		out[workloadKey(p)] = p
	}
	return out
}

// portsOf are the ports of a workload, or those that a gateway opens.
func portsOf(m *model.Mesh, p *model.Proxy) []model.WorkloadPort {
	if p.Type != model.GatewayProxy {
		return p.Ports
	}
	var out []model.WorkloadPort
	for _, g := range p.Serves(m.Gateways, m.RootNamespace) {
		for _, s := range g.Spec.GetServers() {
			number := openedAt(p, s)
			if !slices.ContainsFunc(out, func(w model.WorkloadPort) bool { return w.Port == number }) {
				out = append(out, model.WorkloadPort{Port: number, Protocol: gatewayProtocol(s.GetPort().GetProtocol())})
			}
		}
	}
	return out
}

// gatewayProtocol is TCP for the protocols of which no requests are seen. A gateway
// that ends TLS for HTTPS sees them.
func gatewayProtocol(name string) model.Protocol {
	switch strings.ToUpper(name) {
	case "TCP", "TLS", "MONGO", "MYSQL", "REDIS":
		return model.TCP
	}
	return model.HTTP
}

func (d *Differences) compare(before, after *model.Mesh, was, is *model.Proxy, port model.WorkloadPort) error {
	oldPort := port
	if was.Type == model.SidecarProxy {
		i := slices.IndexFunc(was.Ports, func(w model.WorkloadPort) bool { return w.Port == port.Port })
		if i < 0 {
			d.note(fmt.Sprintf("port %d of %s is only in the second", port.Port, workloadKey(is)))
			return nil
		}
		oldPort = was.Ports[i]
	}
	a, err := newSide(before, was, oldPort, nil, "")
	if err != nil {
		return err
	}
	b, err := newSide(after, is, port, nil, "")
	if err != nil {
		return err
	}
	if a.tcp() != b.tcp() {
		d.note(fmt.Sprintf("port %d of %s speaks another protocol in the second: it was not compared", port.Port, workloadKey(is)))
		return nil
	}
	if a.same(b) {
		return nil
	}
	for _, text := range a.apart(b) {
		d.note(workloadKey(is) + ": " + text)
	}
	return d.flips(a, b)
}

// same says that both sides have the same policies, so that nothing can differ.
func (s *side) same(o *side) bool {
	sameSpecs := func(a, b []*model.AuthorizationPolicy) bool {
		return slices.EqualFunc(enforced(a), enforced(b), func(x, y *model.AuthorizationPolicy) bool {
			return x.ID() == y.ID() && proto.Equal(x.Spec, y.Spec)
		})
	}
	return s.sameBut(o) &&
		sameSpecs(s.policies.Custom, o.policies.Custom) && sameSpecs(s.policies.Deny, o.policies.Deny) && sameSpecs(s.policies.Allow, o.policies.Allow)
}

// sameBut says that nothing differs besides rules of AuthorizationPolicies.
func (s *side) sameBut(o *side) bool {
	sameIssuers := slices.EqualFunc(s.issuers, o.issuers, func(a, b issuer) bool {
		return a.name == b.name && a.keys == b.keys && a.require == b.require && slices.Equal(a.audiences, b.audiences)
	})
	sameLists := slices.EqualFunc(s.policies.Lists, o.policies.Lists, func(a, b *model.AccessList) bool {
		x, y := *a, *b
		x.Meta, y.Meta = model.Meta{}, model.Meta{}
		return a.ID() == b.ID() && reflect.DeepEqual(x, y) && reflect.DeepEqual(eval.Tests(s.m, a), eval.Tests(o.m, b))
	})
	x, y := domainsOf(s.m), domainsOf(o.m)
	return sameLists && s.mode == o.mode && s.provider == o.provider && s.closed == o.closed && sameIssuers && slices.Equal(s.after, o.after) && slices.EqualFunc(s.policies.Rego, o.policies.Rego, sameRego) &&
		slices.Equal(x.Own, y.Own) && slices.Equal(x.Federated, y.Federated)
}

// apart says where what the sets of requests tell is not all.
func (s *side) apart(o *side) []string {
	out := slices.Concat(s.contents(o), s.severalTokens(), o.severalTokens(), patchedBy(s.m, s.proxy), patchedBy(o.m, o.proxy))
	for _, a := range s.issuers {
		for _, b := range o.issuers {
			if a.name == b.name && a.keys != b.keys {
				out = append(out, "the keys of the issuer "+a.name+" differ: tokens are taken for valid in both")
			}
		}
	}
	if s.provider != o.provider && s.provider != "" && o.provider != "" {
		out = append(out, "the providers "+s.provider+" and "+o.provider+" may answer differently")
	}
	x, y := domainsOf(s.m), domainsOf(o.m)
	if !slices.Equal(x.Own, y.Own) || !slices.Equal(x.Federated, y.Federated) {
		out = append(out, "the trust domains differ: callers of those that only one of them accepts were not compared")
	}
	return out
}

// contents names the RegoPolicies of one name whose content differs, of which sets of
// requests do not say all, and lists of which not all is known.
func (s *side) contents(o *side) []string {
	var out []string
	for _, a := range s.policies.Rego {
		for _, b := range o.policies.Rego {
			_, known := s.regoRefusals(a)
			_, knownToo := o.regoRefusals(b)
			if a.ID() == b.ID() && !sameRego(a, b) && !(known && knownToo) {
				out = append(out, a.ID()+" differs, and not all that it decides is known without a request: see writ explain and writ replay")
			}
		}
	}
	for _, x := range []*side{s, o} {
		for _, l := range x.policies.Lists {
			if missing(x.m, l) {
				out = append(out, "the entries that "+l.ID()+" gets from elsewhere are not known here")
			}
		}
	}
	return out
}

func sameRego(a, b *model.RegoPolicy) bool {
	return a.ID() == b.ID() && a.Module == b.Module && a.Query == b.Query && a.BundleURL == b.BundleURL && a.Observe == b.Observe
}

// flips finds the sets of requests of which the sides make something else.
func (d *Differences) flips(a, b *side) error {
	space, regions, err := regionsOf(onlyRulesDiffer(a, b))
	if err != nil {
		return err
	}
	where := fmt.Sprintf("%s port %d", workloadKey(b.proxy), b.port.Port)
	for _, r := range regions {
		d.add(space.flip(a, b, r), where)
	}
	for n := range space.notes {
		d.note(n)
	}
	return nil
}

func regionsOf(a, b *side) (*requestSpace, []region.Region, error) {
	space := newSpace(b.m, b.tcp(), issuerNames(a, b), a, b)
	x, y := a.in(space), b.in(space)
	space.name(identities(b.m))
	if err := space.Split(); err != nil {
		return nil, nil, err
	}
	regions, err := space.Partition([][]region.Term{
		space.impossible(),
		terms(x.custom), terms(x.deny), terms(x.allow), terms(y.custom), terms(y.deny), terms(y.allow),
	}, func(g []region.Group) (string, bool) { return decideDifference(a, b, g) })
	return space, regions, err
}

// arrow stands between the outcomes of the sides.
const arrow = " → "

// decideDifference is nothing where both do the same.
func decideDifference(a, b *side, g []region.Group) (string, bool) {
	if g[0].State == region.True {
		return "", true
	}
	equal := g[1] == g[4] && g[2] == g[5] && g[3] == g[6] && a.hasAllow == b.hasAllow && a.provider == b.provider && slices.Equal(a.after, b.after)
	if equal {
		return "", true
	}
	was, ok1 := a.outcome(g[1].State, g[2].State, g[3].State)
	is, ok2 := b.outcome(g[4].State, g[5].State, g[6].State)
	switch {
	case !ok1 || !ok2:
		return "", false
	case was == is:
		return "", true
	case g[0].State == region.Open:
		return "", false
	}
	return was + arrow + is, true
}

// add puts flips that differ only in the workload together.
func (d *Differences) add(f Flip, workload string) {
	for i := range d.Flips {
		have := &d.Flips[i]
		if have.Before == f.Before && have.After == f.After && slices.Equal(have.Conditions, f.Conditions) && slices.Equal(have.Callers, f.Callers) {
			have.Workloads = append(have.Workloads, workload)
			return
		}
	}
	f.Workloads = []string{workload}
	d.Flips = append(d.Flips, f)
}

// flip tells a region.
func (s *requestSpace) flip(a, b *side, r region.Region) Flip {
	was, is, _ := strings.Cut(r.Outcome, arrow)
	conditions, who := s.describe(r)
	f := Flip{Before: was, After: is, Conditions: slices.DeleteFunc(conditions, func(c Condition) bool { return c.Is == "" })}
	for _, id := range identities(b.m) {
		if cell, err := s.vars[principalVar].Locate(spiffeScheme + id); err == nil && (who == nil || !who.And(cell).Empty()) {
			f.Callers = append(f.Callers, id)
		}
	}
	req, path, text := s.example(r, f.Callers)
	f.Example = text
	f.ByBefore, f.ByAfter = a.by(req, path), b.by(req, path)
	return f
}

// example gives one request of a region, from a caller of the mesh if there is one.
func (s *requestSpace) example(r region.Region, callers []string) (req *eval.Request, path, told string) {
	value := func(name, otherwise string) string {
		for _, c := range r.Constraints {
			if c.Var.Name() == name {
				if text, ok := c.Var.Example(c.Set); ok {
					return text
				}
				return ""
			}
		}
		return otherwise
	}
	path = value(pathVar, "/")
	req = &eval.Request{Method: value(methodVar, "GET"), Host: value(hostVar, ""), SNI: value(sniVar, ""), Headers: map[string]string{}}
	otherwise := ""
	if len(callers) > 0 {
		otherwise = callers[0]
	}
	req.Path, _, _ = strings.Cut(path, "?")
	req.Principal = strings.TrimPrefix(value(principalVar, otherwise), spiffeScheme)
	if len(callers) > 0 {
		req.Principal = callers[0]
	}
	req.Source, _ = netip.ParseAddr(value(sourceVar, "192.0.2.1"))
	req.Remote, _ = netip.ParseAddr(value(remoteVar, req.Source.String()))
	var with []string
	if iss, sub, ok := strings.Cut(value(tokenVar, ""), tokenJoint); ok {
		req.Claims = map[string]any{"iss": iss, "sub": sub}
		with = append(with, fmt.Sprintf("a token of %s for %q", iss, sub))
	} else if iss == badToken {
		with = append(with, "an invalid token")
	}
	for _, c := range r.Constraints {
		kind, name, _ := strings.Cut(c.Var.Name(), " ")
		text, there := c.Var.Example(c.Set)
		switch {
		case !there:
		case kind == "header":
			req.Headers[name] = text
			with = append(with, fmt.Sprintf("%s: %q", name, text))
		case kind == "claim" && req.Claims != nil:
			setClaim(req.Claims, name, text)
			with = append(with, fmt.Sprintf("claim %s %q", name, text))
		}
	}
	return req, path, s.tell(req, path, with)
}

// setClaim puts a list of texts where the names "a][b" say.
func setClaim(claims map[string]any, name, text string) {
	names := strings.Split(name, "][")
	at := claims
	for _, n := range names[:len(names)-1] {
		inner, ok := at[n].(map[string]any)
		if !ok {
			inner = map[string]any{}
			at[n] = inner
		}
		at = inner
	}
	var list []any
	for part := range strings.SplitSeq(text, ",") {
		list = append(list, part)
	}
	at[names[len(names)-1]] = list
}

func (s *requestSpace) tell(req *eval.Request, path string, with []string) string {
	who := req.Principal
	if who == "" {
		who = "nobody of the mesh"
	}
	text := "a connection"
	if s.vars[methodVar] != nil {
		text = req.Method + " " + path
		if req.Host != "" {
			text += " at host " + req.Host
		}
	}
	text += " from " + who
	if s.vars[sourceVar] != nil {
		text += " at " + req.Source.String()
	}
	if len(with) > 0 {
		text += " with " + strings.Join(with, ", ")
	}
	return text
}

// by names the rule that decides a request at a side.
func (s *side) by(req *eval.Request, path string) string {
	r := *req
	r.TCP, r.Destination, r.DestinationPort = s.tcp(), s.proxy.Address, s.port.Port
	if s.mode == model.Disable {
		r.Principal, r.SNI = "", ""
	}
	if len(s.issuers) == 0 {
		r.Claims = nil
	}
	if s.mode == model.Strict && r.Principal == "" {
		return "PeerAuthentication STRICT"
	}
	for _, l := range s.lists() {
		if rule, refused := eval.Refuses(s.m, domainsOf(s.m), l, &r); refused {
			return ruleName(&l.Meta, rule) + at(place(l.Ref))
		}
	}
	for _, i := range s.issuers {
		if r.Claims == nil && (i.require == model.RequireAny || i.require == model.RequireAll) {
			return i.policy + " requires a token"
		}
	}
	if rule := matching(s.deny, &r); rule != nil {
		return ruleName(&rule.Policy.Meta, rule.Index) + at(rulePlace(&rule.Policy.Meta, rule.Index))
	}
	passes := "no ALLOW policy applies"
	if s.hasAllow {
		rule := matching(s.allow, &r)
		if rule == nil {
			return nobodyAllows(enforced(s.policies.Allow))
		}
		passes = ruleName(&rule.Policy.Meta, rule.Index) + at(rulePlace(&rule.Policy.Meta, rule.Index))
	}
	if ref, refused := s.refusesByRego(&r, path); refused {
		return ref.ID() + at(place(ref))
	}
	return passes
}

func matching(rules []*eval.Rule, r *eval.Request) *eval.Rule {
	i := slices.IndexFunc(rules, func(rule *eval.Rule) bool { return rule.Match(r) })
	if i < 0 {
		return nil
	}
	return rules[i]
}

func at(place string) string {
	if place == "" {
		return ""
	}
	return " (" + place + ")"
}
