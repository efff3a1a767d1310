package meshdir

import (
	"slices"

	meshv1 "istio.io/api/mesh/v1alpha1"
)

// kept is what was found in AuthorizationPolicies, of which there may be tens of
// thousands. It holds as long as everything else is the same, because what is found in
// one does not depend on the others, or is not kept.
type kept struct {
	around surroundings
	// references and advice are by object, with those of which there is nothing to say.
	references, advice map[*object][]Problem
}

// surroundings are what is found in policies depends on besides them.
type surroundings struct {
	objects []*object
	mesh    *meshv1.MeshConfig
	known   bool
}

func (s surroundings) same(other surroundings) bool {
	return s.known == other.known && s.mesh == other.mesh && slices.Equal(s.objects, other.objects)
}

func (a *assembler) surroundings() surroundings {
	out := surroundings{known: a.known()}
	files := a.files
	if a.instances != nil {
		files = append(slices.Clone(files), a.instances)
	}
	for _, f := range files {
		if f.mesh != nil {
			out.mesh = f.mesh
		}
		for _, o := range f.objects {
			if o.meta.Kind != "AuthorizationPolicy" {
				out.objects = append(out.objects, o)
			}
		}
	}
	return out
}

// keepFindings begins anew with what is found, and gives what holds of before.
func (a *assembler) keepFindings() (before kept) {
	if a.kept == nil {
		a.kept = &kept{}
	}
	if around := a.surroundings(); around.same(a.kept.around) {
		before = *a.kept
	} else {
		a.kept.around = around
	}
	a.kept.references, a.kept.advice = map[*object][]Problem{}, map[*object][]Problem{}
	return before
}

// reportOnce is report for an AuthorizationPolicy: what is known is not looked for
// again, and what is found is kept, unless the check says that it hangs on other policies.
func (a *assembler) reportOnce(known, keep map[*object][]Problem, o *object, check func(*checker) (others bool)) {
	problems, ok := known[o]
	if !ok {
		c := &checker{report: o.report(), object: o, options: a.options}
		others := check(c)
		if problems = c.problems; others {
			keep = nil
		}
	}
	if keep != nil {
		keep[o] = problems
	}
	for _, p := range problems {
		a.findings = append(a.findings, finding{p, o})
	}
}
