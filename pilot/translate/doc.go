// Package translate turns one revision of the mesh (model.Mesh) into the xDS
// resources of each proxy: clusters, endpoints, listeners and routes.
//
// New indexes the mesh once; Translator.Proxy gives the Snapshot of one proxy.
// The package is pure: the same mesh and proxy always give the same bytes, in
// the same order. What many proxies have in common (clusters, endpoints, the
// outbound routes of a namespace) is built once per Translator and shared by
// pointer, so a message of a Snapshot must never be changed.
//
// The meaning of VirtualService, DestinationRule, Gateway, ServiceEntry and
// Sidecar is the one that Istio documents. What policies mean is not decided
// here: package security compiles them and this package puts the result where
// it belongs.
//
// Where a rule cannot be expressed, the resource is left out rather than made
// wider, and every resource names the objects that shaped it (Resource.Sources),
// so that a rejection by Envoy can be blamed.
package translate
