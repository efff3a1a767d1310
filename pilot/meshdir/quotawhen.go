package meshdir

import (
	"strings"
	"unicode"

	"github.com/writ-mesh/writ/pilot/condition"
	"github.com/writ-mesh/writ/pilot/model"
)

// maxClaimSteps bounds how deep a claim may be in others: each step is a comparison.
const maxClaimSteps = 8

// quotaWhen is a condition of a match. Its form is that of AuthorizationPolicies, of
// whose keys it has one.
type quotaWhen struct {
	Key    string   `json:"key"`
	Values []string `json:"values"`
}

// claimNamed is the name of a claim as [condition.Find] gives it.
func (w *quotaWhen) claimNamed() (name string, ok bool) {
	k, name, ok := condition.Find(w.Key)
	if !ok || k.Name != condition.Claims {
		return "", false
	}
	for part := range strings.SplitSeq(name, "][") {
		if part == "" || strings.ContainsAny(part, "[]") {
			return "", false
		}
	}
	return name, true
}

// checkQuotaWhen checks a condition of a match.
func (c *checker) checkQuotaWhen(at string, w *quotaWhen) {
	if _, ok := w.claimNamed(); !ok || strings.ContainsFunc(w.Key, unicode.IsControl) {
		c.errorf(at+".key", "%q is not a claim: write request.auth.claims[name]; all else has a list of its own", shorten(w.Key))
	}
	if n := strings.Count(w.Key, "["); n > maxClaimSteps {
		c.errorf(at+".key", "%q is a claim within %d others: at most %d", shorten(w.Key), n-1, maxClaimSteps-1)
	}
	if len(w.Values) == 0 {
		c.errorf(at+".values", "is empty: name the values of the claim")
	}
	if n := len(w.Values); n > maxQuotaValues {
		c.errorf(at+".values", "%d are too many: at most %d", n, maxQuotaValues)
	}
	c.noEmpty(at+".values", w.Values)
	for i, v := range w.Values {
		switch {
		case strings.ContainsFunc(v, unicode.IsControl):
			c.errorf(index(at+".values", i), "%q has a sign that is not compared", shorten(v))
		case strings.HasPrefix(v, "*") || strings.HasSuffix(v, "*"):
			c.errorf(index(at+".values", i), "%q: claims are compared as a whole here: write out what is meant, without *", shorten(v))
		}
	}
}

// claim gives a checked condition.
func (w *quotaWhen) claim() model.QuotaClaim {
	name, _ := w.claimNamed() // checked before
	return model.QuotaClaim{Name: name, Values: w.Values}
}
