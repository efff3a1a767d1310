package meshdir

import (
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	telemetry "istio.io/api/telemetry/v1alpha1"
	corev1 "k8s.io/api/core/v1"

	"github.com/writ-mesh/writ/pilot/model"
)

// crossCheck checks what objects say of each other.
func (a *assembler) crossCheck() {
	checks := map[string]func(*checker){
		"VirtualService":        a.checkRoutes,
		"DestinationRule":       a.checkRule,
		"Gateway":               a.checkGatewayFiles,
		"Service":               a.checkServiceSelector,
		"PeerAuthentication":    a.checkPolicySelector,
		"RequestAuthentication": a.checkPolicySelector,
		"RegoPolicy":            a.checkPolicySelector,
		"Sidecar":               a.checkPolicySelector,
		"QuotaPolicy":           a.checkQuotaReferences,
		"AccessList":            a.checkPolicySelector,
		"EnvoyFilter":           a.checkPolicySelector,
		"ServiceRole":           a.checkRole,
		"ServiceRoleBinding":    a.checkBinding,
		"ClusterRbacConfig":     a.checkRbacTargets,
		"RbacConfig":            a.checkRbacTargets,
		"Telemetry":             a.checkTelemetryReferences,
		instanceKind:            a.checkAddress,
	}
	for kind, check := range checks {
		for _, o := range a.objects[kind] {
			a.report(o, check)
		}
	}
	before := a.keepFindings()
	for _, o := range a.objects["AuthorizationPolicy"] {
		a.reportOnce(before.references, a.kept.references, o, func(c *checker) bool {
			a.checkAuthorizationReferences(c)
			return false
		})
	}
	if len(failing(a.findings)) == 0 {
		a.advise(before.advice) // of what has errors something is taken out first
	}
	slices.SortStableFunc(a.findings, func(x, y finding) int {
		return cmp.Or(strings.Compare(x.File, y.File), cmp.Compare(x.Line, y.Line))
	})
}

// hostNames lists the services that a namespace sees, for suggestions.
func (a *assembler) hostNames(namespace string) []string {
	var out []string
	for _, s := range a.mesh.Services {
		if model.ExportedTo(s.ExportTo, s.Namespace, namespace) {
			out = append(out, s.Hostname)
		}
	}
	return out
}

func (a *assembler) checkRoutes(c *checker) {
	vs := c.object.spec.(*networking.VirtualService)
	a.gatewaysExist(c, "spec.gateways", vs.Gateways)
	if len(vs.Hosts) == 0 && !a.delegatedTo(c.object) {
		c.warnf("spec.hosts", "without hosts this is a delegate, and no VirtualService delegates to it: it is not used")
	}
	for i, r := range vs.Http {
		at := index("spec.http", i)
		a.delegateExists(c, at+".delegate", r.Delegate)
		for j, m := range r.Match {
			a.gatewaysExist(c, index(at+".match", j)+".gateways", m.Gateways)
		}
	}
	for i, r := range vs.Tls {
		for j, m := range r.Match {
			a.gatewaysExist(c, index(index("spec.tls", i)+".match", j)+".gateways", m.Gateways)
		}
	}
	for i, r := range vs.Tcp {
		for j, m := range r.Match {
			a.gatewaysExist(c, index(index("spec.tcp", i)+".match", j)+".gateways", m.Gateways)
		}
	}
	eachDestination(vs, func(at string, d *networking.Destination) { a.destinationExists(c, at, d) })
}

// delegateID names the VirtualService that a route of o delegates to.
func delegateID(o *object, d *networking.Delegate) string {
	return "VirtualService " + cmp.Or(d.Namespace, o.meta.Namespace) + "/" + d.Name
}

// delegateExists: a delegate has no hosts of its own, and does not delegate
// further, so that there can be no cycle.
func (a *assembler) delegateExists(c *checker, at string, d *networking.Delegate) {
	if d == nil {
		return
	}
	id := delegateID(c.object, d)
	o := a.byID[id]
	if o == nil {
		var known []string
		for _, other := range a.objects["VirtualService"] {
			if len(other.spec.(*networking.VirtualService).Hosts) == 0 {
				known = append(known, other.meta.Name)
			}
		}
		c.errorf(at, "there is no %s%s", id, didYouMean(d.Name, known))
		return
	}
	target := o.spec.(*networking.VirtualService)
	switch {
	case len(target.Hosts) > 0:
		c.errorf(at, "%s (%s:%d) has hosts, so it is no delegate: remove its hosts", id, o.meta.File, o.meta.Line)
	case !model.ExportedTo(target.ExportTo, o.meta.Namespace, c.object.meta.Namespace):
		c.errorf(at, "%s is not exported to namespace %s: extend its exportTo", id, c.object.meta.Namespace)
	}
}

func (a *assembler) delegatedTo(target *object) bool {
	for _, o := range a.objects["VirtualService"] {
		for _, r := range o.spec.(*networking.VirtualService).Http {
			if r.Delegate != nil && delegateID(o, r.Delegate) == target.id() {
				return true
			}
		}
	}
	return false
}

func (a *assembler) gatewaysExist(c *checker, at string, names []string) {
	for i, name := range names {
		full := model.ResolveGateway(name, c.object.meta.Namespace)
		if full == model.MeshGateway || a.byID["Gateway "+full] != nil {
			continue
		}
		var known []string
		for _, o := range a.objects["Gateway"] {
			known = append(known, o.meta.Namespace+"/"+o.meta.Name)
		}
		c.errorf(index(at, i), "there is no Gateway %s%s", full, didYouMean(full, known))
	}
}

// destinationExists checks host, port and subset of a destination.
func (a *assembler) destinationExists(c *checker, at string, d *networking.Destination) {
	if d == nil {
		return
	}
	namespace := c.object.meta.Namespace
	host := model.ResolveHost(d.Host, namespace, a.mesh.DomainSuffix)
	service := a.mesh.ServiceByHost(host, namespace)
	if service == nil {
		c.errorf(at+".host", "there is no service %s%s", host, a.suggestHost(d.Host, host, namespace))
		return
	}
	if port := d.Port.GetNumber(); port != 0 && !slices.ContainsFunc(service.Ports, func(p model.ServicePort) bool { return p.Port == port }) {
		c.errorf(at+".port.number", "service %s has no port %d%s", host, port, portList(service))
	}
	if d.Subset == "" {
		return
	}
	known := a.subsetsOf(cmp.Or(a.mesh.Aliases[host], host))
	if !slices.Contains(known, d.Subset) {
		hint := ": write a DestinationRule that defines it"
		if len(known) > 0 {
			hint = didYouMean(d.Subset, known)
		}
		c.errorf(at+".subset", "no DestinationRule defines subset %q of %s%s", d.Subset, host, hint)
	}
}

// subsetsOf lists the subsets that DestinationRules define for a host.
func (a *assembler) subsetsOf(host string) []string {
	if a.subsets == nil {
		a.subsets = map[string][]string{}
		for _, rule := range a.mesh.DestinationRules {
			of := model.ResolveHost(rule.Spec.Host, rule.Namespace, a.mesh.DomainSuffix)
			for _, s := range rule.Spec.Subsets {
				a.subsets[of] = append(a.subsets[of], s.Name)
			}
			if strings.HasPrefix(of, "*") && !slices.Contains(a.wildcards, of) {
				a.wildcards = append(a.wildcards, of)
			}
		}
	}
	known := slices.Clone(a.subsets[host])
	for _, w := range a.wildcards {
		if w != host && model.HostMatches(w, host) {
			known = append(known, a.subsets[w]...)
		}
	}
	return known
}

func (a *assembler) suggestHost(written, host, namespace string) string {
	names := a.hostNames(namespace)
	// name.namespace is what a resolver completes, but configuration does not.
	if full := written + ".svc." + a.mesh.DomainSuffix; slices.Contains(names, full) {
		return ", did you mean \"" + full + "\"?"
	}
	// Of short names only the first part is compared: the rest is the same.
	candidates, suffix := names, ""
	if written != host {
		candidates, suffix = nil, strings.TrimPrefix(host, strings.ToLower(written))
		for _, name := range names {
			if short, ok := strings.CutSuffix(name, suffix); ok {
				candidates = append(candidates, short)
			}
		}
	}
	if near := nearest(written, candidates); near != "" {
		return ", did you mean \"" + near + suffix + "\"?"
	}
	return ": write a Service or ServiceEntry for it"
}

func portList(s *model.Service) string {
	var ports []string
	for _, p := range s.Ports {
		ports = append(ports, fmt.Sprint(p.Port))
	}
	if len(ports) == 0 {
		return ""
	}
	return ": it has " + strings.Join(ports, ", ")
}

func (a *assembler) checkRule(c *checker) {
	rule := c.object.spec.(*networking.DestinationRule)
	host := model.ResolveHost(rule.Host, c.object.meta.Namespace, a.mesh.DomainSuffix)
	if of := a.mesh.Aliases[host]; of != "" {
		c.warnf("spec.host", "is another name of %s: a DestinationRule for the alias is not used, write that name", of)
	}
	if a.mesh.ServiceByHost(host, c.object.meta.Namespace) == nil &&
		!slices.ContainsFunc(a.hostNames(c.object.meta.Namespace), func(h string) bool { return model.HostsOverlap(host, h) }) {
		c.warnf("spec.host", "there is no service %s%s", host, a.suggestHost(rule.Host, host, c.object.meta.Namespace))
	}
	policy := func(at string, t *networking.ClientTLSSettings) {
		if name := t.GetCredentialName(); name != "" {
			// Sidecars take secrets from the namespace of the rule, and from no other; gateways
			// from that which they run in, and else from the rule's.
			full := c.object.meta.Namespace + "/" + name
			if a.byID["Secret "+full] == nil && a.byID["Secret "+a.mesh.RootNamespace+"/"+name] == nil {
				c.errorf(at+".credentialName", "there is no Secret %s: write one, or give certificate files", full)
			}
		} else if t.GetMode() == networking.ClientTLSSettings_SIMPLE || t.GetMode() == networking.ClientTLSSettings_MUTUAL {
			authority := t.CaCertificates
			if authority == model.SystemAuthorities {
				authority = ""
			}
			c.certificateFiles(at, "clientCertificate", t.ClientCertificate, t.PrivateKey, authority)
			c.revocations(at+".caCrl", t.CaCrl)
		}
	}
	traffic := func(at string, p *networking.TrafficPolicy) {
		policy(at+".tls", p.GetTls())
		for i, port := range p.GetPortLevelSettings() {
			policy(index(at+".portLevelSettings", i)+".tls", port.Tls)
		}
	}
	traffic("spec.trafficPolicy", rule.TrafficPolicy)
	for i, s := range rule.Subsets {
		traffic(index("spec.subsets", i)+".trafficPolicy", s.TrafficPolicy)
	}
}

func (a *assembler) checkGatewayFiles(c *checker) {
	gw := c.object.spec.(*networking.Gateway)
	for _, o := range a.objects["Gateway"] {
		if o.meta.Name == c.object.meta.Name && o.meta.Namespace < c.object.meta.Namespace {
			c.warnf("metadata.name", "%s has the same name: each has a proxy of its own, and only one the service of that name", o.id())
		}
	}
	for i, s := range gw.Servers {
		at, t := index("spec.servers", i)+".tls", s.Tls
		if t == nil || t.Mode == networking.ServerTLSSettings_PASSTHROUGH || t.Mode == networking.ServerTLSSettings_AUTO_PASSTHROUGH || t.Mode == networking.ServerTLSSettings_ISTIO_MUTUAL {
			continue
		}
		a.gatewayCredentials(c, at, t)
		c.certificateFiles(at, "serverCertificate", t.ServerCertificate, t.PrivateKey, t.CaCertificates)
		c.revocations(at+".caCrl", t.CaCrl)
		for j, pair := range t.TlsCertificates {
			c.certificateFiles(index(at+".tlsCertificates", j), "serverCertificate", pair.ServerCertificate, pair.PrivateKey, "")
		}
	}
}

// gatewayCredentials: what a server shows is in its secrets, and what it wants to see
// of clients in one of them, or beside one.
func (a *assembler) gatewayCredentials(c *checker, at string, t *networking.ServerTLSSettings) {
	names := map[string]string{}
	if t.CredentialName != "" {
		names[at+".credentialName"] = t.CredentialName
	}
	for j, name := range t.CredentialNames {
		names[index(at+".credentialNames", j)] = name
	}
	authority := t.Mode == networking.ServerTLSSettings_SIMPLE || t.CaCertificates != "" || t.CaCertCredentialName != ""
	for _, place := range slices.Sorted(maps.Keys(names)) {
		secret := a.credential(c, place, names[place])
		if secret == nil {
			return
		}
		if len(secret.Cert) == 0 || len(secret.Key) == 0 {
			c.errorf(place, "%s has no certificate with its key: give tls.crt and tls.key", secret.Ref)
		}
		beside := a.secretOfGateway(c, names[place]+"-cacert")
		authority = authority || len(secret.CA) > 0 || beside != nil && len(beside.CA) > 0
	}
	if t.CaCertCredentialName != "" {
		if secret := a.credential(c, at+".caCertCredentialName", t.CaCertCredentialName); secret != nil && len(secret.CA) == 0 {
			c.errorf(at+".caCertCredentialName", "%s has no authority of clients: give ca.crt", secret.Ref)
		}
	}
	if !authority && len(names) > 0 {
		c.errorf(at+".mode", "mode %s needs the authority of clients: give ca.crt in the Secret, a Secret %s-cacert beside it, or caCertCredentialName", t.Mode, shorten(cmp.Or(t.CredentialName, strings.Join(t.CredentialNames, ""))))
	}
}

// secretsOfGateway names the secrets that a gateway takes by a name: those of the
// namespace that it runs in, the root namespace, and those beside the object.
func (a *assembler) secretsOfGateway(c *checker, name string) []string {
	name = strings.TrimPrefix(name, "kubernetes://")
	if namespace, rest, ok := strings.Cut(name, "/"); ok {
		if namespace != a.mesh.RootNamespace && namespace != c.object.meta.Namespace {
			return nil
		}
		return []string{namespace + "/" + rest}
	}
	return slices.Compact([]string{c.object.meta.Namespace + "/" + name, a.mesh.RootNamespace + "/" + name})
}

func (a *assembler) secretOfGateway(c *checker, name string) *model.Secret {
	for _, full := range a.secretsOfGateway(c, name) {
		if secret := a.mesh.Secrets[full]; secret != nil {
			return secret
		}
	}
	return nil
}

// credential gives a secret that must be there, and says so if it is not.
func (a *assembler) credential(c *checker, at, name string) *model.Secret {
	secret := a.secretOfGateway(c, name)
	if secret != nil {
		return secret
	}
	candidates := a.secretsOfGateway(c, name)
	if len(candidates) == 0 {
		namespace, _, _ := strings.Cut(strings.TrimPrefix(name, "kubernetes://"), "/")
		c.errorf(at, "the secret is of namespace %s: a gateway takes those of its own namespace and of the Gateway's", shorten(namespace))
		return nil
	}
	slices.Reverse(candidates)
	c.errorf(at, "there is no Secret %s: write one, or give certificate files", strings.Join(candidates, " or "))
	return nil
}

// revocations checks a file with lists of revoked certificates.
func (c *checker) revocations(at, name string) {
	if name == "" || c.options.ReadFile == nil {
		return
	}
	data, err := c.options.ReadFile(name)
	if err != nil {
		c.errorf(at, "the file %q cannot be read: %s", shorten(name), fileProblem(err))
		return
	}
	if problem := revocationListProblem(data); problem != "" {
		c.errorf(at, "the file %q %s", shorten(name), problem)
	}
}

func revocationListProblem(data []byte) string {
	const none = "has no revocation list in PEM"
	block, _ := pem.Decode(data)
	if block == nil {
		return none
	}
	if _, err := x509.ParseRevocationList(block.Bytes); err != nil {
		return none
	}
	return ""
}

// certificateFiles checks files that an object names: they exist, parse, and
// certificate and key go together. Without a file reader nothing is checked.
func (c *checker) certificateFiles(at, certField, cert, key, ca string) {
	read := func(field, name string) []byte {
		if name == "" || c.options.ReadFile == nil {
			return nil
		}
		data, err := c.options.ReadFile(name)
		if err != nil {
			c.errorf(at+"."+field, "the file %q cannot be read: %s", shorten(name), fileProblem(err))
		}
		return data
	}
	certPEM, keyPEM, caPEM := read(certField, cert), read("privateKey", key), read("caCertificates", ca)
	if certPEM != nil && keyPEM != nil {
		if problem := keyPairProblem(certPEM, keyPEM); problem != "" {
			c.errorf(at+"."+certField, "%s", problem)
		}
	}
	if caPEM != nil && !x509.NewCertPool().AppendCertsFromPEM(caPEM) {
		c.errorf(at+".caCertificates", "the file %q has no certificate in PEM", shorten(ca))
	}
}

func (a *assembler) checkServiceSelector(c *checker) {
	s := c.object.spec.(*corev1.Service)
	if len(s.Spec.Selector) > 0 && a.knowsWorkloads() && !a.anyWorkload(c.object.meta.Namespace, s.Spec.Selector) {
		c.warnf("spec.selector", "no workload of namespace %s has these labels", c.object.meta.Namespace)
	}
}

func (a *assembler) knowsWorkloads() bool {
	return len(a.objects["LocalWorkload"])+len(a.objects[instanceKind]) > 0
}

// anyWorkload says whether something has the labels; namespace "" is every one.
func (a *assembler) anyWorkload(namespace string, selector map[string]string) bool {
	if a.selectable == nil {
		a.selectable = labelIndex[struct{}]{}
		for _, kind := range []string{"LocalWorkload", instanceKind, "WorkloadEntry"} {
			for _, o := range a.objects[kind] {
				labels := o.meta.Labels
				if w, ok := o.spec.(*networking.WorkloadEntry); ok {
					labels = mergeLabels(w.Labels, labels)
				}
				a.selectable.add(o.meta.Namespace, labels, struct{}{})
			}
		}
		for _, o := range a.objects["Gateway"] {
			a.selectable.add(a.mesh.RootNamespace, o.spec.(*networking.Gateway).Selector, struct{}{})
		}
	}
	return len(a.selectable.having(namespace, selector)) > 0
}

func (a *assembler) checkPolicySelector(c *checker) {
	selector := selectorOf(c.object.spec)
	namespace := c.object.meta.Namespace
	if namespace == a.mesh.RootNamespace {
		namespace = ""
	}
	at := "spec.selector"
	if slices.Contains([]string{"Sidecar", "EnvoyFilter"}, c.object.meta.Kind) {
		at = "spec.workloadSelector"
	}
	switch {
	case !a.knowsWorkloads() || a.anyWorkload(namespace, selector):
	case len(selector) > 0:
		c.warnf(at, "no workload has these labels: the policy is not used")
	case namespace != "":
		c.warnf("metadata.namespace", "nothing runs in namespace %s: the policy is not used", shorten(namespace))
	}
}

func selectorOf(spec any) map[string]string {
	switch s := spec.(type) {
	case *security.AuthorizationPolicy:
		return s.Selector.GetMatchLabels()
	case *security.PeerAuthentication:
		return s.Selector.GetMatchLabels()
	case *security.RequestAuthentication:
		return s.Selector.GetMatchLabels()
	case *telemetry.Telemetry:
		return s.Selector.GetMatchLabels()
	case *networking.Sidecar:
		return s.WorkloadSelector.GetLabels()
	case *networking.EnvoyFilter:
		return s.WorkloadSelector.GetLabels()
	case *regoSpec:
		return s.Selector.labels()
	case *quotaSpec:
		return s.Selector.labels()
	case *accessListSpec:
		return s.Selector.labels()
	}
	return nil
}

func (a *assembler) checkAuthorizationReferences(c *checker) {
	a.checkPolicySelector(c)
	p := c.object.spec.(*security.AuthorizationPolicy)
	if p.Action != security.AuthorizationPolicy_CUSTOM {
		return
	}
	var known []string
	for _, e := range a.mesh.Config.ExtensionProviders {
		if e.GetEnvoyExtAuthzGrpc() == nil && e.GetEnvoyExtAuthzHttp() == nil {
			continue
		}
		if e.Name == p.GetProvider().GetName() {
			return
		}
		known = append(known, e.Name)
	}
	hint := ": write one with envoyExtAuthzGrpc or envoyExtAuthzHttp"
	if len(known) > 0 {
		hint = didYouMean(p.GetProvider().GetName(), known)
	}
	// No error: without the policy everything would pass.
	c.warnf("spec.provider.name", "extensionProviders in mesh.yaml has no authorizer %q, so all that the rules match is refused%s", shorten(p.GetProvider().GetName()), hint)
}

func (a *assembler) checkTelemetryReferences(c *checker) {
	a.checkPolicySelector(c)
	t := c.object.spec.(*telemetry.Telemetry)
	check := func(at string, providers []*telemetry.ProviderRef) {
		for i, p := range providers {
			if !slices.ContainsFunc(a.mesh.Config.ExtensionProviders, func(e *meshProvider) bool { return e.Name == p.Name }) {
				c.warnf(index(at+".providers", i)+".name", "extensionProviders in mesh.yaml has no %q", shorten(p.Name))
			}
		}
	}
	for i, l := range t.AccessLogging {
		check(index("spec.accessLogging", i), l.Providers)
	}
	for i, l := range t.Tracing {
		check(index("spec.tracing", i), l.Providers)
	}
	for i, l := range t.Metrics {
		check(index("spec.metrics", i), l.Providers)
	}
}

// checkAddress refuses two replicas on one address of their own.
func (a *assembler) checkAddress(c *checker) {
	s := c.object.spec.(*InstanceSpec)
	for _, o := range a.objects[instanceKind] {
		other := o.spec.(*InstanceSpec)
		before := o.meta.Line < c.object.meta.Line
		if before && other.Address == s.Address && s.Type != "gateway" && other.Type != "gateway" && s.Interception != "redirect" {
			c.errorf("spec.address", "%s has the same address", o.id())
		}
	}
}
