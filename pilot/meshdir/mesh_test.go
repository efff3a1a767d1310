package meshdir

import (
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	meshv1 "istio.io/api/mesh/v1alpha1"

	"github.com/writ-mesh/writ/pilot/model"
)

// exampleFiles reads testdata/mesh, which uses most kinds and fields.
func exampleFiles(t testing.TB) map[string][]byte {
	t.Helper()
	files, problems, err := readDir("testdata/mesh")
	if err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	return files
}

// exampleInstances are the replicas of testdata/mesh as a supervisor writes them.
func exampleInstances(t testing.TB) []byte {
	t.Helper()
	replica := func(name, app, version, account, address string, ports ...InstancePort) Instance {
		return Instance{
			Name: name, Namespace: "default", Labels: map[string]string{"app": app, "version": version},
			Spec: InstanceSpec{ServiceAccount: account, Node: "local", Address: address, Ports: ports},
		}
	}
	http := InstancePort{Name: "http", Port: 9080, App: 20001}
	data, err := MarshalInstances([]Instance{
		replica("reviews-v2-1", "reviews", "v2", "bookinfo-reviews", "127.0.16.3", http),
		replica("reviews-v1-1", "reviews", "v1", "bookinfo-reviews", "127.0.16.2", http),
		replica("productpage-1", "productpage", "v1", "bookinfo-productpage", "127.0.16.1", http),
		replica("details-1", "details", "v1", "", "127.0.16.4", http, InstancePort{Name: "db", Protocol: "MYSQL", Port: 3306, App: 20002, AppAddress: "127.0.0.2"}),
		{
			Name: "ingress", Namespace: "istio-system", Labels: map[string]string{"istio": "ingressgateway"},
			Spec: InstanceSpec{Node: "local", Address: "127.0.16.9", Type: "gateway", GatewayPorts: map[uint32]uint32{80: 8080}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func parseExample(t testing.TB) *model.Mesh {
	t.Helper()
	mesh, problems := Parse(exampleFiles(t), exampleInstances(t), Options{Deciders: model.Deciders{Authz: "unix:///a"}})
	for _, p := range problems {
		t.Error(p)
	}
	return mesh
}

func TestExampleHasNoProblems(t *testing.T) { parseExample(t) }

func TestMeshConfigSurvives(t *testing.T) {
	m := parseExample(t)
	if m.TrustDomain != "example.org" || !slices.Equal(m.TrustDomainAliases, []string{"old.example.org"}) || m.RootNamespace != "istio-system" {
		t.Errorf("got %q %q %q", m.TrustDomain, m.TrustDomainAliases, m.RootNamespace)
	}
	c := m.Config
	if c.OutboundTrafficPolicy.Mode != meshv1.MeshConfig_OutboundTrafficPolicy_REGISTRY_ONLY || c.AccessLogFile != "/dev/stdout" ||
		c.MeshMTLS.MinProtocolVersion != meshv1.MeshConfig_TLSConfig_TLSV1_3 {
		t.Errorf("a field of MeshConfig is lost: %v", c)
	}
	if c.ConnectTimeout.AsDuration() != 10*time.Second || !c.EnableAutoMtls.GetValue() {
		t.Errorf("a default is lost: %v", c)
	}
	p := c.DefaultConfig
	if p.GetGatewayTopology().GetNumTrustedProxies() != 1 || p.DrainDuration.AsDuration() != 45*time.Second {
		t.Errorf("defaultConfig is not merged: %v", p)
	}
	var names []string
	for _, e := range c.ExtensionProviders {
		names = append(names, e.Name)
	}
	if want := []string{"opa", "prometheus", "envoy"}; !slices.Equal(names, want) {
		t.Errorf("extensionProviders %v, want %v", names, want)
	}
}

func TestProxies(t *testing.T) {
	m := parseExample(t)
	var ids []string
	for _, p := range m.Proxies {
		ids = append(ids, p.ID)
	}
	want := []string{
		"router~127.0.16.9~ingress.istio-system~istio-system.svc.cluster.local",
		"sidecar~127.0.16.1~productpage-1.default~default.svc.cluster.local",
		"sidecar~127.0.16.2~reviews-v1-1.default~default.svc.cluster.local",
		"sidecar~127.0.16.3~reviews-v2-1.default~default.svc.cluster.local",
		"sidecar~127.0.16.4~details-1.default~default.svc.cluster.local",
	}
	if diff := cmp.Diff(want, ids); diff != "" {
		t.Error(diff)
	}
	details := m.Proxies[4]
	wantPorts := []model.WorkloadPort{
		{Name: "http", Protocol: model.HTTP, Port: 9080, App: 20001, AppAddress: netip.MustParseAddr("127.0.0.1")},
		{Name: "db", Protocol: model.MySQL, Port: 3306, App: 20002, AppAddress: netip.MustParseAddr("127.0.0.2")},
	}
	if diff := cmp.Diff(wantPorts, details.Ports, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if details.ServiceAccount != "default" || m.Proxies[0].Type != model.GatewayProxy || m.Proxies[0].GatewayPorts[80] != 8080 {
		t.Errorf("got %+v and %+v", details, m.Proxies[0])
	}
}

func TestServices(t *testing.T) {
	m := parseExample(t)
	type endpoint struct {
		Address, Account, Proxy string
		Ports                   map[uint32]uint32
		Weight                  uint32
	}
	got := map[string][]endpoint{}
	for _, s := range m.Services {
		got[s.Hostname] = []endpoint{}
		for _, e := range s.Endpoints {
			x := endpoint{e.Address, e.ServiceAccount, "", e.Ports, e.Weight}
			if e.Proxy != nil {
				x.Proxy = e.Proxy.Name
			}
			got[s.Hostname] = append(got[s.Hostname], x)
		}
	}
	http := map[uint32]uint32{9080: 9080}
	want := map[string][]endpoint{
		"api.example.com":                        {{"192.0.2.1", "", "", map[uint32]uint32{443: 9443}, 3}, {"192.0.2.2", "", "", map[uint32]uint32{443: 8443}, 1}},
		"ingress.istio-system.svc.cluster.local": {{"127.0.16.9", "default", "ingress", map[uint32]uint32{8080: 8080, 8443: 8443}, 1}},
		"legacy.example.com":                     {{"192.0.2.9", "legacy", "", map[uint32]uint32{80: 8080}, 1}},
		"details.default.svc.cluster.local": {
			{"127.0.16.4", "default", "details-1", map[uint32]uint32{80: 9080, 9080: 9080}, 1},
		},
		"productpage.default.svc.cluster.local": {{"127.0.16.1", "bookinfo-productpage", "productpage-1", http, 1}},
		"reviews.default.svc.cluster.local": {
			{"127.0.16.2", "bookinfo-reviews", "reviews-v1-1", http, 1}, {"127.0.16.3", "bookinfo-reviews", "reviews-v2-1", http, 1},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	details := m.ServiceByHost("details.default.svc.cluster.local", "default")
	wantPorts := []model.ServicePort{{Name: "http", Protocol: model.HTTP, Port: 80}, {Name: "other", Protocol: model.HTTP2, Port: 9080}}
	if diff := cmp.Diff(wantPorts, details.Ports); diff != "" {
		t.Error(diff)
	}
	api := m.ServiceByHost("api.example.com", "default")
	if !api.External || api.Resolution != model.Static || m.ServiceByHost("api.example.com", "other") != nil {
		t.Errorf("api.example.com is %+v", api)
	}
}

func TestServicesWithoutInstances(t *testing.T) {
	m, problems := Parse(exampleFiles(t), nil, Options{})
	if len(problems) > 0 {
		t.Error(problems)
	}
	s := m.ServiceByHost("reviews.default.svc.cluster.local", "default")
	if s == nil || len(s.Ports) != 1 || len(s.Endpoints) != 0 {
		t.Errorf("reviews is %+v", s)
	}
}

func TestPolicies(t *testing.T) {
	m := parseExample(t)
	q := m.QuotaPolicies[0]
	wantPer := []model.Dimension{
		{Text: "source.principal", Kind: "source.principal"},
		{Text: "request.headers[end-user]", Kind: "request.headers", Arg: "end-user"},
		{Text: "request.auth.claims[a][b]", Kind: "request.auth.claims", Arg: "a][b"},
		{Text: "gold", Kind: "constant", Arg: "gold"},
	}
	if diff := cmp.Diff([]model.QuotaLimit{{Per: wantPer, Requests: 100, Every: time.Minute}}, q.Limits); diff != "" || !q.Observe || !q.FailClosed {
		t.Errorf("%+v %s", q, diff)
	}
	if r := m.RegoPolicies[0]; r.Query != "data.office.allow" || !r.FailOpen || r.Observe || !strings.HasPrefix(r.Module, "package office\n") {
		t.Errorf("%+v", r)
	}
	p := m.AuthorizationPolicies
	if len(p) != 2 || p[0].Name != "ext" || p[1].Name != "reviews" || p[1].Created.IsZero() || p[1].File != "policies.yaml" || p[1].Line != 11 {
		t.Errorf("policies %+v %+v", p[0].Meta, p[1].Meta)
	}
	if vs := m.VirtualServices[1]; vs.Spec.Http[0].Timeout.AsDuration() != 90*time.Minute {
		t.Errorf("timeout %v", vs.Spec.Http[0].Timeout)
	}
	if s := m.Secrets["istio-system/bookinfo-cert"]; s == nil || len(s.Cert) == 0 || len(s.Key) == 0 {
		t.Errorf("secret %+v", s)
	}
	if l := m.NamespaceLabels["default"]; l["team"] != "a" || l["kubernetes.io/metadata.name"] != "default" {
		t.Errorf("labels %v", l)
	}
}

func TestPlan(t *testing.T) {
	plan, problems := ReadPlan(Options{Dir: "testdata/mesh"})
	if len(problems) > 0 {
		t.Error(problems)
	}
	var names []string
	for _, w := range plan.Workloads {
		names = append(names, w.Name)
	}
	if want := []string{"productpage", "reviews-v1", "reviews-v2", "details"}; !slices.Equal(names, want) {
		t.Errorf("workloads %v, want %v in the order of the file", names, want)
	}
	w := plan.Workloads[2].Spec
	if *w.Replicas != 2 || w.ServiceAccount != "bookinfo-reviews" || w.Ports[0].App != 18080 || *plan.Workloads[0].Spec.Replicas != 1 ||
		plan.Workloads[3].Spec.ServiceAccount != "default" || plan.Config.TrustDomain != "example.org" {
		t.Errorf("%+v", plan.Workloads)
	}
	want := []GatewayPlan{{
		Name: "ingress", Namespace: "istio-system", Labels: map[string]string{"istio": "ingressgateway"},
		ServiceAccount: "istio-ingressgateway-service-account",
		Object:         model.Ref{Kind: "Gateway", Namespace: "default", Name: "ingress", File: "traffic.yaml", Line: 17},
		Ports:          []GatewayPort{{Number: 8080, Protocol: model.HTTP}, {Number: 8443, Protocol: model.HTTPS, TLS: true}},
	}}
	if diff := cmp.Diff(want, plan.Gateways); diff != "" {
		t.Error(diff)
	}
}

func TestPlanOfNoDirectory(t *testing.T) {
	plan, problems := ReadPlan(Options{Dir: filepath.Join(t.TempDir(), "nowhere")})
	if plan.Config == nil || len(problems) != 1 || problems[0].File != "" {
		t.Errorf("%+v %v", plan, problems)
	}
}

func TestInstancesRoundTrip(t *testing.T) {
	data := exampleInstances(t)
	instances, problems := ParseInstances("instances.yaml", data)
	if len(problems) > 0 || len(instances) != 5 {
		t.Fatal(len(instances), problems)
	}
	again, err := MarshalInstances(instances)
	if err != nil {
		t.Fatal(err)
	}
	reread, _ := ParseInstances("instances.yaml", again)
	if diff := cmp.Diff(instances, reread); diff != "" {
		t.Error(diff)
	}
}

// A Service finds the ports of its replicas by number, by name, or by what the
// program listens on.
func TestTargetPorts(t *testing.T) {
	instances, err := MarshalInstances([]Instance{{
		Name: "web-1", Namespace: "default", Labels: map[string]string{"app": "web"},
		Spec: InstanceSpec{Address: "127.0.0.5", Ports: []InstancePort{{Name: "http", Port: 8080, App: 20001}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		port string
		want map[uint32]uint32
	}{
		{"{name: http, port: 8080}", map[uint32]uint32{8080: 8080}},
		{"{name: http, port: 80, targetPort: 8080}", map[uint32]uint32{80: 8080}},
		{"{name: http, port: 80, targetPort: http}", map[uint32]uint32{80: 8080}},
		{"{name: http, port: 80, targetPort: 20001}", map[uint32]uint32{80: 8080}}, // the port that the program listens on
		{"{name: http, port: 80, targetPort: other}", nil},
		{"{name: http, port: 80}", nil},
	} {
		for _, interception := range []string{"explicit", "redirect"} {
			text := "apiVersion: v1\nkind: Service\nmetadata: {name: front}\nspec: {selector: {app: web}, ports: [" + c.port + "]}"
			data := strings.Replace(string(instances), "address:", "interception: "+interception+"\n  address:", 1)
			mesh, problems := Parse(map[string][]byte{"a.yaml": []byte(text)}, []byte(data), Options{})
			want := c.want
			if interception == "redirect" && c.port == "{name: http, port: 80}" {
				want = map[uint32]uint32{80: 80} // reaches the workload whatever listens
			}
			var got map[uint32]uint32
			for _, e := range mesh.ServiceByHost("front.default.svc.cluster.local", "default").Endpoints {
				got = e.Ports
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s with %s: %s", c.port, interception, diff)
			}
			if warned := len(problems) == 1 && problems[0].Severity == Warning; len(Errors(problems)) > 0 || warned != (want == nil) {
				t.Errorf("%s with %s: %v", c.port, interception, problems)
			}
		}
	}
}

// TestPortsOfSidecars: a Service finds what the Sidecar of its replicas opens, the one that
// holds for them.
func TestPortsOfSidecars(t *testing.T) {
	instances, err := MarshalInstances([]Instance{{
		Name: "web-1", Namespace: "default", Labels: map[string]string{"app": "web"},
		Spec: InstanceSpec{Address: "127.0.0.5", Ports: []InstancePort{{Name: "http", Port: 8080, App: 20001}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	sidecar := func(namespace, name, selector, port string) string {
		return "\n---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: " + name + ", namespace: " + namespace + "}\nspec: {" + selector +
			"ingress: [{port: {number: " + port + ", protocol: HTTP, name: opened}, defaultEndpoint: \"127.0.0.1:8080\"}]}"
	}
	own, other, general, mesh := sidecar("default", "own", "workloadSelector: {labels: {app: web}}, ", "9001"), sidecar("default", "other", "workloadSelector: {labels: {app: db}}, ", "9002"),
		sidecar("default", "default", "", "9003"), sidecar("istio-system", "default", "", "9004")
	for _, c := range []struct {
		sidecars, target string
		want             map[uint32]uint32
	}{
		{own + other + general + mesh, "9001", map[uint32]uint32{80: 9001}},
		{own + other + general + mesh, "opened", map[uint32]uint32{80: 9001}},
		{own + other + general + mesh, "9003", nil},
		{other + general + mesh, "9003", map[uint32]uint32{80: 9003}},
		{other + general + mesh, "9002", nil},
		{mesh, "opened", map[uint32]uint32{80: 9004}},
		{mesh, "http", map[uint32]uint32{80: 8080}},
	} {
		text := "apiVersion: v1\nkind: Service\nmetadata: {name: front}\nspec: {selector: {app: web}, ports: [{port: 80, targetPort: " + c.target + "}]}" + c.sidecars
		m, problems := Parse(map[string][]byte{"a.yaml": []byte(text)}, instances, Options{})
		if m == nil {
			t.Fatalf("%s: %v", c.target, problems)
		}
		var got map[uint32]uint32
		for _, e := range m.ServiceByHost("front.default.svc.cluster.local", "default").Endpoints {
			got = e.Ports
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s with%s: %s", c.target, c.sidecars, diff)
		}
	}
}

// TestNear: Istio's annotation goes before Kubernetes' field.
func TestNear(t *testing.T) {
	zone, node := []string{model.NetworkLabel, model.RegionLabel, model.ZoneLabel}, []string{model.NetworkLabel, model.RegionLabel, model.ZoneLabel, model.SubzoneLabel, model.HostLabel}
	for _, c := range []struct {
		annotation, field string
		want              []string
	}{
		{"", "", nil},
		{"", ", trafficDistribution: PreferClose", zone},
		{"", ", trafficDistribution: PreferSameNode", node},
		{"PreferSameZone", "", zone},
		{"PreferSameNode", ", trafficDistribution: PreferClose", node},
		{"Any", ", trafficDistribution: PreferClose", nil},
	} {
		text := "apiVersion: v1\nkind: Service\nmetadata: {name: web, annotations: {networking.istio.io/traffic-distribution: \"" + c.annotation + "\"}}\nspec: {selector: {app: web}, ports: [{port: 80}]" + c.field + "}"
		m, problems := Parse(map[string][]byte{"a.yaml": []byte(text)}, nil, Options{})
		if m == nil {
			t.Fatalf("%v: %v", c, problems)
		}
		if got := m.ServiceByHost("web.default.svc.cluster.local", "default").Near; !slices.Equal(got, c.want) {
			t.Errorf("%v: %v", c, got)
		}
	}
}

func TestPortProtocol(t *testing.T) {
	for _, c := range []struct {
		name, app, transport string
		want                 model.Protocol
	}{
		{"http", "", "", model.HTTP},
		{"http-web", "", "TCP", model.HTTP},
		{"HTTP2-x", "", "", model.HTTP2},
		{"grpc", "", "", model.GRPC},
		{"grpc-web", "", "", model.GRPCWeb},
		{"grpc-web-x", "", "", model.GRPCWeb},
		{"grpc-webx", "", "", model.GRPC},
		{"https-a", "", "", model.HTTPS},
		{"web", "", "", model.TCP},
		{"", "", "", model.TCP},
		{"httpx", "", "", model.TCP},
		{"http", "tcp", "", model.TCP},
		{"web", "http", "", model.HTTP},
		{"web", "kubernetes.io/h2c", "", model.HTTP2},
		{"http", "example.com/own", "", model.TCP},
		{"dns", "", "UDP", model.UDP},
		{"mongo", "", "", model.Mongo},
		{"tls", "", "", model.TLS},
	} {
		if got := portProtocol(c.name, c.app, c.transport); got != c.want {
			t.Errorf("portProtocol(%q, %q, %q) = %v, want %v", c.name, c.app, c.transport, got, c.want)
		}
	}
}

func TestSameInputSameMesh(t *testing.T) {
	files := exampleFiles(t)
	first, _ := Parse(files, exampleInstances(t), Options{})
	for range 5 {
		again, _ := Parse(maps.Clone(files), exampleInstances(t), Options{})
		var a, b []string
		for i := range first.Services {
			a, b = append(a, first.Services[i].Hostname), append(b, again.Services[i].Hostname)
		}
		if !slices.Equal(a, b) {
			t.Fatalf("%v then %v", a, b)
		}
	}
}

func write(t testing.TB, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestInstanceUserOfTheProxy(t *testing.T) {
	uid := uint32(20001)
	data, err := MarshalInstances([]Instance{{Name: "web-1", Namespace: "default", Spec: InstanceSpec{Address: "10.0.0.1", Interception: "redirect", UID: &uid}}})
	if err != nil {
		t.Fatal(err)
	}
	mesh, problems := Parse(nil, data, Options{})
	if len(Errors(problems)) > 0 || len(mesh.Proxies) != 1 {
		t.Fatal(mesh, problems)
	}
	if p := mesh.Proxies[0]; p.UID == nil || *p.UID != uid || p.Interception != model.Redirect {
		t.Errorf("the proxy is %+v", p)
	}
}

// TestDynamicDNS: the name that the caller asked for is looked up.
func TestDynamicDNS(t *testing.T) {
	m, problems := Parse(map[string][]byte{"a.yaml": []byte(`apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wiki}
spec:
  hosts: ["*.wikipedia.org"]
  location: MESH_EXTERNAL
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}]
  resolution: DYNAMIC_DNS
`)}, nil, Options{})
	if len(problems) > 0 || len(m.Services) != 1 || m.Services[0].Resolution != model.None || len(m.Services[0].Endpoints) != 0 {
		t.Errorf("%v %+v", problems, m.Services)
	}
}
