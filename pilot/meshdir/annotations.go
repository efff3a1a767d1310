package meshdir

import (
	"maps"
	"slices"
	"strings"

	"istio.io/api/annotation"
	"istio.io/api/label"

	"github.com/writ-mesh/writ/pilot/model"
)

const exportToAnnotation = "networking.istio.io/exportTo"

// checkAnnotations refuses Istio's annotations that are not for users, and warns of those
// that nothing goes by, and of labels.
func checkAnnotations(r *report, o *object) {
	for _, name := range slices.Sorted(maps.Keys(o.meta.Annotations)) {
		prefix, _, _ := strings.Cut(name, "/")
		at := "metadata.annotations[" + name + "]"
		switch {
		case prefix != "istio.io" && !strings.HasSuffix(prefix, ".istio.io"):
		case name == model.DryRunAnnotation && o.meta.Kind != "AuthorizationPolicy":
			r.errorf(at, "%q is for AuthorizationPolicy only: remove it", name+": "+o.meta.Annotations[name])
		case prefix == "internal.istio.io":
			r.errorf(at, "is Istio's own and may not be set: remove it")
		case name == exportToAnnotation && o.meta.Kind != "Service":
			r.warnf(at, "is for a Service, and has no effect on other kinds")
		case name == model.DryRunAnnotation, name == exportToAnnotation, slices.Contains(byMachines, name):
		default:
			r.warnf(at, "%s", annotationProblem(name))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(o.meta.Labels)) {
		switch v := o.meta.Labels[name]; {
		case name == label.SidecarInject.Name && v == "false":
			r.warnf("metadata.labels["+name+"]", "it has no effect: every workload has a sidecar")
		case (name == label.IoIstioDataplaneMode.Name || name == label.IoIstioUseWaypoint.Name) && v != "none":
			r.warnf("metadata.labels["+name+"]", "it has no effect: there is no ambient mode, every workload has a sidecar")
		}
	}
}

// byMachines are annotations that Istio itself writes into objects.
var byMachines = []string{annotation.SidecarStatus.Name, annotation.GatewayControllerVersion.Name, annotation.IoIstioRev.Name}

func annotationProblem(name string) string {
	var known []string
	for _, a := range annotation.AllResourceAnnotations() {
		if a.Name == name {
			return "it has no effect in this version"
		}
		known = append(known, a.Name)
	}
	return "Istio has no such annotation" + suggestion(name, known)
}

// suggestion is didYouMean without a list of all candidates.
func suggestion(word string, candidates []string) string {
	if near := nearest(word, candidates); near != "" {
		return `, did you mean "` + near + `"?`
	}
	return ": remove it"
}
