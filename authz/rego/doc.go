// Package rego is the door to Open Policy Agent's evaluator: it compiles Rego, builds
// the input document from an ext_authz request and reads the decision.
//
// The main entry points are [Compile], which turns a [Source] and a query into a
// [Program], [NewInput], which gives the document that the OPA-Envoy plugin
// gives (https://www.openpolicyagent.org/docs/envoy), and [Program.Eval]. [Check]
// compiles and throws the result away, for commands that only validate.
//
// Guarantees: a Program is immutable and safe for concurrent use; Eval does no
// compilation, never panics and returns within its limit plus the time that one
// built-in function takes; a decision that is undefined, of the wrong form or
// failed is an error, which the caller has to take for a denial.
//
// The package does no I/O except when it loads the paths that a Source names,
// and, where Options.Network allows them, through Rego's own network functions.
package rego
