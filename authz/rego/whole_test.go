package rego

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
)

// What an evaluation looks up by a key is not made before; what it needs as a whole is.
func TestWholeData(t *testing.T) {
	for body, want := range map[string][]string{
		`some role in data.users[input.user]; data.roles[role].GET`:         nil,
		`data.users[input.user].roles[_] == "admin"`:                        nil,
		`u := input.user; some r in data.users[u]; r == "x"`:                nil,
		`has(input.user, "x")`:                                              nil,
		`not data.users[input.user].blocked`:                                nil,
		`count([r | some r in data.users[input.user]]) > 1`:                 nil,
		`count(data.users) > 1`:                                             {"/users"},
		`object.get(data.users, input.user, null) != null`:                  {"/users"},
		`some u; data.users[u].name == input.user`:                          {"/users"},
		`some u, roles in data.users; u == input.user`:                      {"/users"},
		`data.users[_].name == input.user`:                                  {"/users"},
		`every u in data.users { u.ok }`:                                    {"/users"},
		`count([1 | data.lists.a[i] == data.lists.b[i]]) > 1`:               {"/lists/a", "/lists/b"},
		`input.path in data.paths; data.paths.x; data.roles[input.r] == {}`: {"/paths"},
		`walk(data.tree, [_, input.x])`:                                     {"/tree"},
		`count(data) > 3`:                                                   {"/"},
		`true with data.users as {}`:                                        nil,
		`x := data.users; x[input.user] with data.roles as data.other`:      {"/other", "/users"},
	} {
		if body == `count(data) > 3` {
			// A rule must not depend on itself, so it is the query.
			if got := namesOf(wholeData(ast.MustParseBody(body), nil)); !slices.Equal(got, want) {
				t.Errorf("%s: %v, want %v", body, got, want)
			}
			continue
		}
		c := ast.MustCompileModules(map[string]string{"p.rego": "package p\nallow if { " + body + " }\nhas(u, r) if data.users[u][_] == r\n"})
		a := analyze(c, ast.MustParseBody("data.p.allow"))
		got := slices.DeleteFunc(namesOf(a.whole), func(name string) bool { return name == "/p/allow" || name == "/p/has" })
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", body, got, want)
		}
	}
}

// TestDocumentedData compiles the examples of the documentation.
func TestDocumentedData(t *testing.T) {
	page, err := os.ReadFile("../../docs/authorization.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(page), "\n## Data of policies")
	blocks := strings.Split(section, "```rego\n")
	if !ok || len(blocks) < 3 {
		t.Fatal("the section has gone")
	}
	for i, want := range [][]string{nil, {"/blocked", "/partners"}} {
		module, _, _ := strings.Cut(blocks[i+1], "```")
		a := analyze(ast.MustCompileModules(map[string]string{"p.rego": module}), ast.MustParseBody("data.shop.allow"))
		got := slices.DeleteFunc(namesOf(a.whole), func(name string) bool { return name == "/shop/allow" })
		if !slices.Equal(got, want) {
			t.Errorf("example %d: %v, want %v", i+1, got, want)
		}
	}
}

func namesOf[T interface{ String() string }](list []T) (names []string) {
	for _, x := range list {
		names = append(names, x.String())
	}
	return names
}
