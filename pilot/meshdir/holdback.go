package meshdir

import (
	"crypto/sha256"
	"maps"

	"github.com/writ-mesh/writ/pilot/model"
)

// recentVersions is how many meshes a Reader can be told about later.
const recentVersions = 8

// generation is a mesh that Read gave, and what it was made of.
type generation struct {
	mesh *model.Mesh
	version
}

// held is a file that keeps its accepted content as long as it is what was refused.
type held struct {
	refused  [sha256.Size]byte
	problems []Problem
}

// remember keeps what a mesh was made of.
func (r *Reader) remember(mesh *model.Mesh, v version) {
	r.recent = append(r.recent, generation{mesh, v})
	if n := len(r.recent); n > recentVersions {
		r.recent = r.recent[n-recentVersions:]
	}
}

func (r *Reader) versionOfMesh(mesh *model.Mesh) version {
	for _, g := range r.recent {
		if g.mesh == mesh {
			return g.version
		}
	}
	return nil
}

// Accepted says that everybody has taken up a mesh that Read gave: its files are
// what HoldBack goes back to.
func (r *Reader) Accepted(mesh *model.Mesh) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v := r.versionOfMesh(mesh); v != nil {
		r.accepted = v
	}
}

// HoldBack says that objects of a mesh that Read gave were refused by who has to
// run them, and why. From the next Read on their files have the content that was
// accepted last, until they are changed again, so that one bad file does not keep
// the changes of others away. It returns false if nothing can be held back: no
// mesh was accepted so far, or the files are as they were then.
func (r *Reader) HoldBack(mesh *model.Mesh, objects []model.Ref, why string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.versionOfMesh(mesh)
	if v == nil || r.accepted == nil {
		return false
	}
	good := maps.Clone(r.good)
	found := false
	for _, o := range objects {
		now, before := v[o.File], r.accepted[o.File]
		if now == nil || before != nil && before.sum == now.sum {
			continue
		}
		found = true
		h := r.held[o.File]
		if h.refused != now.sum {
			h = held{refused: now.sum}
		}
		h.problems = append(h.problems, Problem{
			File: o.File, Line: o.Line, Object: o.ID(),
			Message: why + "; the file is left out as long as it says so: what was in force before stays",
		})
		r.held[o.File] = h
		if before != nil {
			good[o.File] = before
		} else {
			delete(good, o.File)
		}
	}
	r.good = good
	return found
}

// holdBack puts the accepted content of files in place that still have the content
// that was refused.
func (r *Reader) holdBack(current version) (problems []Problem) {
	for name, h := range r.held {
		if f := current[name]; f == nil || f.sum != h.refused {
			delete(r.held, name)
			continue
		}
		if before := r.accepted[name]; before != nil {
			current[name] = before
		} else {
			delete(current, name)
		}
		problems = append(problems, h.problems...)
	}
	return problems
}
