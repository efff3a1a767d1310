package explain

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
)

// The results of steps that decide nothing.
const (
	noPolicy   = "no policy"
	recorded   = "recorded"
	notDecided = "not decided"
)

// Where things run.
const (
	inAuthz     = "authz"
	inRateLimit = "ratelimit"
)

// Request tells what becomes of one request. The error says what in the question is
// not of this mesh.
func Request(m *model.Mesh, q Question, d Deciders) (*Answer, error) {
	lives, from, err := lives(m, &q, d)
	if err != nil {
		return nil, err
	}
	out := &Answer{Question: q, From: from}
	for _, l := range lives {
		out.Targets = append(out.Targets, l.target())
	}
	return out, nil
}

// lives follows a request through the Envoy of each workload that it may go to, and
// gives the caller's principal too. What q leaves open is filled in.
func lives(m *model.Mesh, q *Question, d Deciders) (out []*life, principal string, err error) {
	from, err := findCaller(m, q.From)
	if err != nil {
		return nil, "", err
	}
	targets, err := findTargets(m, q, from.namespace)
	if err != nil {
		return nil, "", err
	}
	for _, t := range targets {
		l := &life{m: m, d: d, q: *q, from: from, to: t, policies: d.Compiled.Select(m, t.proxy)}
		if err := l.run(); err != nil {
			return nil, "", err
		}
		out = append(out, l)
	}
	return out, from.principal, nil
}

// life is a request on its way through the Envoy of one workload.
type life struct {
	m        *model.Mesh
	d        Deciders
	q        Question
	from     caller
	to       target
	policies eval.Policies

	// r is the request as the filters see it at this point, path with the query.
	r    eval.Request
	path string
	// issuer is that of the accepted token, accepted the claims of all of them.
	issuer   string
	accepted []map[string]any

	steps []Step
	near  []Near
	// unknown is what only a mesh that runs knows; revocations, where that matters to a
	// request that passes.
	unknown, revocations []string
	// decided is the step that refused, nil as long as none did.
	decided *Step
	status  int
	// depends says that somebody else has a say in what was not refused.
	depends bool
	// by is the rule that let the request pass.
	by, at string
}

func (l *life) envoy() string {
	return "Envoy of " + l.to.proxy.Namespace + "/" + workloadOf(l.to.proxy)
}

func (l *life) target() Target {
	t := Target{
		Workload: l.to.proxy.Namespace + "/" + workloadOf(l.to.proxy), Port: l.to.port.Port,
		Decision: Allowed, By: l.by, At: l.at, Steps: l.steps, Near: l.near, Unknown: l.unknown,
	}
	if l.decided == nil {
		t.Unknown = slices.Concat(l.unknown, l.revocations)
	}
	switch {
	case l.decided != nil:
		t.Decision, t.Status, t.By, t.At = Refused, l.status, l.decided.By, l.decided.At
	case l.depends:
		t.Decision = Depends
	}
	return t
}

// refuse ends the life. A connection is closed without a status.
func (l *life) refuse(s Step, status int) {
	s.Result = Refused
	l.steps = append(l.steps, s)
	if l.decided != nil {
		return
	}
	l.decided = &l.steps[len(l.steps)-1]
	if !l.r.TCP {
		l.status = status
	}
}

func (l *life) pass(s Step) { l.steps = append(l.steps, s) }

func (l *life) run() error {
	l.arrive()
	l.unknown = append(l.unknown, patchedBy(l.m, l.to.proxy)...)
	for _, step := range []func() error{l.peer, l.revoked, l.custom, l.token, l.revokedTokens, l.audit, l.lists, l.deny, l.allow, l.rego, l.quota} {
		if l.decided != nil {
			return nil
		}
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// arrive makes the request that the Envoy receives.
func (l *life) arrive() {
	q := l.q
	l.r = eval.Request{
		TCP: !l.to.port.Protocol.IsHTTP(), Principal: l.from.principal, Source: q.SourceIP, SNI: q.SNI,
		Destination: l.to.proxy.Address, DestinationPort: l.to.port.Port, Headers: map[string]string{},
	}
	if !l.r.Source.IsValid() {
		l.r.Source = l.from.address
	}
	l.r.Remote = l.r.Source
	if l.r.SNI == "" && l.r.Principal != "" {
		l.r.SNI = l.to.sni
	}
	if l.r.TCP {
		return
	}
	l.r.Method, l.path, l.r.Host = q.Method, q.Path, q.Host
	if l.r.Method == "" {
		l.r.Method = "GET"
	}
	if l.path == "" {
		l.path = "/"
	}
	if l.r.Host == "" {
		l.r.Host = l.to.host
	}
	maps.Copy(l.r.Headers, q.Headers)
	l.r.Lines = maps.Clone(q.Lines)
	l.remote()
	l.place()
}

// remote is the client as X-Forwarded-For tells it: to a sidecar the last address in it,
// to a gateway the one before those of the trusted proxies that are in front of it.
func (l *life) remote() {
	from := 1
	if l.to.proxy.Type == model.GatewayProxy {
		from = int(l.m.Config.GetDefaultConfig().GetGatewayTopology().GetNumTrustedProxies())
	}
	all := strings.Split(l.r.Headers["x-forwarded-for"], ",")
	if from == 0 || from > len(all) {
		return
	}
	if a, err := netip.ParseAddr(strings.TrimSpace(all[len(all)-from])); err == nil {
		l.r.Remote = a
	}
}

// place puts the token where the workload looks for one of its kind.
func (l *life) place() {
	if l.q.Token == "" {
		return
	}
	rules := l.jwtRules()
	if len(rules) > 0 {
		its := max(0, slices.IndexFunc(rules, func(r jwtRule) bool { return l.d.Verify(l.q.Token, r.rule, l.d.Now).Claims != nil }))
		switch r := rules[its].rule; {
		case len(r.GetFromHeaders()) > 0:
			h := r.GetFromHeaders()[0]
			l.setHeader(h.GetName(), h.GetPrefix()+l.q.Token)
			return
		case len(r.GetFromParams()) > 0:
			mark := "?"
			if strings.Contains(l.path, "?") {
				mark = "&"
			}
			l.path += mark + r.GetFromParams()[0] + "=" + l.q.Token
			return
		case len(r.GetFromCookies()) > 0:
			l.setHeader("cookie", r.GetFromCookies()[0]+"="+l.q.Token)
			return
		}
	}
	l.setHeader("authorization", "Bearer "+l.q.Token)
}

// setHeader puts one line in place of whatever the header had.
func (l *life) setHeader(name, value string) {
	name = strings.ToLower(name)
	delete(l.r.Lines, name)
	l.r.Headers[name] = value
}

func (l *life) removeHeader(name string) {
	name = strings.ToLower(name)
	delete(l.r.Lines, name)
	delete(l.r.Headers, name)
}

// peer is mutual TLS and, with it, who the caller is; then the path as all filters see it.
func (l *life) peer() error {
	s := Step{Name: "PeerAuthentication", Runs: l.envoy(), Result: Allowed}
	if l.to.proxy.Type == model.GatewayProxy {
		return l.door(s)
	}
	mode, ref := l.peerMode()
	s.By, s.At = ref.ID(), place(ref)
	if ref.Kind == "" {
		s.By = "no PeerAuthentication: PERMISSIVE"
	}
	td, _, _ := strings.Cut(l.r.Principal, "/")
	domains := l.domains()
	sends, why := l.sends()
	switch {
	case sends == networking.ClientTLSSettings_ISTIO_MUTUAL && why != "" && mode == model.Disable:
		s.Detail = "DISABLE: " + why + ", and the connection fails: the caller's Envoy answers 503"
		l.refuse(s, 0)
		l.status = 0
		return nil
	case sends == networking.ClientTLSSettings_DISABLE && mode == model.Strict:
		s.Detail = "STRICT: " + why + ", and the connection is closed: the caller's Envoy answers 503"
		l.refuse(s, 0)
		l.status = 0
		return nil
	case sends == networking.ClientTLSSettings_DISABLE && mode == model.Permissive:
		s.Detail = "PERMISSIVE: " + why + ", in which nobody has an identity"
		l.r.Principal, l.r.SNI = "", ""
	case mode == model.Disable:
		s.Detail = "DISABLE: plain text, in which nobody has an identity"
		l.r.Principal, l.r.SNI = "", ""
	case l.r.Principal == "" && mode == model.Strict:
		s.Detail = "STRICT: a connection without a certificate of the mesh is closed"
		if !l.r.TCP {
			s.Detail += "; on one that was open before, requests get 403 (x-writ-denied-by: PeerAuthentication STRICT)"
		}
		l.refuse(s, 0)
		l.status = 0
		return nil
	case l.r.Principal == "":
		s.Detail = "PERMISSIVE takes plain text; the caller has no identity"
	case !slices.Contains(domains.Own, td) && !slices.Contains(domains.Federated, td):
		s.By, s.At, s.Detail = "trust domain", "", "no root of this mesh vouches for "+td+": the connection is closed"
		l.refuse(s, 0)
		l.status = 0
		return nil
	default:
		s.Detail = mode.String() + ": the caller is " + l.r.Principal
	}
	l.pass(s)
	return l.normal()
}

// sends is how the caller's Envoy speaks, and why if it is not by itself the right way;
// ISTIO_MUTUAL without a why for a caller that has none, or is not asked about.
func (l *life) sends() (mode networking.ClientTLSSettings_TLSmode, why string) {
	if l.d.Sends == nil || l.from.proxy == nil || l.to.service == nil {
		return networking.ClientTLSSettings_ISTIO_MUTUAL, ""
	}
	mode, by := l.d.Sends(l.from.proxy, l.to.service, l.to.proxy, l.to.servicePort)
	switch {
	case by.Kind == "" && mode == networking.ClientTLSSettings_DISABLE:
		return mode, "without auto mTLS the caller's Envoy sends plain text"
	case by.Kind == "":
		return mode, ""
	case mode == networking.ClientTLSSettings_DISABLE:
		return mode, "the caller's Envoy sends plain text, as " + by.ID() + at(place(by)) + " says"
	}
	return mode, "the caller's Envoy speaks mutual TLS, as " + by.ID() + at(place(by)) + " says"
}

// door is what the tls of a Gateway does instead of a PeerAuthentication.
func (l *life) door(s Step) error {
	s.Result, s.Detail = noPolicy, "a gateway takes callers as the tls of its Gateway says; it calls on as "+principalOf(l.m, l.to.proxy)
	asked := l.r.SNI
	if asked == "" {
		asked = hostWithoutPort(l.q.Host)
	}
	switch doorOf(serversFor(l.m, l.to.proxy, l.to.port.Port, asked)) {
	case doorPlain:
		s.Detail += "; in plain text, in which nobody has an identity"
		l.r.Principal, l.r.SNI = "", ""
	case doorTLS:
		s.Detail += "; it asks for no certificate, so nobody has an identity"
		l.r.Principal, l.r.SNI = "", asked
	case doorMesh:
		if l.r.Principal == "" {
			s.Detail = "ISTIO_MUTUAL: a connection without a certificate of the mesh is closed"
			l.refuse(s, 0)
			l.status = 0
			return nil
		}
	case doorAny:
		if l.r.Principal == "" {
			l.r.SNI = asked
		}
	}
	l.pass(s)
	return l.normal()
}

func (l *life) normal() error {
	if l.r.TCP {
		return nil
	}
	path, ok := normalize(l.m, l.path)
	if ok && l.from.proxy != nil { // the caller's own Envoy did so before
		path, ok = normalize(l.m, path)
	}
	if !ok {
		l.refuse(Step{Name: "path", Runs: l.envoy(), By: "path normalization", Detail: "the path does not begin with /"}, 400)
		return nil
	}
	if rule := l.malformed(path); rule != "" {
		l.refuse(Step{Name: "malformed", Runs: l.envoy(), By: "MalformedRequest " + rule, Detail: "the " + rule + " is such that programs read it in different ways"}, 400)
		return nil
	}
	if path != l.path {
		l.pass(Step{Name: "path", Runs: l.envoy(), Result: Allowed, Detail: "every filter sees " + path})
	}
	l.path = path
	l.r.Path, _, _ = strings.Cut(path, "?")
	l.r.Query = strings.TrimPrefix(path, l.r.Path)
	return nil
}

// peerMode is the effective mode of the port, and the object that set it.
func (l *life) peerMode() (model.PeerMode, model.Ref) {
	p := l.to.proxy
	mode := model.NewPeerModes(l.m).Of(p.Namespace, p.Labels, l.to.port.Port)
	// Without which object would it be another, or unset? The nearest that says it.
	var ref model.Ref
	for _, pa := range l.m.PeerAuthentications {
		selector := pa.Spec.GetSelector().GetMatchLabels()
		own := pa.Namespace == p.Namespace && model.SelectorMatches(selector, p.Labels) && (len(selector) == 0 || pa.Namespace != l.m.RootNamespace)
		root := pa.Namespace == l.m.RootNamespace && len(selector) == 0
		if !own && !root {
			continue
		}
		alone := model.NewPeerModes(&model.Mesh{RootNamespace: l.m.RootNamespace, PeerAuthentications: []*model.PeerAuthentication{pa}})
		says := alone.Of(p.Namespace, p.Labels, l.to.port.Port)
		nearer := ref.Kind == "" || own && (len(selector) > 0 || ref.Namespace != p.Namespace)
		if says == mode && (nearer) && (mode != model.Permissive || pa.Spec.GetMtls().GetMode() != 0 || len(pa.Spec.GetPortLevelMtls()) > 0) {
			ref = pa.Ref
		}
	}
	return mode, ref
}

func (l *life) domains() eval.Domains { return domainsOf(l.m) }

func domainsOf(m *model.Mesh) eval.Domains {
	return eval.Domains{Own: append([]string{m.TrustDomain}, m.TrustDomainAliases...), Federated: m.FederatedDomains}
}
