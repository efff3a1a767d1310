package security

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// connect says whether a connection gets through to the program.
func (p *proxy) connect(name, identity, from string) bool {
	p.t.Helper()
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	if from != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	conn, err := dialer.DialContext(p.t.Context(), "tcp", p.address(name, identity != ""))
	if err != nil {
		p.t.Fatal(err)
	}
	if identity != "" {
		conn = tls.Client(conn, p.authority.client(p.t, identity))
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		p.t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		return false
	}
	text, err := io.ReadAll(conn)
	if err != nil && len(text) > 0 {
		p.t.Fatalf("%s: %v after %q", name, err, text)
	}
	return string(text) == "passed\n"
}

func TestTCPLive(t *testing.T) {
	t.Parallel()
	type try struct {
		identity, from string
		passes         bool
	}
	cases := []struct {
		name     string
		policies string
		tries    []try
	}{
		{"none", "", []try{{"", "", true}, {sleep, "", true}}},
		{"allow-nothing", policy("a", "action: ALLOW"), []try{{"", "", false}, {sleep, "", false}}},
		{"principal", policy("a", "rules: [{from: [{source: {principals: ['cluster.local/ns/default/sa/sleep']}}]}]"), []try{{"", "", false}, {sleep, "", true}, {curlFoo, "", false}}},
		{"ip", policy("a", "action: DENY\nrules: [{from: [{source: {ipBlocks: ['127.0.0.9']}}]}]"), []try{{"", "127.0.0.9", false}, {"", "127.0.0.8", true}}},
		{"port", policy("a", "action: DENY\nrules: [{to: [{operation: {notPorts: ['1']}}]}]"), []try{{"", "", false}}},
		{"deny-namespace", policy("a", "action: DENY\nrules: [{from: [{source: {notNamespaces: [foo]}}]}]"), []try{{"", "", false}, {sleep, "", false}, {curlFoo, "", true}}},
		// Istio's task for TCP: what only HTTP has makes an ALLOW rule match
		// nothing, and a DENY rule match without it.
		{"allow-http", policy("a", "rules: [{to: [{operation: {methods: [GET]}}]}, {from: [{source: {namespaces: [foo]}}]}]"), []try{{sleep, "", false}, {curlFoo, "", true}}},
		{"allow-claim", policy("a", "rules: [{when: [{key: 'request.auth.claims[x]', notValues: [z]}]}]"), []try{{sleep, "", false}}},
		{"deny-http", policy("a", "action: DENY\nrules: [{from: [{source: {namespaces: [foo]}}], to: [{operation: {methods: [GET]}}]}]"), []try{{sleep, "", true}, {curlFoo, "", false}}},
		{"deny-only-http", policy("a", "action: DENY\nrules: [{to: [{operation: {methods: [GET]}}]}]"), []try{{"", "", false}}},
		{"dry-run", strings.Replace(policy("a", "action: DENY\nrules: [{}]"), "{name: a}", "{name: a, annotations: {istio.io/dry-run: 'true'}}", 1), []try{{"", "", true}}},
		{"audit", policy("a", "action: AUDIT\nrules: [{}]"), []try{{"", "", true}}},
		{
			"custom", "kind: MeshConfig\nspec: {extensionProviders: [{name: my, envoyExtAuthzGrpc: {service: 127.0.0.1, port: PORT}}]}\n---\n" +
				policy("c", "action: CUSTOM\nprovider: {name: my}\nrules: [{from: [{source: {notNamespaces: [foo]}}]}]"),
			[]try{{sleep, "", true}, {"spiffe://cluster.local/ns/default/sa/refuse", "", false}, {"spiffe://cluster.local/ns/foo/sa/refuse", "", true}},
		},
		{"custom-unknown", policy("c", "action: CUSTOM\nprovider: {name: my}\nrules: [{}]"), []try{{sleep, "", false}}},
	}
	eachEnvoy(t, func(t *testing.T, bin string) {
		server := &decider{}
		_, port, err := net.SplitHostPort(server.listen(t, "tcp", "127.0.0.1:0"))
		if err != nil {
			t.Fatal(err)
		}
		inbounds := map[string]inbound{}
		for _, c := range cases {
			out, err := compiler(t, newMesh(t, strings.ReplaceAll(c.policies, "PORT", port))).TCP(workload(), httpPort())
			if err != nil {
				t.Fatal(err)
			}
			inbounds[c.name] = inbound{tcp: out, mtls: true}
		}
		p := start(t, bin, inbounds)
		for _, c := range cases {
			for _, r := range c.tries {
				if got := p.connect(c.name, r.identity, r.from); got != r.passes {
					t.Errorf("%s: %s", c.name, fmt.Sprintf("%+v: passes %v", r, got))
				}
			}
		}
	})
}
