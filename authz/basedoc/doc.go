// Package basedoc keeps the data of policies, OPA's base documents, in little memory:
// a JSON text becomes one slice of bytes with an index, and a value of Rego is made of
// the part that an evaluation asks for, when it asks.
//
// The main entry is [New], a storage.Store for OPA. [Everywhere] makes OPA hand over the
// files of bundles as they are, and [Load] reads files as the arguments of `opa run`.
//
// Guarantees: what a store gives is what OPA's own store gives for the same files, value
// for value; a version that a transaction sees never changes, so [Store.Frozen] costs
// nothing; the bytes and the index hold no pointers, so that the collector passes over
// them. Looking up one value takes about as long with eight million entries as with
// eight.
//
// It keeps made values that are large, within bounds, because making them again is dear:
// an evaluation that asks for a large object as a whole, or walks through it, needs all
// of it as values, which take five to ten times the memory (see [Store.Warm]).
//
// It does not write into arrays: only delta bundles of OPA do, which authz refuses.
// A document in which an object has a name twice is read by OPA's own decoder, up to
// 32 MiB, and refused beyond. A document has less than 4 GiB.
package basedoc
