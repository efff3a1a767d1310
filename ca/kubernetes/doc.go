// Package kubernetes serves a Kubernetes cluster: it follows the service accounts of
// some of its namespaces, and the pods that run as them if asked to, tells which
// identities they have and on which nodes, and keeps a Secret for each account with a
// key, its certificate and the roots, for pods that mount them instead of asking a
// node agent.
//
// New makes a Cluster, Run keeps it up to date. Placed is what the registrations of
// the authority follow; Secrets run beside, and Report says for the rotation of a root
// which of them are not there yet.
//
// Guarantees: only the namespaces that are named are looked at. Nothing is concluded
// from a list that is not whole or from a watch that is broken: what was known stays.
// A Secret that somebody else made is never changed, and no other is read: lists have
// metadata only. Of every Secret the content is checked before it is believed,
// whoever wrote it, and several authorities may do all this beside each other.
//
// Failure: while the API is away nothing changes, and Secrets live on what is left of
// their certificates, half of their life at least.
//
// Not here: issuing and recording, which the authority does.
//
// Sources: Kubernetes API concepts, "Efficient detection of changes"
// (https://kubernetes.io/docs/reference/using-api/api-concepts/).
package kubernetes
