package explain

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	meshv1 "istio.io/api/mesh/v1alpha1"

	"github.com/writ-mesh/writ/pilot/model"
)

// TestNormalize has what translate.TestPathNormalizationLive sees real Envoys make of
// paths, in the modes NONE, BASE, MERGE_SLASHES, DECODE_AND_MERGE_SLASHES.
func TestNormalize(t *testing.T) {
	modes := []meshv1.MeshConfig_ProxyPathNormalization_NormalizationType{
		meshv1.MeshConfig_ProxyPathNormalization_NONE, meshv1.MeshConfig_ProxyPathNormalization_BASE,
		meshv1.MeshConfig_ProxyPathNormalization_MERGE_SLASHES, meshv1.MeshConfig_ProxyPathNormalization_DECODE_AND_MERGE_SLASHES,
	}
	for path, want := range map[string][4]string{
		"/admin":               {"/admin", "/admin", "/admin", "/admin"},
		"/admin?x=//%2e":       {"/admin?x=//%2e", "/admin?x=//%2e", "/admin?x=//%2e", "/admin?x=//%2e"},
		"/Admin/":              {"/Admin/", "/Admin/", "/Admin/", "/Admin/"},
		"/./admin":             {"/./admin", "/admin", "/admin", "/admin"},
		"/public/../admin":     {"/public/../admin", "/admin", "/admin", "/admin"},
		"/public/%2e%2e/admin": {"/public/%2e%2e/admin", "/admin", "/admin", "/admin"},
		"//admin":              {"//admin", "//admin", "/admin", "/admin"},
		"/public//../admin":    {"/public//../admin", "/public/admin", "/public/admin", "/public/admin"},
		`/\admin`:              {`/\admin`, "//admin", "/admin", "/admin"},
		`/public\..\admin`:     {`/public\..\admin`, "/admin", "/admin", "/admin"},
		"/%2fadmin":            {"/%2fadmin", "/%2fadmin", "/%2fadmin", "/admin"},
		"/public%2F..%2Fadmin": {"/public%2F..%2Fadmin", "/public%2F..%2Fadmin", "/public%2F..%2Fadmin", "/admin"},
		"/%5cadmin":            {"/%5cadmin", "/%5cadmin", "/%5cadmin", "/admin"},
		"/admin;x":             {"/admin;x", "/admin;x", "/admin;x", "/admin;x"},
		"/%61dmin":             {"/%61dmin", "/admin", "/admin", "/admin"},
		"/public/..;x=y/admin": {"/public/..;x=y/admin", "/admin", "/admin", "/admin"},
		"/.;/admin":            {"/.;/admin", "/admin", "/admin", "/admin"},
	} {
		for i, mode := range modes {
			m := &model.Mesh{Config: &meshv1.MeshConfig{PathNormalization: &meshv1.MeshConfig_ProxyPathNormalization{Normalization: mode}}}
			if got, ok := normalize(m, path); !ok || got != want[i] {
				t.Errorf("%s of %s: %q, want %q", mode, path, got, want[i])
			}
		}
	}
	for path, want := range map[string]bool{"admin": false, "/a/%2e%2e;x/b": false, "/a/..%3B/b": false, "/a;..;/b": true, "/a?x=/..;": true} {
		if normal, ok := normalize(&model.Mesh{Config: &meshv1.MeshConfig{}}, path); (ok && !dotsWithParameters(normal)) != want {
			t.Errorf("%s is taken: %v, want %v", path, !want, want)
		}
	}
}

// TestMalformed: what every Envoy refuses whoever sends it, explain and whocan do too.
func TestMalformed(t *testing.T) {
	m := manyRules(0, -1)
	for by, q := range map[string]Question{
		"":                               {Path: "/a"},
		"path normalization":             {Path: "a"},
		"MalformedRequest path":          {Path: "/a/%2e%2e;/b"},
		"MalformedRequest method":        {Path: "/a", Method: "get"},
		"MalformedRequest host":          {Path: "/a", Host: "a,b"},
		"MalformedRequest authorization": {Path: "/a", Headers: map[string]string{"authorization": "Bearer a,Bearer b"}},
	} {
		q.From, q.To = Outside, "default/web-1"
		if q.Method == "" {
			q.Method = "GET"
		}
		a, err := Request(m, q, Deciders{})
		if err != nil {
			t.Fatal(err)
		}
		if got := a.Targets[0]; (got.Decision == Refused) != (by != "") || by != "" && got.By != by {
			t.Errorf("%q: %s by %q", by, got.Decision, got.By)
		}
		callers, err := WhoCan(m, q)
		if err != nil {
			t.Fatal(err)
		}
		if nobody := len(callers[0].Statements) == 0; nobody != (by != "") {
			t.Errorf("%q: whocan says %+v", by, callers)
		}
	}
}

// What the caller's Envoy leaves of a path is what the other one reads.
func TestNormalizedTwice(t *testing.T) {
	m := manyRules(0, -1)
	a, err := Request(m, Question{From: "web-1", To: "default/web-1", Path: "/a/%2e%2e;/b"}, Deciders{})
	if err != nil {
		t.Fatal(err)
	}
	if got := a.Targets[0]; got.Decision != Allowed || !slices.ContainsFunc(got.Steps, func(s Step) bool { return s.Detail == "every filter sees /b" }) {
		t.Errorf("%+v", got)
	}
}

// A request that a RegoPolicy's decider cannot take apart has the status of that.
func TestMalformedForRego(t *testing.T) {
	m := manyRules(0, -1)
	m.RegoPolicies = []*model.RegoPolicy{{Meta: model.Meta{Ref: model.Ref{Kind: "RegoPolicy", Namespace: "default", Name: "p"}}, Module: "package p"}}
	for _, c := range []struct {
		err    error
		status int
	}{{nil, 403}, {errors.New("too long"), 403}, {fmt.Errorf("a query: %w", ErrMalformed), 400}} {
		a, err := Request(m, Question{From: Outside, To: "default/web-1"}, Deciders{Rego: func(*model.RegoPolicy, *authv3.CheckRequest, string, map[string]any) (bool, string, error) {
			return false, "", c.err
		}})
		if err != nil {
			t.Fatal(err)
		}
		if got := a.Targets[0]; got.Decision != Refused || got.By != "RegoPolicy default/p" || got.Status != c.status {
			t.Errorf("%v: %s by %q with %d, want %d", c.err, got.Decision, got.By, got.Status, c.status)
		}
	}
}
