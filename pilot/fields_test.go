package pilot

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	meshv1 "istio.io/api/mesh/v1alpha1"
	securityv1 "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/internal/fieldtest"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// fieldsMesh has one object of each kind of ours, all in force for its one proxy.
func fieldsMesh() *model.Mesh {
	meta := func(kind, name string) model.Meta {
		return model.Meta{Ref: model.Ref{Kind: kind, Namespace: "default", Name: name, File: "a.yaml", Line: 1}}
	}
	labels := map[string]string{"app": "a"}
	return &model.Mesh{
		Config: &meshv1.MeshConfig{}, TrustDomain: "cluster.local", RootNamespace: "istio-system", DomainSuffix: "cluster.local",
		Deciders: model.Deciders{Authz: "unix:///a", RateLimit: "unix:///r"},
		Proxies:  []*model.Proxy{{ID: "a", Namespace: "default", ServiceAccount: "a", Labels: map[string]string{"app": "a"}}},
		RegoPolicies: []*model.RegoPolicy{{
			Meta: meta("RegoPolicy", "r"), Selector: labels, Module: "package a", Query: "data.a.allow", BundleURL: "file:///b", BundleRefresh: time.Second,
			BundleSigning:     model.BundleSigning{Key: "k", Algorithm: "ES256", Scope: "s"},
			BundleCredentials: model.BundleCredentials{TokenFile: "t", CertificateFile: "c", KeyFile: "k", ClientFile: "o", CAFile: "a", Scopes: []string{"s"}},
		}},
		QuotaPolicies: []*model.QuotaPolicy{{
			Meta: meta("QuotaPolicy", "q"), Selector: labels, Upper: model.QuotaOverride,
			Match: []model.QuotaMatch{{Principals: []string{"p"}, Namespaces: []string{"n"}, Hosts: []string{"h"}, Methods: []string{"GET"}, Paths: []string{"/p"}}},
			Limits: []model.QuotaLimit{{Name: "l", Per: []model.Dimension{
				{Text: "request.headers[x]", Kind: "request.headers", Arg: "x"}, {Text: "y", Kind: "constant", Arg: "y"},
			}, Requests: 1, Every: time.Second, Algorithm: "gcra", Burst: 1, Mode: "leased", Cost: &model.QuotaCost{From: model.CostResponseHeader, Header: "x-cost", Reserve: 1, Expire: time.Second}, Plan: &model.QuotaPlan{Table: "t", By: "y", Numbers: "n"}}},
		}, {
			Meta: model.Meta{Ref: model.Ref{Kind: "QuotaPolicy", Namespace: "istio-system", Name: "above"}}, Lower: model.QuotaOverride,
			Limits: []model.QuotaLimit{{Name: "l", Requests: 1, Every: time.Second}},
		}},
		RbacConfig: &model.RbacConfig{Meta: meta("ClusterRbacConfig", "default"), Mode: model.RbacInclusion, Namespaces: []string{"default"}, Services: []string{"a"}},
		ServiceRoles: []*model.ServiceRole{{Meta: meta("ServiceRole", "v"), Rules: []model.AccessRule{{
			Services: []string{"*"}, To: []model.Clause{{Key: model.RolePaths, Values: []string{"/a"}}},
			Where: []model.Clause{{Key: model.DestinationUser, Values: []string{"a"}}}, When: []model.Clause{{Key: "request.headers[x]", Values: []string{"1"}}},
		}}}},
		ServiceRoleBindings: []*model.ServiceRoleBinding{{
			Meta: meta("ServiceRoleBinding", "b"), Role: "v", Subjects: []model.Subject{{Clauses: []model.Clause{{Key: "source.namespace", Values: []string{"n"}}}}},
		}},
		AccessLists: []*model.AccessList{{
			Meta: meta("AccessList", "l"), Selector: labels, Match: "request.headers[x]", Entries: []string{"a"}, AllowFirst: []string{"b"}, DenyFirst: []string{"c"},
			From: &model.AccessSource{URL: "http://a.example/", Refresh: time.Minute, Timeout: time.Second},
		}},
	}
}

// TestNoFieldOfAPolicyIsLost: whatever changes in a policy of ours changes what
// the services are told or what Envoy is.
func TestNoFieldOfAPolicyIsLost(t *testing.T) {
	m := fieldsMesh()
	base := toldOfPolicies(t, m)
	check := func(kind string) func(string) {
		return func(field string) {
			switch field {
			case ".Meta.Ref.Kind", ".Meta.Labels", ".Meta.Annotations", ".Meta.Created", ".Meta.RuleLines":
				return // of no meaning, or for the order alone
			}
			if kind == "RegoPolicy" && followsFromModule(field) {
				return
			}
			if toldOfPolicies(t, m) == base {
				t.Errorf("%s%s is lost", kind, field)
			}
		}
	}
	fieldtest.Each(m.RegoPolicies[0], check("RegoPolicy"))
	lower := func(field string) bool { return field == ".Lower" } // is of the root namespace's policies
	for i, p := range m.QuotaPolicies {
		fieldtest.Each(p, func(field string) {
			if lower(field) == (i == 1) {
				check("QuotaPolicy")(field)
			}
		})
	}
	fieldtest.Each(m.AccessLists[0], func(field string) {
		// Pilot itself asks the source; what file the list is in no proxy is told.
		if !strings.HasPrefix(field, ".From") && !strings.HasPrefix(field, ".Meta.R") {
			check("AccessList")(field)
		}
	})
	if toldOfPolicies(t, m) != base {
		t.Error("the same mesh is told otherwise")
	}
}

// followsFromModule are fields of a RegoPolicy that say nothing besides its module,
// or only where it stands.
func followsFromModule(field string) bool {
	return strings.HasPrefix(field, ".Form") || strings.HasPrefix(field, ".Module") && field != ".Module"
}

// toldOfPolicies is all that follows from the policies of a mesh.
func toldOfPolicies(t *testing.T, m *model.Mesh) string {
	t.Helper()
	var out strings.Builder
	tell := func(name string, message proto.Message) {
		data, err := proto.MarshalOptions{Deterministic: true}.Marshal(message)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%s %q\n", name, data)
	}
	for _, n := range slices.Concat(regoPolicies(m), quotaPolicies(m)) {
		tell(n.name, n.message)
	}
	compiler, err := security.New(m)
	if err != nil {
		t.Fatal(err)
	}
	http, err := compiler.HTTP(m.Proxies[0], model.WorkloadPort{Port: 80, Protocol: model.HTTP})
	if err != nil {
		return err.Error()
	}
	for _, f := range http.Filters {
		tell("filter", f)
	}
	for _, name := range slices.Sorted(maps.Keys(http.PerFilterConfig)) {
		tell(name, http.PerFilterConfig[name])
	}
	for _, l := range http.RateLimits {
		tell("rate limit", l)
	}
	tell("metadata", http.Metadata)
	return out.String()
}

// TestDigestHasEveryField: what changes in an object changes its hash, except for
// the place where it is written.
func TestDigestHasEveryField(t *testing.T) {
	m := fieldsMesh()
	var s model.Service
	var secret model.Secret
	fieldtest.Fill(&s)
	fieldtest.Fill(&secret)
	m.Services, m.Secrets = []*model.Service{&s}, map[string]*model.Secret{"a": &secret}
	all := func() string {
		t.Helper()
		d, err := digest(m, nil)
		if err != nil {
			t.Fatal(err)
		}
		return d.all
	}
	base := all()
	check := func(kind string) func(string) {
		return func(field string) {
			silent := false
			switch field {
			case ".Meta.Ref.File", ".Meta.Ref.Line", ".Meta.Created", ".Meta.RuleLines", ".Meta.RuleLines[0]":
				silent = true
			case ".Meta.Ref.Kind", ".Meta.Ref.Namespace", ".Meta.Ref.Name", ".Meta.Labels", ".Meta.Annotations":
				silent = kind == "Secret" // its content alone counts
			}
			if kind == "RegoPolicy" && followsFromModule(field) {
				silent = true
			}
			if inProxy := strings.HasPrefix(field, ".Endpoints[0].Proxy."); inProxy && field != ".Endpoints[0].Proxy.ID" {
				silent = true
			}
			if (all() == base) != silent {
				t.Errorf("%s%s: the same hash is %v, want %v", kind, field, !silent, silent)
			}
		}
	}
	fieldtest.Each(m.RegoPolicies[0], check("RegoPolicy"))
	fieldtest.Each(m.QuotaPolicies[0], check("QuotaPolicy"))
	fieldtest.Each(m.RbacConfig, check("ClusterRbacConfig"))
	fieldtest.Each(m.ServiceRoles[0], check("ServiceRole"))
	fieldtest.Each(m.ServiceRoleBindings[0], check("ServiceRoleBinding"))
	fieldtest.Each(m.AccessLists[0], check("AccessList"))
	fieldtest.Each(&s, check("Service"))
	fieldtest.Each(&secret, check("Secret"))
	fieldtest.Each(&m.Deciders, check("Deciders"))
	if all() != base {
		t.Error("the same mesh has another hash")
	}
}

// TestDigestFollowsPointers: equal meshes in other places of memory are the same.
func TestDigestFollowsPointers(t *testing.T) {
	var first, second model.Service
	fieldtest.Fill(&first)
	fieldtest.Fill(&second)
	if a, b := (&digester{}).service(&first), (&digester{}).service(&second); string(a) != string(b) || len(a) == 0 {
		t.Errorf("%s\n%s", a, b)
	}
}

// TestTokenIssuersOfTheRoot: authz is told which issuers count for every
// workload, whatever the root namespace is called.
func TestTokenIssuersOfTheRoot(t *testing.T) {
	m := fieldsMesh()
	m.RootNamespace = "mesh-root"
	for _, namespace := range []string{"mesh-root", "istio-system", "default"} {
		m.RequestAuthentications = append(m.RequestAuthentications, &model.RequestAuthentication{
			Meta: model.Meta{Ref: model.Ref{Kind: "RequestAuthentication", Namespace: namespace, Name: "a"}},
			Spec: &securityv1.RequestAuthentication{JwtRules: []*securityv1.JWTRule{{Issuer: "i"}}},
		})
	}
	for _, n := range tokenIssuers(m) {
		if got, want := n.message.(*configpb.TokenIssuer).GetMeshWide(), n.name == "mesh-root/a/0"; got != want {
			t.Errorf("%s counts for every workload: %v, want %v", n.name, got, want)
		}
	}
}
