package security

import (
	"regexp"
	"slices"
	"strings"

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

// headerPolicy is policy for a list about a header that may come in several lines. What
// is on a list of those who may not is refused with any of them, which Envoy compares
// one by one (decision 0016); what lets in has to be the whole, all lines joined, which
// is what an expression sees.
func (r accessRule) headerPolicy(t eval.AccessTest) (*rbacv3.Policy, error) {
	p := &rbacv3.Policy{Permissions: []*rbacv3.Permission{{Rule: &rbacv3.Permission_Any{Any: true}}}, Principals: []*rbacv3.Principal{andIDs(nil)}}
	letsIn := t.Except
	switch {
	case t.Else:
		letsIn = slices.Concat(t.Entries, t.Except)
	case len(t.Entries) == 0:
		return nil, nil
	default:
		id, err := combined(eval.AccessTest{Entries: t.Entries}, r.principal, orIDs, andIDs, notID)
		if err != nil {
			return nil, err
		}
		p.Principals[0] = id
	}
	if len(letsIn) > 0 {
		p.Condition = r.headerIsNot(letsIn)
	}
	return p, nil
}

// headerIsNot holds for a request whose header is none of some entries, or not there.
func (r accessRule) headerIsNot(entries []string) *exprpb.Expr {
	headers, name := field(ident("request"), "headers"), ofHeader(r.list)
	value := call("_[_]", headers, text(name))
	var is *exprpb.Expr
	if r.list.Form == model.AccessStrings {
		list := &exprpb.Expr_CreateList{}
		for _, e := range entries {
			list.Elements = append(list.Elements, text(e))
		}
		is = call("@in", value, &exprpb.Expr{ExprKind: &exprpb.Expr_ListExpr{ListExpr: list}})
	} else {
		var all []string
		for _, e := range entries {
			all = append(all, r.expression(e))
		}
		is = call("matches", value, text("^(?:"+strings.Join(all, "|")+")$"))
	}
	return call("_||_", call("!_", call("@in", text(name), headers)), call("!_", is))
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
