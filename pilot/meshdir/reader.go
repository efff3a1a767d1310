package meshdir

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/writ-mesh/writ/pilot/model"
)

// instancesKey stands for the instances file among the files: no configuration
// file has this name.
const instancesKey = "/instances"

// version maps the names of files to what is read from each.
type version map[string]*parsedFile

// input gives the files in their order.
func (v version) input() input {
	var in input
	for _, name := range slices.Sorted(maps.Keys(v)) {
		if name == instancesKey {
			in.instances = v[name]
		} else {
			in.files = append(in.files, v[name])
		}
	}
	return in
}

func versionOf(in input) version {
	v := version{}
	for _, f := range in.files {
		v[f.name] = f
	}
	if in.instances != nil {
		v[instancesKey] = in.instances
	}
	return v
}

// Reader reads a mesh directory again and again, and keeps what was good.
type Reader struct {
	options Options

	mu sync.Mutex
	// begun is set from the first Read on.
	begun bool
	// parsed is the last parse of each file, to spare unchanged ones.
	parsed version
	// good is what the mesh was made of.
	good  version
	mesh  *model.Mesh
	print [sha256.Size]byte
	// named hashes the files that objects named in the last assembly.
	named map[string][sha256.Size]byte
	// kept is what was found in policies.
	kept kept
	// recent are the meshes that Read gave last, the newest at the end.
	recent []generation
	// accepted is what everybody took up last, held what was refused since, by
	// the names of files.
	accepted version
	held     map[string]held
}

// NewReader makes a reader of options.Dir.
func NewReader(options Options) *Reader {
	if dir, err := filepath.Abs(options.Dir); err == nil {
		options.Dir = dir
	}
	r := &Reader{parsed: version{}, named: map[string][sha256.Size]byte{}, held: map[string]held{}}
	read := options.ReadFile
	if read == nil {
		read = options.named
	}
	options.ReadFile = func(name string) ([]byte, error) {
		data, err := read(name)
		r.named[name] = sha256.Sum256(data)
		return data, err
	}
	r.options = options
	return r
}

// Read reads everything again. It gives the best valid mesh, whether it differs
// from the one that the last Read gave, and all problems of the directory as it
// is now. A file with an error, or with an object that refers to what is not
// there, keeps its last good content; a change that breaks an object of another
// file is held back. Only the first Read leaves out single objects. The mesh is
// nil while the directory has never been readable.
func (r *Reader) Read() (mesh *model.Mesh, changed bool, problems []Problem) {
	r.mu.Lock()
	defer r.mu.Unlock()
	first := !r.begun
	r.begun = true
	if first && r.options.LastGood != "" {
		problems = r.restore()
	}
	current, err := r.load()
	if err != nil {
		return r.mesh, first && r.mesh != nil, append(problems, Problem{Message: err.Error()})
	}
	problems = append(problems, r.holdBack(current)...)
	problems = append(problems, current.input().problems()...)
	var chosen version
	if r.mesh == nil {
		var found []Problem
		var in input
		in, mesh, found = r.settle(current)
		chosen, problems = versionOf(in), append(problems, found...)
	} else {
		var found []Problem
		chosen, mesh, found = r.improve(current)
		problems = append(problems, found...)
	}
	if mesh == nil { // nothing better than what we have
		r.sayInForce(problems, current, r.good)
		return r.mesh, first, unique(problems)
	}
	r.sayInForce(problems, current, chosen)
	sum := r.fingerprint(chosen)
	changed = first || sum != r.print
	r.good = chosen
	if changed {
		r.mesh, r.print = mesh, sum
		r.remember(mesh, chosen)
		problems = append(problems, r.keep()...)
	}
	return r.mesh, changed, unique(problems)
}

// sayInForce adds to errors what is in force in place of their file.
func (r *Reader) sayInForce(problems []Problem, current, chosen version) {
	for i := range problems {
		p := &problems[i]
		file := current[p.File]
		if p.Severity != Error || file == nil {
			continue
		}
		switch used := chosen[p.File]; {
		case used == nil:
			p.InForce = InForceNothing
		case used.sum != file.sum:
			p.InForce = InForceEarlier
		}
	}
}

func unique(problems []Problem) []Problem {
	sortProblems(problems)
	return slices.Compact(problems)
}

// load reads the files; unchanged ones are not parsed again.
func (r *Reader) load() (version, error) {
	files, unreadable, err := readDir(r.options.Dir)
	if err != nil {
		return nil, err
	}
	current := version{}
	p := newParser(&r.options, false)
	for name, data := range files {
		current[name] = r.parse(p, name, name, data)
	}
	for _, problem := range unreadable {
		current[problem.File] = &parsedFile{name: problem.File, problems: []Problem{problem}}
	}
	if r.options.InstancesFile != "" {
		data, err := os.ReadFile(r.options.InstancesFile)
		name := instancesName(&r.options)
		switch {
		case err == nil:
			current[instancesKey] = r.parse(newParser(&r.options, true), instancesKey, name, data)
		case !errors.Is(err, fs.ErrNotExist):
			current[instancesKey] = &parsedFile{name: name, problems: []Problem{{File: name, Message: "cannot be read: " + fileProblem(err)}}}
		}
	}
	r.parsed = current
	return maps.Clone(current), nil
}

func (r *Reader) parse(p *parser, key, name string, data []byte) *parsedFile {
	if before := r.parsed[key]; before != nil && before.sum == sha256.Sum256(data) {
		return before
	}
	return p.parse(name, data)
}

func (r *Reader) settle(v version) (input, *model.Mesh, []Problem) {
	clear(r.named)
	return settle(v.input(), &r.options)
}

// improve finds the version nearest to current that is valid: first with the
// last good content of files that have errors, then of files whose objects
// refer to what is not there, then of single other files, one by one. The mesh
// is nil if only the last good version of everything is left.
func (r *Reader) improve(current version) (version, *model.Mesh, []Problem) {
	chosen := maps.Clone(current)
	for name, f := range current {
		if f.bad() {
			r.revert(chosen, name)
		}
	}
	var problems []Problem
	for {
		mesh, findings := r.assemble(chosen)
		bad := failing(findings)
		if len(bad) == 0 {
			return chosen, mesh, append(problems, problemsOf(findings, Warning)...)
		}
		problems = append(problems, problemsOf(findings, Error)...)
		reverted := false
		for name, f := range chosen {
			if slices.ContainsFunc(f.objects, func(o *object) bool { return bad[o] }) && r.differs(chosen, name) {
				r.revert(chosen, name)
				reverted = true
			}
		}
		if !reverted {
			if r.leaveOutStrangers(chosen, bad) {
				continue
			}
			break
		}
	}
	return r.revertOne(chosen, problems)
}

// leaveOutStrangers takes objects out that refer to what a change removes, if all
// of them are traffic rules of namespaces in which the changed files have nothing:
// whoever may write in one namespace must not hold back what others write in
// theirs. A policy is never left out. It returns false if that is not the case.
func (r *Reader) leaveOutStrangers(chosen version, bad map[*object]bool) bool {
	touched := map[string]bool{}
	for _, name := range r.differing(chosen) {
		for _, f := range []*parsedFile{chosen[name], r.good[name]} {
			if f == nil {
				continue
			}
			for _, o := range f.objects {
				touched[o.meta.Namespace] = true
			}
		}
	}
	for o := range bad {
		if o == nil {
			return false
		}
		traffic := slices.Contains([]string{"VirtualService", "DestinationRule", "Gateway", "ServiceEntry", "Sidecar"}, o.meta.Kind)
		if !traffic || touched[o.meta.Namespace] {
			return false
		}
	}
	for name, f := range chosen {
		if slices.ContainsFunc(f.objects, func(o *object) bool { return bad[o] }) {
			pruned := *f
			pruned.objects = slices.DeleteFunc(slices.Clone(f.objects), func(o *object) bool { return bad[o] })
			chosen[name] = &pruned
		}
	}
	return true
}

// revertOne handles an object of an unchanged file that a change elsewhere
// breaks: it looks for the one file whose change is to blame.
func (r *Reader) revertOne(chosen version, problems []Problem) (version, *model.Mesh, []Problem) {
	names := r.differing(chosen)
	for _, name := range names {
		attempt := maps.Clone(chosen)
		r.revert(attempt, name)
		if mesh, findings := r.assemble(attempt); len(failing(findings)) == 0 {
			return attempt, mesh, append(problems, append(problemsOf(findings, Warning), heldBack(name))...)
		}
	}
	for _, name := range names {
		problems = append(problems, heldBack(name))
	}
	return nil, nil, problems
}

func heldBack(name string) Problem {
	if name == instancesKey {
		name = ""
	}
	return Problem{File: name, Message: "the change of this file is held back because other objects need what it removes: change both"}
}

// differing lists the files whose chosen content is not the last good one.
func (r *Reader) differing(chosen version) []string {
	names := map[string]bool{}
	for _, v := range []version{chosen, r.good} {
		for name := range v {
			if r.differs(chosen, name) {
				names[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

func (r *Reader) differs(chosen version, name string) bool {
	a, b := chosen[name], r.good[name]
	if a == nil || b == nil {
		return a != b
	}
	return a.sum != b.sum || len(a.objects) != len(b.objects)
}

// revert puts the last good content of a file in place, or takes it out if it
// was never good.
func (r *Reader) revert(v version, name string) {
	if good := r.good[name]; good != nil {
		v[name] = good
	} else {
		delete(v, name)
	}
}

func (r *Reader) assemble(v version) (*model.Mesh, []finding) {
	clear(r.named)
	return assemble(v.input(), &r.options, &r.kept)
}

func problemsOf(findings []finding, severity Severity) []Problem {
	var out []Problem
	for _, f := range findings {
		if f.Severity == severity {
			out = append(out, f.Problem)
		}
	}
	return out
}

// fingerprint is equal for equal configuration: the objects in use, by content
// of their files, and the files that they name.
func (r *Reader) fingerprint(v version) [sha256.Size]byte {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(v)) {
		f := v[name]
		if len(f.objects) == 0 && f.mesh == nil && f.rego == nil {
			continue
		}
		fmt.Fprintf(h, "%s\x00%x\x00", name, f.sum)
		for _, o := range f.objects {
			fmt.Fprintf(h, "%s\x00", o.id())
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.named)) {
		fmt.Fprintf(h, "%s\x00%x\x00", name, r.named[name])
	}
	var out [sha256.Size]byte
	h.Sum(out[:0])
	return out
}

// Validate reads a mesh directory once and gives its mesh and its problems, as
// pilot would find them; no replicas are known.
func Validate(options Options) (*model.Mesh, []Problem) {
	options.InstancesFile = ""
	mesh, _, problems := NewReader(options).Read()
	return mesh, problems
}
