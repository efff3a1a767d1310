package explain

import (
	"fmt"
	"slices"
	"strings"

	"github.com/writ-mesh/writ/pilot/condition"
	"github.com/writ-mesh/writ/pilot/security/eval"
)

// maxComparisons bounds the pairs of a value of a changed rule and one of an unchanged
// rule that are compared to leave the latter out.
const maxComparisons = 50_000_000

// onlyRulesDiffer gives the two sides without the rules that both have and that match
// no request which one of the changed rules matches. Where no changed rule matches both
// decide the same, and where one does these do not, so that nothing of the difference
// is lost. With thousands of policies of which one was edited little is left.
//
// The sides stay as they are where more differs than rules.
func onlyRulesDiffer(a, b *side) (*side, *side) {
	if !a.sameBut(b) || a.hasAllow != b.hasAllow {
		return a, b
	}
	groups := func(s *side) [3][]*eval.Rule { return [3][]*eval.Rule{s.custom, s.deny, s.allow} }
	x, y := groups(a), groups(b)
	var changed []reach
	var unchanged [2][3]map[*eval.Rule]bool
	total, changes := 0, 0
	for g := range x {
		for i, pair := range [2][2][]*eval.Rule{{x[g], y[g]}, {y[g], x[g]}} {
			there := map[string]bool{}
			for _, r := range pair[1] {
				there[meaning(r)] = true
			}
			unchanged[i][g] = map[*eval.Rule]bool{}
			for _, r := range pair[0] {
				of := a.reach(r)
				if there[meaning(r)] {
					unchanged[i][g][r] = true
					total += of.size()
				} else {
					changed = append(changed, of)
					changes += of.size()
				}
			}
		}
	}
	if total*changes > maxComparisons {
		return a, b
	}
	lessOf := func(s *side, rules [3][]*eval.Rule, same [3]map[*eval.Rule]bool) *side {
		out := *s
		for g, into := range []*[]*eval.Rule{&out.custom, &out.deny, &out.allow} {
			*into = slices.DeleteFunc(slices.Clone(rules[g]), func(r *eval.Rule) bool {
				if !same[g][r] {
					return false
				}
				of := s.reach(r)
				return !slices.ContainsFunc(changed, of.meets)
			})
		}
		return &out
	}
	return lessOf(a, x, unchanged[0]), lessOf(b, y, unchanged[1])
}

// meaning is equal for rules that match the same requests at sides alike.
func meaning(r *eval.Rule) string {
	var b strings.Builder
	write := func(clauses []eval.Clause) {
		for _, c := range clauses {
			// A service account without namespace is of the policy's.
			fmt.Fprintf(&b, "%q %v %q;", c.Key, c.Negated, c.Values)
		}
		b.WriteByte('|')
	}
	fmt.Fprintf(&b, "%s ", r.Policy.Namespace)
	for _, alternatives := range [][][]eval.Clause{r.From, r.To, {r.When}} {
		for _, clauses := range alternatives {
			write(clauses)
		}
		b.WriteByte('/')
	}
	return b.String()
}

// reach has the beginnings or whole texts of what a rule asks of the caller's identity,
// the path and the method; nil where it takes others too.
type reach map[string][]wanted

type wanted struct {
	text   string
	prefix bool
}

func (s *side) reach(r *eval.Rule) reach {
	out := reach{}
	for _, key := range []string{condition.Principal, eval.PathKey, eval.MethodKey} {
		for _, alternatives := range [][][]eval.Clause{r.From, r.To, {r.When}} {
			if all, ok := s.wantedOf(key, alternatives); ok {
				out[key] = all
				break
			}
		}
	}
	return out
}

// wantedOf is not ok unless each alternative bounds the key.
func (s *side) wantedOf(key string, alternatives [][]eval.Clause) ([]wanted, bool) {
	var out []wanted
	for _, clauses := range alternatives {
		i := slices.IndexFunc(clauses, func(c eval.Clause) bool { return c.Key == key && !c.Negated })
		if i < 0 {
			return nil, false
		}
		for _, v := range clauses[i].Values {
			w, ok := s.wantedValue(key, v)
			if !ok {
				return nil, false
			}
			out = append(out, w)
		}
	}
	return out, true
}

func (s *side) wantedValue(key, value string) (wanted, bool) {
	if key == condition.Principal {
		// The names of the mesh's own trust domain stand for each other.
		domain, rest, _ := strings.Cut(value, "/")
		if domain == "cluster.local" || slices.Contains(domainsOf(s.m).Own, domain) {
			value = "/" + rest
		}
		if strings.Contains(domain, "*") {
			return wanted{}, false
		}
	}
	text, prefix := strings.CutSuffix(value, "*")
	return wanted{text, prefix}, !strings.ContainsAny(text, "*{")
}

// size is what it costs to compare it, 1 at least.
func (r reach) size() int {
	n := 1
	for _, all := range r {
		n += len(all)
	}
	return n
}

// meets is false if no request is in both.
func (r reach) meets(o reach) bool {
	for key, all := range r {
		others, bounded := o[key]
		if bounded && !slices.ContainsFunc(all, func(a wanted) bool { return slices.ContainsFunc(others, a.meets) }) {
			return false
		}
	}
	return true
}

func (w wanted) meets(o wanted) bool {
	switch {
	case w.prefix && o.prefix:
		return strings.HasPrefix(w.text, o.text) || strings.HasPrefix(o.text, w.text)
	case w.prefix:
		return strings.HasPrefix(o.text, w.text)
	case o.prefix:
		return strings.HasPrefix(w.text, o.text)
	}
	return w.text == o.text
}
