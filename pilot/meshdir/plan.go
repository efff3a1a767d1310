package meshdir

import (
	"bytes"
	"slices"
	"strings"

	meshv1 "istio.io/api/mesh/v1alpha1"

	"github.com/writ-mesh/writ/pilot/model"
)

// Workloads is what a mesh directory says about what has to run.
type Workloads struct {
	Config        *meshv1.MeshConfig
	TrustDomain   string
	RootNamespace string
	// Workloads are sorted by namespace, then name.
	Workloads []LocalWorkload
	// Gateways each need one gateway proxy: named after the object, in the root
	// namespace, with the labels of its selector. Of several with one name only
	// the first is here.
	Gateways []*model.Gateway
}

// ReadWorkloads reads what has to run. The result is nil where that would be a
// guess: the directory cannot be read, or there is an error in mesh.yaml, in a
// LocalWorkload or in a file that holds some; the problems are then those
// errors. Other mistakes leave out what they concern, and are for a Reader to
// report; the problems are then all of the directory.
func ReadWorkloads(dir string) (*Workloads, []Problem) {
	files, unreadable, err := ReadDir(dir)
	if err != nil {
		return nil, []Problem{{Message: err.Error()}}
	}
	in, mesh, problems := parseAndSettle(files, nil, &NewReader(Options{Dir: dir}).options)
	problems = unique(append(problems, unreadable...))
	if fatal := fatalProblems(files, problems); len(fatal) > 0 {
		return nil, fatal
	}
	out := &Workloads{Config: mesh.Config, TrustDomain: mesh.TrustDomain, RootNamespace: mesh.RootNamespace}
	var objects []*object
	for _, f := range in.files {
		for _, o := range f.objects {
			if o.meta.Kind == "LocalWorkload" {
				objects = append(objects, o)
			}
		}
	}
	out.Workloads = workloadsOf(objects)
	slices.SortStableFunc(out.Workloads, func(a, b LocalWorkload) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	for _, gw := range mesh.Gateways {
		if !slices.ContainsFunc(out.Gateways, func(g *model.Gateway) bool { return g.Name == gw.Name }) {
			out.Gateways = append(out.Gateways, gw)
		}
	}
	return out, problems
}

func fatalProblems(files map[string][]byte, problems []Problem) []Problem {
	var out []Problem
	for _, p := range Errors(problems) {
		unknown := p.Object == "" && (files[p.File] == nil || bytes.Contains(files[p.File], []byte("LocalWorkload")))
		if p.File == meshFile || strings.HasPrefix(p.Object, "LocalWorkload") || unknown {
			out = append(out, p)
		}
	}
	return out
}
