package model

import "strconv"

// DryRunAnnotation is Istio's name of the annotation that, as a boolean on an
// AuthorizationPolicy, makes it decide and record, and refuse nothing.
const DryRunAnnotation = "istio.io/dry-run"

// DryRun says whether p refuses nothing.
func DryRun(p *AuthorizationPolicy) bool {
	on, err := strconv.ParseBool(p.Annotations[DryRunAnnotation])
	return err == nil && on
}
