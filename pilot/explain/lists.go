package explain

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/writ-mesh/writ/pilot/condition"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
	"github.com/writ-mesh/writ/pilot/security/region"
)

// lists asks the AccessLists, each of which has to let the request pass.
func (l *life) lists() error {
	for _, list := range l.policies.Lists {
		s := Step{Name: "AccessList", Runs: l.envoy(), By: list.ID(), At: place(list.Ref), Result: Allowed}
		switch {
		case missing(l.m, list) && l.q.Live:
			s.Detail = "no good list has come from its source yet"
		case missing(l.m, list):
			s.Detail = "the entries of its source are not known here: it is taken as before they came"
			l.unknown = append(l.unknown, unknownList(list))
		}
		rule, refused := eval.Refuses(l.m, l.domains(), list, &l.r)
		if !refused {
			l.pass(s)
			continue
		}
		s.By = ruleName(&list.Meta, rule)
		what := map[int]string{0: "its overrides that deny", 1: "the list"}[rule]
		s.Detail = strings.TrimPrefix(s.Detail+"; by "+what, "; ")
		if list.Observe {
			s.Result, s.Detail = recorded, "it would refuse, and only observes; "+s.Detail
			l.pass(s)
			continue
		}
		l.refuse(s, 403)
		return nil
	}
	return nil
}

func unknownList(list *model.AccessList) string {
	return "what the source of " + list.ID() + " gives: it is taken as before it gave anything"
}

func missing(m *model.Mesh, list *model.AccessList) bool {
	if list.From == nil {
		return false
	}
	_, ok := m.Fetched[list.Namespace+"/"+list.Name]
	return !ok
}

// listClause stands for what a list looks at, as a clause does.
func listClause(list *model.AccessList) eval.Clause {
	switch list.Match {
	case model.AccessHost:
		return eval.Clause{Key: eval.HostKey}
	case model.AccessPath:
		return eval.Clause{Key: eval.PathKey}
	}
	return eval.Clause{Key: list.Match}
}

// lists are those that refuse and of which sets of requests can be made.
func (s *side) lists() []*model.AccessList {
	return slices.DeleteFunc(slices.Clone(s.policies.Lists), func(l *model.AccessList) bool { return l.Observe || !s.computable(l) })
}

// computable is false for expressions with anchors within.
func (s *side) computable(l *model.AccessList) bool {
	if l.Form != model.AccessRegex {
		return true
	}
	if l.Match == model.AccessPath {
		return false // an expression for a path knows nothing of the query that the variable has
	}
	for _, t := range eval.Tests(s.m, l) {
		for _, e := range slices.Concat(t.Entries, t.Except) {
			if region.Check(e) != nil {
				return false
			}
		}
	}
	return true
}

// addLists makes terms of what lists refuse.
func (s *sets) addLists() {
	for _, list := range s.lists() {
		c := listClause(list)
		k, _, found := condition.Find(list.Match)
		if s.known(&c) || s.tcp() && (!found || k.HTTPOnly) {
			if _, refused := eval.Refuses(s.m, domainsOf(s.m), list, s.request()); refused {
				s.deny = append(s.deny, predicates{})
			}
			continue
		}
		for _, t := range eval.Tests(s.m, list) {
			s.deny = append(s.deny, predicates{
				s.entries(list, t.Entries, t.Else, t.Else), s.entries(list, t.Except, true, true),
			})
		}
	}
}

// entries wants a value that is one of entries, or with negated one that is not.
func (s *sets) entries(list *model.AccessList, entries []string, letsIn, negated bool) predicate {
	c := listClause(list)
	name := s.space.variable(&c)
	p := predicate{v: s.space.vars[name], negated: negated}
	if name == principalVar {
		p.somebody = true
	}
	for _, e := range entries {
		if name == sourceVar || name == remoteVar {
			if block, err := model.Network(e); err == nil {
				p.tests = append(p.tests, p.v.Within("in "+e, block))
			}
			continue
		}
		p.tests = append(p.tests, p.v.Match(fmt.Sprintf("%s of %s", e, list.ID()), s.entry(list, e, letsIn)))
	}
	return p
}

// entry gives the expression that an entry is.
func (s *sets) entry(list *model.AccessList, entry string, letsIn bool) string {
	k, name, _ := condition.Find(list.Match)
	text := func(e string) string {
		switch list.Form {
		case model.AccessRegex:
			return "(?:" + e + ")"
		case model.AccessStringsAnyCase:
			return "(?i:" + regexp.QuoteMeta(e) + ")"
		case model.AccessStrings, model.AccessAddresses:
		}
		return regexp.QuoteMeta(e)
	}
	switch {
	case list.Match == model.AccessPath:
		return text(entry) + anyQuery
	case list.Match == model.AccessHost && list.Form == model.AccessRegex:
		return "(?i)(?:" + entry + `)\.?(?::[0-9]*)?`
	case list.Match == model.AccessHost:
		return "(?i)" + regexp.QuoteMeta(entry) + `\.?(?::.*)?`
	case k.Name == condition.Principal:
		e := text(entry)
		td, rest, _ := strings.Cut(entry, "/")
		if list.Form != model.AccessRegex && strings.Count(entry, "/") == 4 && (slices.Contains(s.space.domains.Own, td) || td == "cluster.local") {
			e += "|(?:" + alternatives(s.space.domains.Own) + ")/" + text(rest)
		}
		return spiffeScheme + "(?:" + e + ")"
	case k.Name == condition.Namespace:
		of := "[^/]*"
		if letsIn && len(s.space.domains.Federated) > 0 {
			of = "(?:" + alternatives(s.space.domains.Own) + ")"
		}
		return spiffeScheme + of + "/ns/" + globExpression(entry) + "/sa/[^/]*"
	case k.Name == condition.TokenPrincipal:
		iss, sub := entry, ""
		if i := strings.LastIndexByte(entry, '/'); i >= 0 {
			iss, sub = entry[:i], entry[i+1:]
		}
		return regexp.QuoteMeta(iss) + tokenJoint + regexp.QuoteMeta(sub)
	case name == "iss" && k.Name == condition.Claims:
		return text(entry) + tokenJoint + ".*"
	case name == "sub" && k.Name == condition.Claims:
		return "[^\x00\x01]+" + tokenJoint + text(entry)
	}
	return text(entry)
}
