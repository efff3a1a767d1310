package explain

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/writ-mesh/writ/pilot/model"
)

// revoked asks whether all certificates of the called workload are revoked, to which
// callers' Envoys send nothing, or of the caller, which is what the called Envoy asks
// first. Which certificate a caller would show nobody knows.
func (l *life) revoked() error {
	if l.r.Principal == "" {
		return nil
	}
	if !l.q.Live {
		l.revocations = append(l.revocations, "whether the certificate of "+l.r.Principal+" is revoked: it is taken for good")
		return nil
	}
	if called := spiffeScheme + principalOf(l.m, l.to.proxy); l.m.Revoked.Identity(called) {
		l.refuse(Step{Name: "Revocation", Runs: "Envoy of the caller", By: "Revocation " + called, Detail: "every certificate of the called workload is revoked"}, 503)
		return nil
	}
	id := spiffeScheme + l.r.Principal
	s := Step{Name: "Revocation", Runs: l.envoy(), By: "Revocation " + id}
	if l.m.Revoked.Identity(id) {
		s.Detail = "every certificate of the caller is revoked"
		l.refuse(s, 403)
		return nil
	}
	var serials []string
	for _, c := range l.m.Revoked.Certificates {
		if c.SPIFFEID == id {
			serials = append(serials, c.Serial)
		}
	}
	if len(serials) > 0 {
		s.By, s.Result = "", notDecided
		s.Detail = fmt.Sprintf("of the caller %d %s revoked (%s): whoever shows one is refused, with another one it goes on",
			len(serials), map[bool]string{true: "certificate is", false: "certificates are"}[len(serials) == 1], shortList(serials))
		l.pass(s)
	}
	return nil
}

// shortList names the newest.
func shortList(serials []string) string {
	if n := len(serials) - maxNames; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(serials[n:], ", "), n)
	}
	return strings.Join(serials, ", ")
}

// revokedTokens asks about every token that was verified.
func (l *life) revokedTokens() error {
	if len(l.accepted) == 0 {
		return nil
	}
	if l.d.Revoked == nil {
		l.revocations = append(l.revocations, "whether the token is revoked: it is taken for good")
		return nil
	}
	for _, claims := range l.accepted {
		reason, err := l.d.Revoked(claims)
		if err != nil {
			return err
		}
		if reason != "" {
			l.refuse(Step{Name: "TokenRevocation", Runs: l.envoy(), By: "TokenRevocation " + reason, Detail: "the token is revoked"}, 403)
			return nil
		}
	}
	return nil
}

// addRevoked refuses the identities of which every certificate is revoked, and if it is
// the called workload's, everybody who would see that.
func (s *sets) addRevoked() {
	if s.m.Revoked.Identity(spiffeScheme + principalOf(s.m, s.proxy)) {
		s.deny = append(s.deny, predicates{s.is(principalVar, "anybody of the mesh", spiffeScheme+".*")})
	}
	var ids []string
	for _, i := range s.m.Revoked.Identities {
		ids = append(ids, regexp.QuoteMeta(i.SPIFFEID))
	}
	if len(ids) > 0 {
		s.deny = append(s.deny, predicates{s.is(principalVar, "revoked", strings.Join(ids, "|"))})
	}
}

// unknownOf says what of revocations and lists is not in an answer about everybody.
func (s *side) unknownOf(m *model.Mesh, live bool) []string {
	var out []string
	if !live {
		out = append(out, "what is revoked only a mesh that runs knows: ask with --live")
	}
	switch n := len(m.Revoked.Certificates); {
	case n == 1:
		out = append(out, "1 certificate is revoked: whoever shows it is refused")
	case n > 1:
		out = append(out, fmt.Sprintf("%d certificates are revoked: whoever shows one of them is refused", n))
	}
	if live && len(s.issuers) > 0 {
		out = append(out, "a token that is revoked is refused, see writ revoke ls")
	}
	for _, list := range s.policies.Lists {
		if missing(m, list) {
			out = append(out, unknownList(list))
		}
	}
	return out
}
