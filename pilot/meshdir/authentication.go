package meshdir

import (
	"encoding/json"
	"net/url"
	"slices"
	"strconv"

	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwk"
	security "istio.io/api/security/v1beta1"
	apitype "istio.io/api/type/v1beta1"

	"github.com/writ-mesh/writ/pilot/model"
)

// policyTarget checks selector, targetRef and targetRefs of a policy.
func (c *checker) policyTarget(selector *apitype.WorkloadSelector, ref *apitype.PolicyTargetReference, refs []*apitype.PolicyTargetReference) {
	if selector != nil {
		c.selector("spec.selector.matchLabels", selector.MatchLabels)
		if len(selector.MatchLabels) == 0 {
			c.warnf("spec.selector", "without labels the policy holds for every workload of the namespace")
		}
	}
	if ref != nil {
		c.errorf("spec.targetRef", "is for waypoints and the Kubernetes Gateway API, which this version does not have: use selector")
	}
	if len(refs) > 0 {
		c.errorf("spec.targetRefs", "is for waypoints and the Kubernetes Gateway API, which this version does not have: use selector")
	}
}

func checkPeerAuthentication(c *checker) {
	p := c.object.spec.(*security.PeerAuthentication)
	c.policyTarget(p.Selector, nil, nil)
	if len(p.PortLevelMtls) > 0 && len(p.Selector.GetMatchLabels()) == 0 {
		c.errorf("spec.portLevelMtls", "needs a selector: ports are those of a workload")
	}
	if p.PortLevelMtls != nil && len(p.PortLevelMtls) == 0 {
		c.errorf("spec.portLevelMtls", "is empty: name a port, or remove it")
	}
	for port := range p.PortLevelMtls {
		c.port("spec.portLevelMtls["+strconv.Itoa(int(port))+"]", port)
	}
}

func checkRequestAuthentication(c *checker) {
	p := c.object.spec.(*security.RequestAuthentication)
	c.policyTarget(p.Selector, p.TargetRef, p.TargetRefs)
	if v, there := c.object.meta.Annotations[model.RequireAnnotation]; there && !slices.Contains(model.TokenRequirements(), v) {
		c.errorf("metadata.annotations["+model.RequireAnnotation+"]", "unknown value %q%s", shorten(v), didYouMean(v, model.TokenRequirements()))
	} else if len(p.JwtRules) == 0 && (v == model.RequireAny || v == model.RequireAll) {
		c.errorf("spec.jwtRules", "%s asks for tokens, and there is no rule for one", model.RequireAnnotation)
	}
	for i, rule := range p.JwtRules {
		at := index("spec.jwtRules", i)
		c.jwtRule(at, rule)
		for j, other := range p.JwtRules[:i] {
			if rule.Issuer != "" && rule.Issuer == other.Issuer {
				c.warnf(at+".issuer", "jwtRules[%d] has the same issuer", j)
			}
		}
	}
}

func (c *checker) jwtRule(at string, rule *security.JWTRule) {
	if rule.Issuer == "" && rule.JwksUri == "" {
		c.errorf(at+".issuer", "an issuer is missing: give the iss claim of the tokens")
	}
	c.jwks(at, rule)
	c.noEmpty(at+".audiences", rule.Audiences)
	c.noEmpty(at+".fromParams", rule.FromParams)
	c.noEmpty(at+".fromCookies", rule.FromCookies)
	c.noEmpty(at+".spaceDelimitedClaims", rule.SpaceDelimitedClaims)
	for i, h := range rule.FromHeaders {
		if place := index(at+".fromHeaders", i) + ".name"; !headerNameForm.MatchString(h.Name) {
			c.errorf(place, "%q is not the name of a header", shorten(h.Name))
		}
	}
	if h := rule.OutputPayloadToHeader; h != "" && !headerNameForm.MatchString(h) {
		c.errorf(at+".outputPayloadToHeader", "%q is not the name of a header", shorten(h))
	}
	for i, o := range rule.OutputClaimToHeaders {
		place := index(at+".outputClaimToHeaders", i)
		if o.Claim == "" {
			c.errorf(place+".claim", "a claim is missing")
		}
		if !plainHeaderForm.MatchString(o.Header) {
			c.errorf(place+".header", "%q is not the name of a header: use letters, digits, '-' and '_'", shorten(o.Header))
		}
	}
	c.duration(at+".timeout", rule.Timeout)
}

func (c *checker) jwks(at string, rule *security.JWTRule) {
	if rule.JwksUri != "" {
		if rule.Jwks != "" {
			c.errorf(at+".jwksUri", "only one of jwks and jwksUri can be given")
		}
		u, err := url.Parse(rule.JwksUri)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Port() != "" && !validPort(u.Port()) {
			c.errorf(at+".jwksUri", "%q is not an http or https URL", shorten(rule.JwksUri))
		}
	}
	if rule.Jwks == "" {
		return
	}
	set, err := jwk.Parse([]byte(rule.Jwks))
	if err != nil || !isKeySet(rule.Jwks) {
		c.errorf(at+".jwks", "not a JSON Web Key Set: write {\"keys\": [...]} (RFC 7517)")
		return
	}
	if set.Len() == 0 {
		c.warnf(at+".jwks", "the key set has no keys: no token can be verified")
	}
	for i := range set.Len() {
		key, _ := set.Key(i)
		switch private, err := jwk.IsPrivateKey(key); {
		case err != nil: // not an asymmetric key
			c.errorf(at+".jwks", "key %d is symmetric: whoever verifies could also sign; use an RSA, EC or OKP public key", i)
		case !verifies(key):
			c.errorf(at+".jwks", "key %d is of a kind that Envoy cannot verify with: use RSA, EC (P-256, P-384, P-521) or OKP (Ed25519)", i)
		case private:
			c.warnf(at+".jwks", "key %d is a private key: keep it where tokens are signed, and give its public half", i)
		}
	}
}

func (c *checker) noEmpty(at string, values []string) {
	for i, v := range values {
		if v == "" {
			c.errorf(index(at, i), "an empty value matches nothing: remove it")
		}
	}
}

// isKeySet tells a set from a single key, which Envoy does not take.
func isKeySet(text string) bool {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	return json.Unmarshal([]byte(text), &set) == nil && set.Keys != nil
}

// verifies leaves out keys that only agree on secrets (RFC 8037).
func verifies(key jwk.Key) bool {
	if okp, ok := key.(interface {
		Crv() (jwa.EllipticCurveAlgorithm, bool)
	}); ok && key.KeyType() == jwa.OKP() {
		curve, _ := okp.Crv()
		return curve == jwa.Ed25519()
	}
	return true
}
