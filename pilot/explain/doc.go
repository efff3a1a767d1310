// Package explain answers questions about the policies of a mesh, on the model and
// without any Envoy: what becomes of one request and why ([Request]), who may send
// it ([WhoCan]), and for which requests two meshes decide differently ([Diff]).
//
// It goes through what the Envoy of the called workload does, in its order: mutual
// TLS, CUSTOM providers, tokens, DENY, ALLOW, Rego, quotas. What other services
// decide, it asks of [Deciders]: authz is not imported here, and what nobody can
// tell beforehand, such as a provider's answer, is said to be so and never guessed.
//
// WhoCan and Diff are exact: they compute with sets of requests (package region),
// not with samples, and say where they cannot be.
package explain
