package meshdir

import (
	"slices"
	"strings"

	meshv1 "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

// Plan is what the supervisor of a local mesh has to run.
type Plan struct {
	// Config is never nil.
	Config *meshv1.MeshConfig
	// Workloads are in the order of files and lines.
	Workloads []LocalWorkload
	// Gateways are those of the root namespace and then the others, each sorted as
	// in model.Mesh. Several may have one name.
	Gateways []GatewayPlan
}

// GatewayPlan is a gateway proxy to run for a Gateway object: named after it, in
// the root namespace, with the labels of its selector.
type GatewayPlan struct {
	Name      string
	Namespace string
	Labels    map[string]string
	// ServiceAccount is what it runs as. Istio's own gateways run as
	// istio-ingressgateway-service-account and the like, which policies name; they
	// are known by the label istio.
	ServiceAccount string
	// Object is the Gateway object.
	Object model.Ref
	// Ports are the ports of its servers in the order of servers, each once.
	Ports []GatewayPort
}

// GatewayPort is a port on which a gateway proxy listens.
type GatewayPort struct {
	Number   uint32
	Protocol model.Protocol
	// Bind is the IP address that the server asks for, empty for all.
	Bind string
	// TLS says that clients have to speak TLS.
	TLS bool
}

// ReadPlan reads a mesh directory once and gives what has to run, and all
// problems of the directory; one without a file is about the directory as a
// whole. What has errors is left out.
func ReadPlan(options Options) (Plan, []Problem) {
	r := NewReader(options)
	files, unreadable, err := readDir(r.options.Dir)
	if err != nil {
		return Plan{Config: defaultMeshConfig()}, []Problem{{Message: err.Error()}}
	}
	in, mesh, problems := parseAndSettle(files, nil, &r.options)
	return planOf(in, mesh), unique(append(problems, unreadable...))
}

func planOf(in input, mesh *model.Mesh) Plan {
	plan := Plan{Config: mesh.Config}
	for _, f := range in.files {
		for _, o := range f.objects {
			if o.meta.Kind == "LocalWorkload" {
				plan.Workloads = append(plan.Workloads, workloadsOf([]*object{o})...)
			}
		}
	}
	for _, gw := range model.RootFirst(mesh.Gateways, mesh.RootNamespace) {
		plan.Gateways = append(plan.Gateways, gatewayPlanOf(gw, mesh.RootNamespace))
	}
	return plan
}

func gatewayPlanOf(gw *model.Gateway, rootNamespace string) GatewayPlan {
	plan := GatewayPlan{Name: gw.Name, Namespace: rootNamespace, Labels: gw.Spec.Selector, ServiceAccount: gw.Name, Object: gw.Ref}
	if kind := gw.Spec.Selector["istio"]; kind != "" {
		plan.ServiceAccount = "istio-" + kind + "-service-account"
	}
	for _, s := range gw.Spec.Servers {
		if strings.HasPrefix(s.Bind, unixPrefix) || slices.ContainsFunc(plan.Ports, func(p GatewayPort) bool { return p.Number == s.Port.Number }) {
			continue
		}
		protocol, _ := protocolOf(s.Port.Protocol)
		redirects := s.Tls.GetHttpsRedirect() && s.Tls.GetMode() == networking.ServerTLSSettings_PASSTHROUGH
		plan.Ports = append(plan.Ports, GatewayPort{Number: s.Port.Number, Protocol: protocol, Bind: s.Bind, TLS: s.Tls != nil && !redirects})
	}
	return plan
}
