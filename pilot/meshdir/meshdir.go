package meshdir

import (
	"cmp"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"

	meshv1 "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

// Options say what to read and how.
type Options struct {
	// Dir is the mesh directory.
	Dir string
	// InstancesFile is the list of running replicas, as MarshalInstances writes
	// it; empty or absent: no proxies are known.
	InstancesFile string
	// Deciders go into the mesh as they are.
	Deciders model.Deciders
	// CompileRego says whether a Rego module compiles and answers the query; nil
	// leaves modules unchecked. name is "<namespace>/<name>" of the policy.
	CompileRego func(name, module, query string) error
	// ReadFile reads a file that an object names, a path relative to Dir or an
	// absolute one. NewReader sets it; nil leaves such files unchecked.
	ReadFile func(name string) ([]byte, error)
}

// Parse makes a mesh of file contents by name (relative to the mesh directory,
// with slashes) and of the instances file, nil if there is none. It does no I/O
// beyond what options bring. Objects with errors are left out, and those that
// refer to them, until the rest is valid; the mesh is always usable. The
// problems are all that was found, in the order of files and lines.
func Parse(files map[string][]byte, instances []byte, options Options) (*model.Mesh, []Problem) {
	_, mesh, problems := parseAndSettle(files, instances, &options)
	return mesh, problems
}

func parseAndSettle(files map[string][]byte, instances []byte, options *Options) (input, *model.Mesh, []Problem) {
	p := newParser(options, false)
	var in input
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if isConfiguration(name) {
			in.files = append(in.files, p.parse(name, files[name]))
		}
	}
	if instances != nil {
		in.instances = newParser(options, true).parse(instancesName(options), instances)
	}
	problems := in.problems()
	in, mesh, found := settle(in, options)
	problems = append(problems, found...)
	sortProblems(problems)
	return in, mesh, problems
}

func instancesName(options *Options) string {
	return cmp.Or(options.InstancesFile, "instances.yaml")
}

// problems are those that showed while reading the files one by one.
func (in input) problems() []Problem {
	var out []Problem
	for _, f := range in.files {
		out = append(out, f.problems...)
	}
	if in.instances != nil {
		out = append(out, in.instances.problems...)
	}
	return out
}

// settle leaves out objects that fail until the rest is valid. It ends because
// each round leaves out at least one.
func settle(in input, options *Options) (input, *model.Mesh, []Problem) {
	var problems []Problem
	for {
		mesh, findings := assemble(in, options)
		bad := failing(findings)
		for _, f := range findings {
			if f.Severity == Error || len(bad) == 0 {
				problems = append(problems, f.Problem)
			}
		}
		if len(bad) == 0 {
			return in, mesh, problems
		}
		in = in.without(bad)
	}
}

// failing gives the objects with errors.
func failing(findings []finding) map[*object]bool {
	bad := map[*object]bool{}
	for _, f := range findings {
		if f.Severity == Error {
			bad[f.object] = true
		}
	}
	return bad
}

// without gives a copy that lacks some objects.
func (in input) without(bad map[*object]bool) input {
	prune := func(f *parsedFile) *parsedFile {
		if f == nil {
			return nil
		}
		pruned := *f
		pruned.objects = slices.DeleteFunc(slices.Clone(f.objects), func(o *object) bool { return bad[o] })
		return &pruned
	}
	out := in
	out.files = nil
	for _, f := range in.files {
		out.files = append(out.files, prune(f))
	}
	out.instances = prune(in.instances)
	return out
}

// Plan is what the supervisor of a local mesh has to run.
type Plan struct {
	Config    *meshv1.MeshConfig
	Workloads []LocalWorkload
	Gateways  []GatewayPlan
}

// GatewayPlan is a gateway proxy to run for a Gateway object: named after it, in
// the root namespace, with the labels of its selector.
type GatewayPlan struct {
	Name      string
	Namespace string
	Labels    map[string]string
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

// PlanOf gives what has to run for a mesh directory's contents, and its problems.
func PlanOf(files map[string][]byte, options Options) (Plan, []Problem) {
	in, mesh, problems := parseAndSettle(files, nil, &options)
	return planOf(in, mesh), problems
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
	seen := map[string]bool{}
	for _, gw := range mesh.Gateways {
		if seen[gw.Name] {
			continue
		}
		seen[gw.Name] = true
		plan.Gateways = append(plan.Gateways, gatewayPlanOf(gw, mesh.RootNamespace))
	}
	return plan
}

func gatewayPlanOf(gw *model.Gateway, rootNamespace string) GatewayPlan {
	plan := GatewayPlan{Name: gw.Name, Namespace: rootNamespace, Labels: gw.Spec.Selector, Object: gw.Ref}
	for _, s := range gw.Spec.Servers {
		if strings.HasPrefix(s.Bind, unixPrefix) || slices.ContainsFunc(plan.Ports, func(p GatewayPort) bool { return p.Number == s.Port.Number }) {
			continue
		}
		protocol, _ := protocolOf(s.Port.Protocol)
		plan.Ports = append(plan.Ports, GatewayPort{
			Number: s.Port.Number, Protocol: protocol, Bind: s.Bind,
			TLS: s.Tls != nil && !(s.Tls.HttpsRedirect && s.Tls.Mode == networking.ServerTLSSettings_PASSTHROUGH),
		})
	}
	return plan
}

// fileProblem shortens an error of the file system: the path is said already.
func fileProblem(err error) string {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		return pathError.Err.Error()
	}
	return err.Error()
}
