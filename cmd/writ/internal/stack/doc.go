// Package stack runs a whole mesh on one machine: the five services of Writ, and
// for each replica of a LocalWorkload its program and a real Envoy, and a
// gateway for each Gateway object. It needs no root, no container and no
// Kubernetes. It is behind `writ up`.
//
// It plans (which processes, at which loopback addresses), supervises (a process
// that dies is started again) and reports; it decides nothing about traffic and
// holds no key. The processes meet over sockets alone, as they would on several
// machines.
package stack
