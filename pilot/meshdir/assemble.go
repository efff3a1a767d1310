package meshdir

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	telemetry "istio.io/api/telemetry/v1alpha1"

	"github.com/writ-mesh/writ/pilot/model"
)

// input is what a mesh is made of.
type input struct {
	// files are sorted by name.
	files []*parsedFile
	// instances is nil if it is not known what runs.
	instances *parsedFile
}

// finding is a problem that shows only when all objects are seen together.
type finding struct {
	Problem
	object *object
}

// assembler makes one mesh of many objects.
type assembler struct {
	input
	options  *Options
	mesh     *model.Mesh
	objects  map[string][]*object
	byID     map[string]*object
	findings []finding
	// subsets are those of each host of a DestinationRule, wildcards the hosts
	// among them that are; both are made when first asked for.
	subsets   map[string][]string
	wildcards []string
	// unready are the proxies that are no endpoint of any service.
	unready map[*model.Proxy]bool
	// nodes are the localities of nodes, by their names.
	nodes map[string]string
	// endpointSlices are by "<namespace>/<name>" of the Service that they are of, sidecarAt
	// the workloads by address; both nil if there are no EndpointSlices.
	endpointSlices map[string][]*object
	sidecarAt      map[netip.Addr]*model.Proxy
	// selectable are the labels that a selector may ask for; made when first needed.
	selectable labelIndex[struct{}]
	// inventory is there while advice is given.
	inventory inventory
	// kept is what was found before, nil for nothing.
	kept *kept
}

// assemble joins the objects, connects them and checks their references. The
// mesh is usable only if no finding is an error. What was found before may be nil.
func assemble(in input, options *Options, before *kept) (*model.Mesh, []finding) {
	a := &assembler{input: in, options: options, kept: before, objects: map[string][]*object{}, byID: map[string]*object{}, unready: map[*model.Proxy]bool{}}
	a.mesh = &model.Mesh{
		Config: defaultMeshConfig(), DomainSuffix: domainSuffix, Dir: options.Dir, Deciders: options.Deciders,
		NamespaceLabels: map[string]map[string]string{}, Secrets: map[string]*model.Secret{},
	}
	for _, f := range in.files {
		if f.mesh != nil {
			a.mesh.Config = f.mesh
		}
	}
	a.mesh.TrustDomain, a.mesh.TrustDomainAliases = a.mesh.Config.TrustDomain, a.mesh.Config.TrustDomainAliases
	a.mesh.FederatedDomains = federatedDomains(a.mesh.Config)
	a.mesh.RootNamespace = a.mesh.Config.RootNamespace
	a.collect()
	a.namespaces()
	a.proxies()
	a.services()
	a.lists()
	a.crossCheck()
	return a.mesh, a.findings
}

// report runs check with a list of problems about o.
func (a *assembler) report(o *object, check func(*checker)) {
	c := &checker{report: o.report(), object: o, options: a.options}
	check(c)
	for _, p := range c.problems {
		a.findings = append(a.findings, finding{p, o})
	}
}

// collect sorts the objects by kind and refuses those that are there twice.
func (a *assembler) collect() {
	files := a.files
	if a.instances != nil {
		files = append(slices.Clone(files), a.instances)
	}
	for _, f := range files {
		for _, o := range f.objects {
			id := o.id()
			if first, ok := a.byID[id]; ok {
				a.report(o, func(c *checker) {
					c.errorf("metadata.name", "is already defined in %s:%d: remove one", first.meta.File, first.meta.Line)
				})
				continue
			}
			a.byID[id] = o
			a.objects[o.meta.Kind] = append(a.objects[o.meta.Kind], o)
		}
	}
	for _, list := range a.objects {
		slices.SortStableFunc(list, func(a, b *object) int {
			return cmp.Or(a.meta.Created.Compare(b.meta.Created), cmp.Compare(a.meta.Namespace, b.meta.Namespace), cmp.Compare(a.meta.Name, b.meta.Name))
		})
	}
}

func (a *assembler) namespaces() {
	add := func(name string, labels map[string]string) {
		if name == "" {
			return
		}
		if a.mesh.NamespaceLabels[name] == nil {
			// Kubernetes gives every namespace this label.
			a.mesh.NamespaceLabels[name] = map[string]string{"kubernetes.io/metadata.name": name}
		}
		maps.Copy(a.mesh.NamespaceLabels[name], labels)
	}
	add(a.mesh.RootNamespace, nil)
	for _, list := range a.objects {
		for _, o := range list {
			add(o.meta.Namespace, nil)
		}
	}
	for _, o := range a.objects["Namespace"] {
		add(o.meta.Name, o.meta.Labels)
	}
}

func (a *assembler) proxies() {
	for _, o := range a.objects[instanceKind] {
		p := proxyOf(o)
		a.mesh.Proxies = append(a.mesh.Proxies, p)
		a.unready[p] = o.spec.(*InstanceSpec).Unready
	}
	slices.SortFunc(a.mesh.Proxies, func(a, b *model.Proxy) int { return cmp.Compare(a.ID, b.ID) })
}

// lists fills the mesh with the objects that are kept as they are.
func (a *assembler) lists() {
	m := a.mesh
	m.VirtualServices = typed[networking.VirtualService](a, "VirtualService")
	m.DestinationRules = typed[networking.DestinationRule](a, "DestinationRule")
	m.Gateways = typed[networking.Gateway](a, "Gateway")
	m.Sidecars = typed[networking.Sidecar](a, "Sidecar")
	m.PeerAuthentications = typed[security.PeerAuthentication](a, "PeerAuthentication")
	m.RequestAuthentications = typed[security.RequestAuthentication](a, "RequestAuthentication")
	for _, o := range a.objects["AuthorizationPolicy"] {
		m.AuthorizationPolicies = append(m.AuthorizationPolicies, authorizationPolicyOf(o))
	}
	m.Telemetries = typed[telemetry.Telemetry](a, "Telemetry")
	m.EnvoyFilters = typed[networking.EnvoyFilter](a, "EnvoyFilter")
	for _, o := range a.objects["Secret"] {
		m.Secrets[o.meta.Namespace+"/"+o.meta.Name] = secretOf(o)
	}
	for _, o := range a.objects["RegoPolicy"] {
		m.RegoPolicies = append(m.RegoPolicies, a.regoPolicy(o))
	}
	for _, o := range a.objects["QuotaPolicy"] {
		m.QuotaPolicies = append(m.QuotaPolicies, quotaPolicyOf(o))
	}
	for _, o := range a.objects["AccessList"] {
		m.AccessLists = append(m.AccessLists, accessListOf(o))
	}
	a.rbac()
	a.defaultVisibility()
}

func typed[Spec any](a *assembler, kind string) []*model.Object[Spec] {
	var out []*model.Object[Spec]
	for _, o := range a.objects[kind] {
		out = append(out, &model.Object[Spec]{Meta: o.meta, Spec: o.spec.(*Spec)})
	}
	return out
}

// authorizationPolicyOf gives the same policy each time.
func authorizationPolicyOf(o *object) *model.AuthorizationPolicy {
	if o.policy == nil {
		o.policy = &model.AuthorizationPolicy{Meta: o.meta, Spec: o.spec.(*security.AuthorizationPolicy)}
		o.policy.RuleLines = ruleLines(o, o.policy.Spec)
	}
	return o.policy
}

// ruleLines tells where the rules of a policy begin.
func ruleLines(o *object, p *security.AuthorizationPolicy) []int {
	var lines []int
	for n := range p.GetRules() {
		line := 0
		if at := locate(o.root, index("spec.rules", n)); at != nil {
			line = at.Line
		}
		lines = append(lines, line)
	}
	return lines
}

// defaultVisibility writes MeshConfig's defaults into the objects that do not
// say to whom they are exported.
func (a *assembler) defaultVisibility() {
	if to := a.mesh.Config.DefaultVirtualServiceExportTo; !isEverywhere(to) {
		for _, vs := range a.mesh.VirtualServices {
			if len(vs.Spec.ExportTo) == 0 {
				vs.Spec = vs.Spec.DeepCopy()
				vs.Spec.ExportTo = to
			}
		}
	}
	if to := a.mesh.Config.DefaultDestinationRuleExportTo; !isEverywhere(to) {
		for _, dr := range a.mesh.DestinationRules {
			if len(dr.Spec.ExportTo) == 0 {
				dr.Spec = dr.Spec.DeepCopy()
				dr.Spec.ExportTo = to
			}
		}
	}
}

func isEverywhere(to []string) bool { return len(to) == 0 || slices.Contains(to, "*") }

// workloadsOf gives the LocalWorkloads among objects.
func workloadsOf(objects []*object) []LocalWorkload {
	var out []LocalWorkload
	for _, o := range objects {
		out = append(out, LocalWorkload{Meta: o.meta, Spec: *o.spec.(*LocalWorkloadSpec)})
	}
	return out
}
