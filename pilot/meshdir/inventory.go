package meshdir

import (
	"fmt"
	"slices"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

// inventory is what is to run, or runs: advice that depends on it is given only
// if it is known.
type inventory struct {
	workloads labelIndex[workload]
	// accounts are the service accounts in use, by namespace.
	accounts map[string][]string
	// modes, authorizations and authentications are those of the mesh.
	modes           model.PeerModes
	authorizations  policyIndex[*model.AuthorizationPolicy]
	authentications policyIndex[*model.RequestAuthentication]
	// closed says of the workloads that were asked about whether their policies let
	// nobody in without identity.
	closed map[*model.Proxy]bool
	// explicit says that some sidecar is an explicit proxy.
	explicit bool
}

// workload is a LocalWorkload, a gateway, or a replica; of those that are alike
// one is here.
type workload struct {
	*model.Proxy
	// service is what it is called by if no Service describes it.
	service string
}

// known says whether the directory is complete enough to miss something in it:
// it says what runs, and no file lost an object to an error.
func (a *assembler) known() bool { return a.knowsWorkloads() && !a.broken() }

// broken says whether a file lost an object to an error.
func (a *assembler) broken() bool {
	return slices.ContainsFunc(a.files, func(f *parsedFile) bool {
		return slices.ContainsFunc(f.problems, func(p Problem) bool { return p.Severity == Error })
	})
}

// takeInventory lists what runs.
func (a *assembler) takeInventory() inventory {
	in := inventory{
		workloads: labelIndex[workload]{}, accounts: map[string][]string{}, modes: model.NewPeerModes(a.mesh), closed: map[*model.Proxy]bool{},
		authorizations: policyIndex[*model.AuthorizationPolicy]{}, authentications: policyIndex[*model.RequestAuthentication]{},
	}
	for _, p := range a.mesh.AuthorizationPolicies {
		in.authorizations.add(p.Namespace, p.Spec.GetSelector().GetMatchLabels(), p)
	}
	for _, r := range a.mesh.RequestAuthentications {
		in.authentications.add(r.Namespace, r.Spec.GetSelector().GetMatchLabels(), r)
	}
	seen := map[string]bool{}
	add := func(p *model.Proxy, service string) {
		in.account(p.Namespace, p.ServiceAccount)
		in.explicit = in.explicit || p.Type != model.GatewayProxy && p.Interception == model.Explicit
		ports := ""
		for _, w := range p.Ports {
			ports += fmt.Sprintf("%s:%d ", w.Name, w.Port)
		}
		// fmt writes maps in the order of their keys.
		key := fmt.Sprintf("%d %d %s/%s %s %v %s", p.Type, p.Interception, p.Namespace, p.ServiceAccount, service, p.Labels, ports)
		if !seen[key] {
			seen[key] = true
			in.workloads.add(p.Namespace, p.Labels, workload{p, service})
		}
	}
	for _, w := range workloadsOf(a.objects["LocalWorkload"]) {
		p := &model.Proxy{Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.Spec.ServiceAccount, Labels: w.Labels}
		for _, port := range w.Spec.Ports {
			p.Ports = append(p.Ports, model.WorkloadPort{Name: port.Name, Protocol: port.Model(), Port: port.Port, App: port.App})
		}
		add(p, impliedName(w.Name, w.Labels, false))
	}
	for _, gw := range a.mesh.Gateways {
		plan := gatewayPlanOf(gw, a.mesh.RootNamespace)
		p := &model.Proxy{Type: model.GatewayProxy, Name: plan.Name, Namespace: plan.Namespace, ServiceAccount: plan.ServiceAccount, Labels: plan.Labels}
		add(p, p.Name)
	}
	for _, p := range a.mesh.Proxies {
		service := impliedName(p.Name, p.Labels, true)
		if p.Type == model.GatewayProxy {
			service = p.Name
		}
		add(p, service)
	}
	a.otherAccounts(&in)
	return in
}

// otherAccounts are those of entries, and those that are written down without a
// workload: whoever declares an account means it.
func (a *assembler) otherAccounts(in *inventory) {
	for _, o := range a.objects["WorkloadEntry"] {
		in.account(o.meta.Namespace, o.spec.(*networking.WorkloadEntry).ServiceAccount)
	}
	for _, o := range a.objects["ServiceEntry"] {
		for _, w := range o.spec.(*networking.ServiceEntry).Endpoints {
			in.account(o.meta.Namespace, w.ServiceAccount)
		}
	}
	for _, o := range a.objects["ServiceAccount"] {
		in.account(o.meta.Namespace, o.meta.Name)
	}
	for _, o := range a.objects["Namespace"] {
		in.account(o.meta.Name, "")
	}
}

// account notes a namespace and, if there is a name, an account of it.
func (in *inventory) account(namespace, name string) {
	list, ok := in.accounts[namespace]
	if !ok {
		in.accounts[namespace] = nil
	}
	if name != "" && !slices.Contains(list, name) {
		in.accounts[namespace] = append(list, name)
	}
}

// selected gives the workloads that a policy of the namespace is for.
func (a *assembler) selected(namespace string, selector map[string]string) []workload {
	if namespace == a.mesh.RootNamespace {
		namespace = ""
	}
	return a.inventory.workloads.having(namespace, selector)
}

func (a *assembler) selects(namespace string, selector map[string]string, w workload) bool {
	return (namespace == w.Namespace || namespace == a.mesh.RootNamespace) && model.SelectorMatches(selector, w.Labels)
}
