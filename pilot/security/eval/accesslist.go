package eval

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/writ-mesh/writ/pilot/condition"
	"github.com/writ-mesh/writ/pilot/model"
)

// AccessTest is one of the two tests by which an AccessList refuses: of its
// overrides that deny (rule 0 in the name of a refusal), and of the list (rule 1).
// It refuses a value that is one of Entries, or with Else one that is not, unless it
// is one of Except. A request without the value has one that is in neither.
type AccessTest struct {
	Entries, Except []string
	Else            bool
}

// Tests gives the tests of a list, with the entries that came from elsewhere. As
// long as none came a list is closed: what its own entries let in gets in, and of a
// list of who may not, what its overrides allow. With whenUnavailable: Allow it is
// as if nothing were there to come.
func Tests(m *model.Mesh, list *model.AccessList) [2]AccessTest {
	first := AccessTest{Entries: list.DenyFirst}
	entries, missing := list.Entries, false
	if list.From != nil {
		fetched, ok := m.Fetched[list.Namespace+"/"+list.Name]
		if missing = !ok || fetched.Expired; !missing {
			entries = slices.Concat(list.Entries, fetched.Entries)
		}
	}
	second := AccessTest{Entries: entries, Except: list.AllowFirst, Else: !list.Deny}
	switch {
	case missing && list.FailOpen && !list.Deny:
		second = AccessTest{}
	case missing && !list.FailOpen && list.Deny:
		second = AccessTest{Except: list.AllowFirst, Else: true}
	}
	return [2]AccessTest{first, second}
}

// Refuses says whether a list refuses a request, and by which of its tests. What a
// list only observes it says as well.
func Refuses(m *model.Mesh, d Domains, list *model.AccessList, r *Request) (rule int, refused bool) {
	v := accessValue{list: list, domains: d, r: r}
	for i, t := range Tests(m, list) {
		// On a list of those who may, an entry lets in; so does an exception.
		if v.in(t.Entries, t.Else) != t.Else && !v.in(t.Except, true) {
			return i, true
		}
	}
	return 0, false
}

// accessValue is what a list looks up of a request.
type accessValue struct {
	list    *model.AccessList
	domains Domains
	r       *Request
}

func (v accessValue) in(entries []string, letsIn bool) bool {
	k, name, ok := condition.Find(v.list.Match)
	if v.r.TCP && (!ok || k.HTTPOnly) {
		return false
	}
	return slices.ContainsFunc(entries, func(entry string) bool { return v.is(k.Name, name, entry, letsIn) })
}

func (v accessValue) is(key, name, entry string, letsIn bool) bool {
	r := v.r
	switch key {
	case condition.SourceIP:
		return contains(entry, r.Source)
	case condition.RemoteIP:
		return contains(entry, r.Remote)
	case condition.SNI:
		return v.text(entry, r.SNI)
	case condition.Principal:
		return v.principal(entry)
	case condition.Namespace:
		c := Clause{domains: &v.domains, refuses: true, Negated: letsIn}
		namespace, _, ok := c.account(r.Principal)
		return ok && glob(entry, namespace)
	case condition.TokenPrincipal:
		iss, sub := entry, ""
		if slash := strings.LastIndex(entry, "/"); slash >= 0 {
			iss, sub = entry[:slash], entry[slash+1:]
		}
		tokenSub, ok := r.Claims["sub"].(string)
		return ok && text(r.Claims["iss"]) == iss && tokenSub == sub
	case condition.Headers:
		lines := r.Header(name)
		if letsIn && len(lines) > 1 { // what lets in is the whole, what refuses any line
			lines = []string{strings.Join(lines, ",")}
		}
		return slices.ContainsFunc(lines, func(line string) bool { return v.text(entry, line) })
	case condition.Claims:
		return v.claim(entry, Claim(r.Claims, name))
	}
	switch v.list.Match {
	case model.AccessHost:
		return v.host(entry)
	case model.AccessPath:
		return v.text(entry, r.Path)
	}
	return false
}

func contains(entry string, a netip.Addr) bool {
	p, err := model.Network(entry)
	return err == nil && p.Contains(a.Unmap())
}

func (v accessValue) text(entry, value string) bool {
	switch v.list.Form {
	case model.AccessStringsAnyCase:
		return lower(entry) == lower(value)
	case model.AccessRegex:
		return whole(entry, value)
	case model.AccessStrings, model.AccessAddresses:
	}
	return entry == value
}

// lower knows ASCII only, as Envoy does.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

func whole(expression, value string) bool {
	re, err := regexp.Compile("^(?:" + expression + ")$")
	return err == nil && re.MatchString(value)
}

func (v accessValue) host(entry string) bool {
	if v.list.Form == model.AccessRegex {
		return whole("(?i)(?:"+entry+`)\.?(?::.*)?`, v.r.Host)
	}
	return anyFormHost(strings.ToLower(entry), strings.ToLower(v.r.Host))
}

func (v accessValue) principal(entry string) bool {
	if v.r.Principal == "" {
		return false
	}
	if v.text(entry, v.r.Principal) {
		return true
	}
	// What names one trust domain of the mesh means all of them.
	td, rest, _ := strings.Cut(entry, "/")
	own, ownRest, _ := strings.Cut(v.r.Principal, "/")
	ours := slices.Contains(v.domains.Own, td) || td == "cluster.local"
	return v.list.Form != model.AccessRegex && strings.Count(entry, "/") == 4 && ours && slices.Contains(v.domains.Own, own) && v.text(rest, ownRest)
}

func (v accessValue) claim(entry string, claim any) bool {
	switch c := claim.(type) {
	case string:
		return v.text(entry, c)
	case []string:
		return slices.ContainsFunc(c, func(s string) bool { return v.text(entry, s) })
	case []any:
		return slices.ContainsFunc(c, func(one any) bool { s, ok := one.(string); return ok && v.text(entry, s) })
	}
	return false
}
