package model

// RequireAnnotation is the annotation of a RequestAuthentication that says whether
// requests have to have its tokens: one of the values below, RequireNone if it is not
// there.
const RequireAnnotation = "policy.writ.mesh/require"

// The values of RequireAnnotation.
const (
	// RequireNone is Istio's: a request without token passes, a bad token is refused.
	RequireNone = "none"
	// RequireAny refuses a request without a good token of one of the rules.
	RequireAny = "any"
	// RequireAll refuses a request without a good token of each rule.
	RequireAll = "all"
	// RequireObserve refuses nothing: good tokens are known to policies, bad ones are as
	// none.
	RequireObserve = "observe"
)

// TokenRequirements are all values of RequireAnnotation.
func TokenRequirements() []string {
	return []string{RequireNone, RequireAny, RequireAll, RequireObserve}
}

// TokenRequirement is what a RequestAuthentication asks for. What is not a value counts
// as RequireAll, so that a mistake refuses.
func TokenRequirement(ra *RequestAuthentication) string {
	switch v, there := ra.Annotations[RequireAnnotation]; {
	case !there:
		return RequireNone
	case v == RequireNone || v == RequireAny || v == RequireObserve:
		return v
	}
	return RequireAll
}
