package meshdir

import (
	"cmp"
	"errors"
	"io/fs"
	"maps"
	"slices"

	"github.com/writ-mesh/writ/internal/regoform"
	"github.com/writ-mesh/writ/pilot/model"
)

// Options say what to read and how.
type Options struct {
	// Dir is the mesh directory.
	Dir string
	// InstancesFile is the list of running replicas, as MarshalInstances writes
	// it; empty or absent: no proxies are known.
	InstancesFile string
	// LastGood is a file in which a Reader keeps the last good content of every
	// file for the next process; empty for none.
	LastGood string
	// Reserved is what belongs to the mesh itself.
	Reserved Reserved
	// Deciders go into the mesh as they are.
	Deciders model.Deciders
	// CompileRego says whether a Rego module compiles and answers the query; nil
	// leaves modules unchecked. name is "<namespace>/<name>" of the policy.
	CompileRego func(name, module, query string) error
	// SplitRego says what is known of a Rego policy without evaluating it; nil
	// leaves that unknown.
	SplitRego func(name, module, query string) *regoform.Policy
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
		mesh, findings := assemble(in, options, nil)
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

// fileProblem shortens an error of the file system: the path is said already.
func fileProblem(err error) string {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		return pathError.Err.Error()
	}
	return err.Error()
}
