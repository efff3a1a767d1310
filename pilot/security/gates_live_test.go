package security

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/pilot/explain"
	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/model"
)

// gateCase is an entry of testdata/gates: what stands in a mesh directory, and what
// becomes of requests to one workload. A request is written as words: METHOD, /path,
// and then "as namespace/account" or a whole identity, "from ADDRESS", "host NAME",
// "with Header=value", "also Header=value" for one more line of it, "token NAME".
type gateCase struct {
	Name string
	Docs string
	// To is the replica that is called, products-1 unless it is given; "gateway" is one.
	To      string
	Version string
	// TCP says that the port is one of connections: of a request only "as" and "from"
	// count.
	TCP bool
	// Fetched are entries from elsewhere of the AccessList default/list. Many puts 40
	// more of no meaning to the entries of each list, so that they are looked up.
	Fetched *model.Fetched
	Many    bool
	// Fixed wants an Envoy that compares each line of a header (decision 0016).
	Fixed bool
	// Pass are the requests that get through; Deny those that do not, by who refuses, with
	// no difference between the rules of a list if that ends with "rule *".
	Pass []string
	Deny map[string][]string
}

// gateMesh is what all cases have: two services of the namespace default, one of
// another, and a gateway.
const gateMesh = `
apiVersion: local.writ.mesh/v1alpha1
kind: LocalWorkload
metadata: {name: products, labels: {app: products, version: v1}}
spec: {serviceAccount: bookinfo-products, ports: [{name: http, port: 8000}]}
---
apiVersion: local.writ.mesh/v1alpha1
kind: LocalWorkload
metadata: {name: productpage, labels: {app: productpage}}
spec: {serviceAccount: bookinfo-productpage, ports: [{name: http, port: 8000}]}
---
apiVersion: local.writ.mesh/v1alpha1
kind: LocalWorkload
metadata: {name: reviews, labels: {app: reviews}}
spec: {serviceAccount: bookinfo-reviews, ports: [{name: http, port: 8000}]}
---
apiVersion: local.writ.mesh/v1alpha1
kind: LocalWorkload
metadata: {name: other, namespace: other, labels: {app: other}}
spec: {ports: [{name: http, port: 8000}]}
`

// TestGatesLive has real Envoys and explain decide the same requests by ServiceRoles
// and AccessLists, written as in a mesh directory.
func TestGatesLive(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	tokens := map[string]string{
		"alice": s.token(t, map[string]any{"groups": []string{"g1", "g2"}}),
		"bob":   s.token(t, map[string]any{"sub": "bob", "groups": "g3", "aud": []string{"bookinfo"}, "azp": "app-1"}),
	}
	cases := casesIn[gateCase](t, "testdata/gates")
	eachEnvoy(t, func(t *testing.T, bin string) {
		inbounds := map[string]inbound{}
		meshes := make([]*model.Mesh, len(cases))
		for i, c := range cases {
			meshes[i] = c.mesh(t, s)
			name := fmt.Sprint("case", i)
			if c.TCP {
				out, err := compiler(t, meshes[i]).TCP(c.proxy(), httpPort())
				if err != nil {
					t.Fatalf("%s: %v", c.Name, err)
				}
				inbounds[name] = inbound{tcp: out, mtls: true}
				continue
			}
			out, err := compiler(t, meshes[i]).HTTP(c.proxy(), httpPort())
			if err != nil {
				t.Fatalf("%s: %v", c.Name, err)
			}
			inbounds[name] = inbound{http: out, direct: true, shared: true, mtls: true}
		}
		p := start(t, bin, inbounds)
		for i, c := range cases {
			if c.Fixed && strings.Contains(bin, "1.36.2") {
				continue
			}
			ask := func(words, by string) {
				r, name := gateRequest(t, tokens, words), fmt.Sprint("case", i)
				same := func(got string) bool {
					list, some := strings.CutSuffix(by, " rule *")
					return got == by || some && strings.HasPrefix(got, list+" rule ")
				}
				told := c.explain(t, meshes[i], r)
				if (told.Decision == explain.Allowed) != (by == "") || !c.TCP && by != "" && by != "jwt" && !same(told.By) {
					t.Errorf("%s: %q: explain says %s by %q, want %q", c.Name, words, told.Decision, told.By, by)
				}
				if c.TCP {
					if got := p.connect(name, r.identity, r.from); got != (by == "") {
						t.Errorf("%s: %q: Envoy lets it pass: %v", c.Name, words, got)
					}
					return
				}
				got := p.do(name, r)
				if (got.status == 200) != (by == "") || !same(got.deniedBy) && by != "jwt" {
					t.Errorf("%s: %q: Envoy says %d by %q, want %q", c.Name, words, got.status, got.deniedBy, by)
				}
			}
			for _, words := range c.Pass {
				ask(words, "")
			}
			for by, list := range c.Deny {
				for _, words := range list {
					ask(words, by)
				}
			}
		}
	})
}

// mesh reads the documents as pilot does.
func (c *gateCase) mesh(t *testing.T, s signer) *model.Mesh {
	t.Helper()
	jwt := fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: jwt, namespace: istio-system}\nspec: {jwtRules: [{issuer: %q, jwks: '%s', forwardOriginalToken: true}]}", testIssuer, s.jwks())
	m, problems := meshdir.Parse(map[string][]byte{
		"mesh.yaml": []byte("trustDomain: cluster.local\ntrustDomainAliases: [old-td]\n"),
		"w.yaml":    []byte(gateMesh), "j.yaml": []byte(jwt), "p.yaml": []byte(c.Docs),
	}, nil, meshdir.Options{})
	if errs := meshdir.Errors(problems); len(errs) > 0 {
		t.Fatalf("%s: %v", c.Name, errs)
	}
	if c.Fetched != nil {
		m.Fetched = map[string]model.Fetched{"default/list": *c.Fetched}
	}
	if c.Many {
		for _, list := range m.AccessLists {
			for i := range 40 {
				entry := fmt.Sprintf("of-no-meaning-%d", i)
				if list.Form == model.AccessAddresses {
					entry = fmt.Sprintf("192.0.2.%d", i)
				}
				list.Entries = append(list.Entries, entry)
			}
		}
	}
	return m
}

func (c *gateCase) proxy() *model.Proxy {
	p := workload()
	p.Name = "products-1"
	if c.To != "" {
		p.Name = c.To
	}
	app, _, _ := strings.Cut(p.Name, "-")
	p.Labels, p.ServiceAccount = map[string]string{"app": app}, "bookinfo-"+app
	if c.Version != "" {
		p.Labels["version"] = c.Version
	}
	switch app {
	case "other":
		p.Namespace = "other"
	case "gateway":
		p.Type, p.Namespace, p.Ports = model.GatewayProxy, "istio-system", nil
		p.Labels = map[string]string{"istio": "ingressgateway"}
	}
	return p
}

func gateRequest(t *testing.T, tokens map[string]string, words string) request {
	t.Helper()
	r := request{header: map[string]string{}}
	fields := strings.Fields(words)
	for i := 0; i < len(fields); i++ {
		word := fields[i]
		switch {
		case strings.HasPrefix(word, "/"):
			r.path = word
			continue
		case word == strings.ToUpper(word):
			r.method = word
			continue
		}
		i++
		switch value := fields[i]; word {
		case "as":
			r.identity = "spiffe://" + value
			if strings.Count(value, "/") == 1 {
				r.identity = "spiffe://cluster.local/ns/" + strings.Replace(value, "/", "/sa/", 1)
			}
		case "from":
			r.from = value
		case "host":
			r.host = value
		case "with", "also":
			name, inner, _ := strings.Cut(value, "=")
			if word == "also" {
				r.more = append(r.more, [2]string{name, inner})
			} else {
				r.header[name] = inner
			}
		case "token":
			r.header["Authorization"] = "Bearer " + tokens[value]
		default:
			t.Fatalf("what is %q?", word)
		}
	}
	return r
}

// explain says by `writ explain` what becomes of a request.
func (c *gateCase) explain(t *testing.T, m *model.Mesh, r request) explain.Target {
	t.Helper()
	p := c.proxy()
	of := *m
	of.Proxies = []*model.Proxy{p}
	if c.TCP {
		p.Ports[0].Protocol = model.TCP
	}
	q := explain.Question{
		From: explain.Outside, To: p.Name, Port: httpPort().Port, Method: r.method, Path: r.path, Host: cmp.Or(r.host, "httpbin.default"),
		SourceIP: netip.MustParseAddr(cmp.Or(r.from, "127.0.0.1")),
	}
	if p.Type == model.GatewayProxy {
		q.Port = 0 // the only one of its Gateway
	}
	if r.identity != "" {
		q.From, q.SNI = r.identity, "httpbin.default"
		domain, _, _ := strings.Cut(strings.TrimPrefix(r.identity, "spiffe://"), "/")
		of.FederatedDomains = []string{domain} // the listeners of this test take callers of every trust domain
	}
	q.Headers, q.Lines = r.headers()
	a, err := explain.Request(&of, q, semanticDeciders())
	if err != nil {
		t.Fatalf("%s: %v", c.Name, err)
	}
	return a.Targets[0]
}

// TestAccessLookup: a set of lists is compiled to a matcher where it is to be one.
func TestAccessLookup(t *testing.T) {
	addresses := make([]string, 40)
	for i := range addresses {
		addresses[i] = fmt.Sprintf("192.0.2.%d", i)
	}
	texts := make([]string, 40)
	for i := range texts {
		texts[i] = fmt.Sprintf("cluster.local/ns/default/sa/a%d", i)
	}
	for _, c := range []struct {
		name    string
		list    model.AccessList
		gateway bool
		want    bool
	}{
		{"addresses", model.AccessList{Match: "source.ip", Form: model.AccessAddresses, Entries: addresses}, true, true},
		{"few", model.AccessList{Match: "source.ip", Form: model.AccessAddresses, Entries: addresses[:10]}, true, false},
		{"identities", model.AccessList{Match: "source.principal", Entries: texts}, false, true},
		{"identities at a gateway", model.AccessList{Match: "source.principal", Entries: texts}, true, false},
		{"headers of those who may", model.AccessList{Match: "request.headers[x]", Entries: texts}, true, true},
		// A header that is sent twice would be looked up as one text that is on no list.
		{"headers of those who may not", model.AccessList{Match: "request.headers[x]", Entries: texts, Deny: true}, true, false},
		{"claims", model.AccessList{Match: "request.auth.claims[x]", Entries: texts, Deny: true}, true, true},
	} {
		m := newMesh(t, "")
		c.list.Meta = model.Meta{Ref: model.Ref{Kind: "AccessList", Namespace: "default", Name: "list"}}
		set, err := compiler(t, m).accessSet([]*model.AccessList{&c.list}, accessMaps)
		if err != nil {
			t.Fatal(err)
		}
		if got := lookup(set.enforced, c.gateway) != nil; got != c.want {
			t.Errorf("%s: a matcher: %v, want %v", c.name, got, c.want)
		}
	}
}

// TestDocumentedGates runs the examples of docs/authorization.md.
func TestDocumentedGates(t *testing.T) {
	page, err := os.ReadFile("../../docs/authorization.md")
	if err != nil {
		t.Fatal(err)
	}
	example := func(section string) string {
		_, rest, ok := strings.Cut(string(page), "\n## "+section+"\n")
		_, rest, yaml := strings.Cut(rest, "```yaml\n")
		text, _, closed := strings.Cut(rest, "```")
		if !ok || !yaml || !closed {
			t.Fatalf("no example in %q", section)
		}
		return text
	}
	const nobody, closed = "ClusterRbacConfig default no rule allows", "AccessList default/partners rule 1"
	const productpage = "as default/bookinfo-productpage"
	s := newSigner(t)
	cases := map[string]*gateCase{
		"roles": {
			Docs: example("ServiceRole and its binding"), Pass: []string{productpage, "HEAD " + productpage},
			Deny: map[string][]string{nobody: {"", "POST " + productpage, "PUT " + productpage, "DELETE " + productpage, "as default/bookinfo-reviews"}},
		},
		"another": {Docs: example("ServiceRole and its binding"), To: "reviews-1", Deny: map[string][]string{nobody: {productpage}}},
		"outside": {Docs: example("ServiceRole and its binding"), To: "other-1", Pass: []string{"", "POST"}},
		"list": {
			Docs: example("Access lists"), Pass: []string{"", "from 127.0.0.2"},
			Deny: map[string][]string{closed: {"from 127.0.0.9"}, "AccessList default/partners rule 0": {"from 127.0.0.3"}},
		},
	}
	inbounds := map[string]inbound{}
	for name, c := range cases {
		c.Name = name
		out, err := compiler(t, c.mesh(t, s)).HTTP(c.proxy(), httpPort())
		if err != nil {
			t.Fatal(err)
		}
		inbounds[name] = inbound{http: out, direct: true, shared: true, mtls: true}
	}
	p := start(t, envoytest.Find(t), inbounds)
	for name, c := range cases {
		if len(c.Pass) > 0 {
			c.Deny = maps.Clone(c.Deny)
			if c.Deny == nil {
				c.Deny = map[string][]string{}
			}
			c.Deny[""] = c.Pass
		}
		for by, list := range c.Deny {
			for _, words := range list {
				if got := p.do(name, gateRequest(t, nil, words)); got.deniedBy != by || (got.status == 200) != (by == "") {
					t.Errorf("%s: %q: %d by %q, want %q", name, words, got.status, got.deniedBy, by)
				}
			}
		}
	}
}
