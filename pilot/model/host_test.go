package model

import "testing"

func TestResolveHost(t *testing.T) {
	for _, c := range []struct{ host, want string }{
		{"reviews", "reviews.ns.svc.cluster.local"},
		{"Reviews", "reviews.ns.svc.cluster.local"},
		{"reviews.other.svc.cluster.local", "reviews.other.svc.cluster.local"},
		{"example.com", "example.com"},
		{"*", "*"},
		{"*.example.com", "*.example.com"},
		{"10.0.0.1", "10.0.0.1"},
		{"::1", "::1"},
		{"", ""},
	} {
		if got := ResolveHost(c.host, "ns", "cluster.local"); got != c.want {
			t.Errorf("ResolveHost(%q) = %q, want %q", c.host, got, c.want)
		}
	}
}

func TestResolveGateway(t *testing.T) {
	for in, want := range map[string]string{
		"mesh": "mesh", "gw": "ns/gw", "./gw": "ns/gw", "other/gw": "other/gw",
		"gw.other.svc.cluster.local": "other/gw", "gw.other": "other/gw",
	} {
		if got := ResolveGateway(in, "ns"); got != want {
			t.Errorf("ResolveGateway(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestSelectorMatches(t *testing.T) {
	labels := map[string]string{"app": "a", "version": "v1"}
	for _, c := range []struct {
		selector map[string]string
		want     bool
	}{
		{nil, true},
		{map[string]string{"app": "a"}, true},
		{map[string]string{"app": "a", "version": "v2"}, false},
		{map[string]string{"tier": ""}, false},
	} {
		if got := SelectorMatches(c.selector, labels); got != c.want {
			t.Errorf("SelectorMatches(%v) = %v", c.selector, got)
		}
	}
}

func TestExportedTo(t *testing.T) {
	for _, c := range []struct {
		to            []string
		owner, viewer string
		want          bool
	}{
		{nil, "a", "b", true},
		{[]string{"*"}, "a", "b", true},
		{[]string{"."}, "a", "b", false},
		{[]string{"."}, "a", "a", true},
		{[]string{"~"}, "a", "a", false},
		{[]string{"b", "c"}, "a", "c", true},
		{[]string{"b", "c"}, "a", "a", false},
	} {
		if got := ExportedTo(c.to, c.owner, c.viewer); got != c.want {
			t.Errorf("ExportedTo(%v, %s, %s) = %v", c.to, c.owner, c.viewer, got)
		}
	}
}

func TestHostMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, host string
		want          bool
	}{
		{"*", "a.b", true},
		{"*", "*.b", true},
		{"*.b.com", "a.b.com", true},
		{"*.b.com", "x.a.b.com", true},
		{"*.b.com", "*.a.b.com", true},
		{"*.b.com", "*.b.com", true},
		{"*.b.com", "b.com", false},
		{"*.b.com", ".b.com", false},
		{"*.b.com", "*.com", false},
		{"a.b.com", "A.b.com", true},
		{"a.b.com", "*.b.com", false},
	} {
		if got := HostMatches(c.pattern, c.host); got != c.want {
			t.Errorf("HostMatches(%q, %q) = %v", c.pattern, c.host, got)
		}
	}
}

func TestServiceByHost(t *testing.T) {
	service := func(host, ns string, exportTo ...string) *Service {
		return &Service{Hostname: host, Meta: Meta{Ref: Ref{Namespace: ns}}, ExportTo: exportTo}
	}
	m := &Mesh{Services: []*Service{
		service("*.a.example.com", "one"), service("*.example.com", "one"), service("*.example.com", "two"),
		service("api.example.com", "one", "."), service("shop.example.com", "one"), service("shop.example.com", "two"),
	}}
	for _, c := range []struct{ host, from, wantHost, wantNS string }{
		{"shop.example.com", "two", "shop.example.com", "two"},
		{"shop.example.com", "three", "shop.example.com", "one"},
		{"api.example.com", "one", "api.example.com", "one"},
		{"api.example.com", "two", "*.example.com", "two"},
		{"x.a.example.com", "two", "*.a.example.com", "one"},
		{"other.org", "one", "", ""},
	} {
		got := m.ServiceByHost(c.host, c.from)
		switch {
		case got == nil && c.wantHost != "":
			t.Errorf("ServiceByHost(%q, %q) = nil, want %s in %s", c.host, c.from, c.wantHost, c.wantNS)
		case got != nil && (got.Hostname != c.wantHost || got.Namespace != c.wantNS):
			t.Errorf("ServiceByHost(%q, %q) = %s in %s, want %s in %s", c.host, c.from, got.Hostname, got.Namespace, c.wantHost, c.wantNS)
		}
	}
}

// TestServiceCalled: what a policy trusts is the mesh's own service under its shorter
// names too, and no other's ServiceEntry.
func TestServiceCalled(t *testing.T) {
	service := func(kind, host, ns string, exportTo ...string) *Service {
		return &Service{Hostname: host, Meta: Meta{Ref: Ref{Kind: kind, Namespace: ns}}, ExportTo: exportTo}
	}
	m := &Mesh{DomainSuffix: "cluster.local", RootNamespace: "root", Services: []*Service{
		service("ServiceEntry", "*.foo", "other"),
		service("ServiceEntry", "api.bar", "two"), service("Service", "api.bar.svc.cluster.local", "bar"), service("ServiceEntry", "entry.foo.svc.cluster.local", "other"),
		service("Service", "keys.foo.svc.cluster.local", "foo"), service("Service", "mine.foo.svc.cluster.local", "foo", "."),
	}}
	for _, c := range []struct{ host, from, called, trusted string }{
		{"keys", "foo", "keys.foo.svc.cluster.local", "keys.foo.svc.cluster.local"},
		{"keys", "two", "", ""},
		{"keys.foo", "two", "keys.foo.svc.cluster.local", "keys.foo.svc.cluster.local"},
		{"Keys.Foo.svc", "two", "keys.foo.svc.cluster.local", "keys.foo.svc.cluster.local"},
		{"keys.foo.svc.cluster.local", "two", "keys.foo.svc.cluster.local", "keys.foo.svc.cluster.local"},
		{"mine.foo", "foo", "mine.foo.svc.cluster.local", "mine.foo.svc.cluster.local"},
		{"mine.foo", "two", "*.foo", ""},
		{"entry.foo", "two", "*.foo", ""},
		{"api.bar", "two", "api.bar", "api.bar"},
		{"api.bar", "three", "api.bar", "api.bar.svc.cluster.local"},
		{"keys.foo.example", "two", "", ""},
	} {
		name := func(s *Service) string {
			if s == nil {
				return ""
			}
			return s.Hostname
		}
		if got := name(m.ServiceCalled(c.host, c.from)); got != c.called {
			t.Errorf("%s calls %s: %q, want %q", c.from, c.host, got, c.called)
		}
		if got := name(m.PolicyHost(ResolveHost(c.host, c.from, m.DomainSuffix), c.from)); got != c.trusted {
			t.Errorf("%s trusts %s: %q, want %q", c.from, c.host, got, c.trusted)
		}
	}
}
