package explain

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"

	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/pilot/model"
)

// jwtRule is one rule of a RequestAuthentication.
type jwtRule struct {
	policy *model.RequestAuthentication
	rule   *security.JWTRule
}

// jwtRules are those of the workload, in the order of Envoy's providers.
func (l *life) jwtRules() []jwtRule {
	var out []jwtRule
	for _, ra := range l.policies.JWT {
		for _, r := range ra.Spec.GetJwtRules() {
			out = append(out, jwtRule{ra, r})
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].rule.GetIssuer() < out[j].rule.GetIssuer() })
	return out
}

// token is RequestAuthentication: a request without a token passes, one with a token
// that no rule accepts is refused.
func (l *life) token() error {
	rules := l.jwtRules()
	if l.r.TCP || len(rules) == 0 {
		return nil
	}
	s := Step{Name: "RequestAuthentication", Runs: l.envoy(), Result: Allowed}
	if l.r.Method == "OPTIONS" && l.r.Headers["origin"] != "" && l.r.Headers["access-control-request-method"] != "" {
		s.Detail = "a CORS preflight is not asked for a token"
		l.pass(s)
		return nil
	}
	if verdict := l.require(s, rules); verdict != nil {
		status := 401
		if verdict.WrongAudience {
			status = 403
		}
		s.By, s.Detail = l.tokenPolicies()+" ("+verdict.Reason+")", verdict.Reason
		s.At = place(verdict.by.policy.Ref)
		l.refuse(s, status)
	} else if l.r.Claims == nil {
		s.Detail = "no token: the request passes without one"
		l.pass(s)
	}
	return nil
}

// refusal is why a request is refused for its token, or for want of one.
type refusal struct {
	Verified
	by jwtRule
}

// require goes through the rules: first those of policies that require or observe
// tokens, then the others, of which a token that is good for any rule is good enough.
func (l *life) require(s Step, rules []jwtRule) *refusal {
	headers, claims := maps.Clone(l.r.Headers), false
	var none []jwtRule
	for _, ra := range l.policies.JWT {
		own := slices.DeleteFunc(slices.Clone(rules), func(r jwtRule) bool { return r.policy != ra })
		requirement := model.TokenRequirement(ra)
		if len(own) == 0 {
			continue
		}
		if requirement == model.RequireNone {
			none = append(none, own...)
			continue
		}
		good, bad := l.look(s, own, headers, requirement == model.RequireAll)
		claims = claims || good > 0
		switch {
		case requirement == model.RequireObserve, requirement == model.RequireAny && good > 0, good == len(own):
		case bad == nil:
			return &refusal{Verified{Reason: "a token is required"}, own[0]}
		default:
			return bad
		}
	}
	if good, bad := l.look(s, none, headers, false); good == 0 && !claims {
		return bad
	}
	return nil
}

// look takes over the first good token of some rules, or all of them. bad is the
// refusal that says most.
func (l *life) look(s Step, rules []jwtRule, headers map[string]string, all bool) (good int, bad *refusal) {
	for _, r := range rules {
		v, found := l.verify(r, headers)
		switch {
		case v.Claims != nil:
			good++
			l.accept(s, r, v)
			if !all {
				return good, bad
			}
		case found && (bad == nil || strings.Contains(bad.Reason, "issuer")):
			bad = &refusal{v, r}
		}
	}
	return good, bad
}

// verify is what comes of the tokens that a rule finds, all of which have to be good: the
// first that is not, or the last.
func (l *life) verify(r jwtRule, headers map[string]string) (v Verified, found bool) {
	for _, raw := range l.d.Find(r.rule, headers, l.path) {
		if v, found = l.d.Verify(raw, r.rule, l.d.Now), true; v.Claims == nil {
			break
		}
	}
	return v, found
}

// accept takes a token's claims over, and does with the headers what the rule says.
func (l *life) accept(s Step, r jwtRule, v Verified) {
	s.By, s.At, s.Detail = r.policy.ID(), place(r.policy.Ref), "the token of "+r.rule.GetIssuer()+" is valid"
	if v.Unknown {
		s.Result, s.Detail = Depends, v.Reason+"; from here on it is taken for valid"
		l.depends = true
	}
	if !r.rule.GetForwardOriginalToken() {
		l.removeToken(r.rule)
	}
	if h := r.rule.GetOutputPayloadToHeader(); h != "" {
		if payload, err := json.Marshal(v.Claims); err == nil {
			l.setHeader(h, base64.RawURLEncoding.EncodeToString(payload))
		}
	}
	for _, h := range r.rule.GetOutputClaimToHeaders() {
		if text, ok := claimText(v.Claims, h.GetClaim()); ok {
			l.setHeader(h.GetHeader(), text)
		}
	}
	l.issuer, l.accepted = r.rule.GetIssuer(), append(l.accepted, v.Claims)
	l.r.Claims = normalizeClaims(v.Claims, r.rule.GetSpaceDelimitedClaims())
	l.pass(s)
}

// removeToken is what a rule that does not forward the token does.
func (l *life) removeToken(r *security.JWTRule) {
	if len(r.GetFromHeaders())+len(r.GetFromParams())+len(r.GetFromCookies()) == 0 {
		l.removeHeader("authorization")
	}
	for _, h := range r.GetFromHeaders() {
		name := strings.ToLower(h.GetName())
		if strings.HasPrefix(l.r.Headers[name], h.GetPrefix()) {
			l.removeHeader(name)
		}
	}
}

// claimText is a claim as a header; only plain values can be one.
func claimText(claims map[string]any, name string) (string, bool) {
	var at any = claims
	for part := range strings.SplitSeq(name, ".") {
		object, ok := at.(map[string]any)
		if !ok {
			return "", false
		}
		at = object[part]
	}
	switch v := at.(type) {
	case string:
		return v, true
	case bool:
		return strconv.FormatBool(v), true
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), true
	case json.Number:
		return v.String(), true
	case nil:
		return "", false
	}
	raw, err := json.Marshal(at)
	if err != nil {
		return "", false
	}
	return base64.StdEncoding.EncodeToString(raw), true
}

// normalizeClaims makes lists of the claims that hold several words (RFC 8693
// section 4.2), as the Envoy is told to.
func normalizeClaims(claims map[string]any, more []string) map[string]any {
	out := make(map[string]any, len(claims))
	for k, v := range claims {
		text, ok := v.(string)
		if ok && slices.Contains(append([]string{"scope", "permission"}, more...), k) {
			var list []any
			for _, word := range strings.Fields(text) {
				list = append(list, word)
			}
			out[k] = list
			continue
		}
		out[k] = v
	}
	return out
}

// tokenPolicies names those that have rules, as the header of Envoy's refusal does.
func (l *life) tokenPolicies() string {
	var out []string
	for _, ra := range l.policies.JWT {
		switch {
		case len(ra.Spec.GetJwtRules()) == 0:
		case len(out) == maxNames:
			return "RequestAuthentication " + strings.Join(out, ",")
		default:
			out = append(out, ra.Namespace+"/"+ra.Name)
		}
	}
	return "RequestAuthentication " + strings.Join(out, ",")
}
