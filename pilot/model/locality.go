package model

import "strings"

// Labels that are about a place.
const (
	NetworkLabel = "topology.istio.io/network"
	RegionLabel  = "topology.kubernetes.io/region"
	ZoneLabel    = "topology.kubernetes.io/zone"
	SubzoneLabel = "topology.istio.io/subzone"
	HostLabel    = "kubernetes.io/hostname"
)

// LocalityOf reads region/zone/subzone from the labels that Kubernetes and Istio give to
// nodes and pods; it is empty if they say nothing.
func LocalityOf(labels map[string]string) string {
	if l := labels["istio-locality"]; l != "" {
		return strings.ReplaceAll(l, ".", "/")
	}
	return strings.TrimRight(strings.Join([]string{labels[RegionLabel], labels[ZoneLabel], labels[SubzoneLabel]}, "/"), "/")
}
