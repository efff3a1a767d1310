package security

import (
	"math"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	exprpb "google.golang.org/genproto/googleapis/api/expr/v1alpha1"

	"github.com/writ-mesh/writ/pilot/condition"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
)

// ofHeader gives the header that a list is about, if it may come in several lines;
// empty for another list.
func ofHeader(list *model.AccessList) string {
	k, name, _ := condition.Find(list.Match)
	if name = strings.ToLower(name); k.Name != condition.Headers || name == "host" || strings.HasPrefix(name, ":") {
		return ""
	}
	return name
}

// headerPolicies are what policy is for a list about a header that may come in several
// lines. What is on a list of those who may not is refused with any of them, which Envoy
// compares one by one (decision 0016); what lets in has to be the whole, all lines
// joined, which is what an expression sees. Where that comes to too much for one, the
// lines are compared, and a second policy refuses what has a comma, as several lines
// have, unless an expression says that the whole lets in.
func (r accessRule) headerPolicies(t eval.AccessTest) ([]*rbacv3.Policy, error) {
	id, letsIn := andIDs(nil), t.Except
	switch {
	case t.Else:
		letsIn = slices.Concat(t.Entries, t.Except)
	case len(t.Entries) == 0:
		return nil, nil
	default:
		var err error
		if id, err = combined(eval.AccessTest{Entries: t.Entries}, r.principal, orIDs, andIDs, notID); err != nil {
			return nil, err
		}
	}
	refuse := func(id *rbacv3.Principal, condition *exprpb.Expr) *rbacv3.Policy {
		return &rbacv3.Policy{
			Permissions: []*rbacv3.Permission{{Rule: &rbacv3.Permission_Any{Any: true}}}, Principals: []*rbacv3.Principal{id}, Condition: condition,
		}
	}
	if len(letsIn) == 0 {
		return []*rbacv3.Policy{refuse(id, nil)}, nil
	}
	headers, name := field(ident("request"), "headers"), text(ofHeader(r.list))
	value, there := call("_[_]", headers, name), call("@in", name, headers)
	if is, ok := r.headerIs(value, letsIn); ok && len(is) == 1 {
		return []*rbacv3.Policy{refuse(id, call("_||_", call("!_", there), call("!_", is[0])))}, nil
	}
	lines, err := combined(eval.AccessTest{Entries: letsIn}, r.principal, orIDs, andIDs, notID)
	if err != nil {
		return nil, err
	}
	condition := call("_&&_", there, call("matches", value, text(",")))
	is, _ := r.headerIs(value, r.withComma(letsIn))
	for _, one := range is {
		condition = call("_&&_", condition, call("!_", one))
	}
	return []*rbacv3.Policy{refuse(andIDs([]*rbacv3.Principal{id, notID(lines)}), nil), refuse(id, condition)}, nil
}

const (
	// maxProgram is how large the program of an expression in a condition may be. Envoy
	// takes 100 instructions, and refuses all of a route configuration in which one has
	// more. RE2 does not count quite as Go does.
	maxProgram = 80
	// maxExpressions bounds the expressions in a condition: Envoy compiles them for each
	// request.
	maxExpressions = 8
)

// headerIs gives conditions one of which holds if a value is one of some entries; not
// ok if they do not say so of all.
func (r accessRule) headerIs(value *exprpb.Expr, entries []string) (is []*exprpb.Expr, ok bool) {
	if r.list.Form == model.AccessStrings {
		list := &exprpb.Expr_CreateList{}
		for _, e := range entries {
			list.Elements = append(list.Elements, text(e))
		}
		return []*exprpb.Expr{call("@in", value, &exprpb.Expr{ExprKind: &exprpb.Expr_ListExpr{ListExpr: list}})}, true
	}
	ok = true
	var groups []string
	left := 0
	for _, e := range entries {
		expression := r.expression(e)
		n := programSize(expression)
		switch {
		case n > maxProgram, n > left && len(groups) == maxExpressions:
			ok = false
		case n > left:
			groups, left = append(groups, expression), maxProgram-n
		default:
			groups[len(groups)-1] += "|" + expression
			left -= n
		}
	}
	for _, g := range groups {
		is = append(is, call("matches", value, text("^(?:"+g+")$")))
	}
	return is, ok
}

// withComma gives the entries that may be a value with a comma.
func (r accessRule) withComma(entries []string) []string {
	if r.list.Form == model.AccessRegex {
		return entries
	}
	return slices.DeleteFunc(slices.Clone(entries), func(e string) bool { return !strings.Contains(e, ",") })
}

// programSize is how many instructions of RE2 an expression has at most.
func programSize(expression string) int {
	parsed, err := syntax.Parse(expression, syntax.Perl)
	if err != nil {
		return math.MaxInt
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return math.MaxInt
	}
	const beyondASCII = 20 // a range of characters that are several bytes, at most
	n := 0
	for _, in := range program.Inst {
		n += 1 + len(in.Rune)
		if in.Op == syntax.InstRuneAny || in.Op == syntax.InstRuneAnyNotNL {
			n += beyondASCII
		}
		for _, c := range in.Rune {
			folded := in.Op != syntax.InstRune1 && syntax.Flags(in.Arg)&syntax.FoldCase != 0
			if c > unicode.MaxASCII || folded && strings.ContainsRune("kKsS", c) { // which have a third form
				n += beyondASCII
			}
		}
	}
	return n
}

// expression is an entry that is not a text as it stands, as an expression of RE2.
func (r accessRule) expression(entry string) string {
	if r.list.Form == model.AccessRegex {
		return "(?:" + entry + ")"
	}
	var out strings.Builder
	for _, c := range entry { // in any case of ASCII, as Envoy compares
		lower, upper := strings.ToLower(string(c)), strings.ToUpper(string(c))
		if c < 0x80 && lower != upper {
			out.WriteString("[" + lower + upper + "]")
		} else {
			out.WriteString(regexp.QuoteMeta(string(c)))
		}
	}
	return out.String()
}
