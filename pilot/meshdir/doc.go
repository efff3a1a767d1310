// Package meshdir reads a mesh directory: the only door through which
// configuration enters. It turns YAML files (Istio's kinds, a few of Kubernetes,
// and our own) and the list of running replicas into a model.Mesh.
//
// Reading is strict: an unknown field, a wrong type, a duplicate key or object,
// a dangling reference is a Problem that names file, line, object and field and
// says what to do. What Istio's validating webhook refuses is refused here, with
// the additions that a mesh without Kubernetes needs (a destination that no
// service has, a certificate file that does not parse).
//
// Parse is the pure core: file names and contents in, mesh and problems out.
// Reader is the loop around it. It never gives up a good state for a bad one: a
// file with an error keeps its last good content while other files move on, and
// a change that breaks a reference elsewhere is held back as a whole. Only the
// first read, which has nothing to fall back to, leaves out what is wrong.
//
// Kinds that are part of the product's contract but not of this version are
// refused by name, never ignored.
package meshdir
