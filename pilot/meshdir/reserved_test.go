package meshdir

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const entryForm = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: e, namespace: team}
spec: %s
`

// TestReserved tries to make a proxy a door to what belongs to the mesh, and what
// Istio's documentation has beside it.
func TestReserved(t *testing.T) {
	dir := t.TempDir()
	state, elsewhere := filepath.Join(dir, "state[1]"), filepath.Join(dir, "open")
	for _, d := range []string{state, elsewhere} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(state, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	options := Options{Dir: dir, Reserved: Reserved{
		Folders:   []string{state, "/tmp/writ-1000-????????????"},
		Addresses: []netip.Prefix{netip.MustParsePrefix("127.77.0.0/24")},
	}}
	unix := func(path string) string {
		return fmt.Sprintf(entryForm, "{hosts: [u.example.com], resolution: STATIC, ports: [{number: 80, name: grpc, protocol: GRPC}], endpoints: [{address: 'unix://"+path+"'}]}")
	}
	static := func(address string, port int) string {
		return fmt.Sprintf(entryForm, fmt.Sprintf("{hosts: [s.example.com], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: '%s', ports: {http: %d}}]}", address, port))
	}
	named := func(host string, port int) string {
		return fmt.Sprintf(entryForm, fmt.Sprintf("{hosts: ['%s'], resolution: DNS, ports: [{number: %d, name: http, protocol: HTTP}]}", host, port))
	}
	wild := func(host string, port int) string {
		return fmt.Sprintf(entryForm, fmt.Sprintf("{hosts: ['%s'], resolution: NONE, ports: [{number: %d, name: http, protocol: HTTP}]}", host, port))
	}
	for _, tc := range []struct {
		name, yaml, want string // want is a part of the refusal, "" for none
	}{
		{"Istio's example", unix("/var/run/example/socket"), ""},
		{"an abstract socket", unix("@example"), ""},
		{"another folder", unix(elsewhere + "/s"), ""},
		{"the state directory", unix(state + "/nodeagent.sock"), "reserved"},
		{"the state directory by a link", unix(dir + "/link/nodeagent.sock"), "reserved"},
		{"a socket that is not there yet, by a link", unix(dir + "/link/a/b/nodeagent.sock"), "reserved"},
		{"the default state directory", unix(dir + "/.writ/s"), "reserved"},
		{"sockets of a mesh", unix("/tmp/writ-1000-0123456789ab/nodeagent.sock"), "reserved"},
		{"a folder whose name is much alike", unix("/tmp/writ-1000-test/s"), ""},
		{"the agent of compose", unix("/run/writ/agent/agent.sock"), "reserved"},
		{"the agent of compose by a link", unix("/var/run/writ/agent/agent.sock"), "reserved"},
		{"two slashes", unix("//run//writ/agent/agent.sock"), "reserved"},
		{"dots", unix("/run/./writ/agent.sock"), "reserved"},
		{"up", unix("/var/run/example/../writ/agent.sock"), `".."`},
		{"the root of another process", unix("/proc/1/root/run/writ/agent.sock"), "/proc"},
		{"a descriptor", unix("/dev/fd/3"), "/dev"},
		{"an abstract socket of the mesh", unix("@writ/agent"), "reserved"},
		{"107 bytes", unix("/" + strings.Repeat("a", 106)), ""},
		{"108 bytes", unix("/" + strings.Repeat("a", 107)), "107 bytes"},
		{"not absolute", unix("run/s"), "absolute"},

		{"a server on this machine", static("127.0.0.1", 8080), ""},
		{"a server elsewhere on a port of ours", static("192.0.2.1", 15000), ""},
		{"the proxy's administration", static("127.0.0.1", 15000), "reserved"},
		{"another replica's administration", static("127.77.1.4", 15000), "reserved"},
		{"the explicit proxy", static("127.0.0.1", 15007), "reserved"},
		{"the explicit proxy in IPv6", static("::1", 15007), "reserved"},
		{"the explicit proxy, mapped", static("::ffff:127.0.0.1", 15007), "reserved"},
		{"any address", static("0.0.0.0", 15006), "reserved"},
		{"a metadata server", static("169.254.169.254", 80), ""},
		{"link-local", static("169.254.1.1", 15000), "reserved"},
		{"the services of the mesh", static("127.77.0.1", 8443), "reserved"},
		{"the port of the service", fmt.Sprintf(entryForm, "{hosts: [s.example.com], resolution: STATIC, ports: [{number: 15000, name: http, protocol: HTTP}], endpoints: [{address: 127.0.0.1}]}"), "reserved"},
		{"the target port of the service", fmt.Sprintf(entryForm, "{hosts: [s.example.com], resolution: STATIC, ports: [{number: 80, targetPort: 15000, name: http, protocol: HTTP}], endpoints: [{address: 127.0.0.1}]}"), "reserved"},

		{"localhost", named("localhost", 8080), ""},
		{"localhost's administration", named("localhost", 15000), "reserved"},
		{"localhost as an endpoint", fmt.Sprintf(entryForm, "{hosts: [s.example.com], resolution: DNS, ports: [{number: 15007, name: http, protocol: HTTP}], endpoints: [{address: LocalHost.}]}"), "reserved"},
		{"a number that a resolver takes for 127.0.0.1", named("0x7f000001", 15007), "reserved"},
		{"a name that leads to an administration", named("a.example.com", 15000), "reserved"},
		{"pilot elsewhere", named("istiod.example.com", 15012), ""},
		{"names without resolution", wild("*.localhost", 80), ""},
		{"names without resolution, to the explicit proxy", wild("*.localhost", 15007), "reserved"},

		{"a WorkloadEntry that a ServiceEntry selects", fmt.Sprintf(entryForm, "{hosts: [s.example.com], resolution: STATIC, ports: [{number: 15000, name: http, protocol: HTTP}], workloadSelector: {labels: {app: w}}}") +
			"---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: w, namespace: team}\nspec: {address: 127.0.0.1, labels: {app: w}}\n", "reserved"},
		{"a WorkloadEntry that a Service selects", "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: team}\nspec: {selector: {app: w}, ports: [{name: http, port: 80, targetPort: 15000}]}\n" +
			"---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: w, namespace: team}\nspec: {address: 127.0.0.1, labels: {app: w}}\n", "reserved"},
		{"an endpoint of an EndpointSlice", sliceService + slice("a", "IPv4", "{name: http, port: 8080}", "{addresses: [127.0.0.1]}"), ""},
		{"an EndpointSlice with an administration", sliceService + slice("a", "IPv4", "{name: http, port: 15000}", "{addresses: [127.77.1.4]}"), "reserved"},
		{"an EndpointSlice with an administration in IPv6", sliceService + slice("a", "IPv6", "{name: http, port: 15000}", "{addresses: ['::1']}"), "reserved"},
		{"an EndpointSlice with the explicit proxy, not ready", sliceService + slice("a", "IPv4", "{name: tcp-db, port: 15007}", "{addresses: [127.0.0.1], conditions: {ready: false}}"), "reserved"},
		{"an EndpointSlice with the services of the mesh", sliceService + slice("a", "IPv4", "{name: http, port: 8443}", "{addresses: [10.0.0.1, 127.77.0.1]}"), "reserved"},
		{"an EndpointSlice with a metadata server", sliceService + slice("a", "IPv4", "{name: http, port: 80}", "{addresses: [169.254.169.254]}"), "link-local"},
		{"a gateway that listens in place of the agent", "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: team}\nspec: {selector: {app: g}, servers: [{bind: 'unix:///run/writ/agent.sock', port: {number: 0, name: http, protocol: HTTP}, hosts: ['*']}]}\n", "reserved"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, problems := Parse(map[string][]byte{"a.yaml": []byte(tc.yaml)}, nil, options)
			errs := Errors(problems)
			switch {
			case tc.want == "" && len(errs) > 0:
				t.Errorf("refused: %v", errs)
			case tc.want == "":
			case len(errs) == 0:
				t.Errorf("not refused: %v", problems)
			case !strings.Contains(errs[0].Message, tc.want) || errs[0].File != "a.yaml" || errs[0].Line == 0:
				t.Errorf("refused with %v", errs)
			}
		})
	}
}

// TestNamedFiles: which files an object gets at.
func TestNamedFiles(t *testing.T) {
	top := t.TempDir()
	dir, state, other := filepath.Join(top, "mesh"), filepath.Join(top, "state"), filepath.Join(top, "other")
	for _, name := range []string{dir + "/certs/a.pem", dir + "/.hidden/a.pem", dir + "/.writ/a.pem", state + "/a.pem", other + "/a.pem", other + "/.writ/a.pem"} {
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{dir + "/out": other, dir + "/certs/link.pem": "a.pem", dir + "/certs/state.pem": dir + "/.writ/a.pem", dir + "/certs/hidden": "../.writ", other + "/state": state} {
		if err := os.Symlink(to, name); err != nil {
			t.Fatal(err)
		}
	}
	options := NewReader(Options{Dir: dir, Reserved: Reserved{Folders: []string{state}}}).options
	for name, allowed := range map[string]bool{
		"certs/a.pem": true, "./certs/a.pem": true, "certs/link.pem": true, other + "/a.pem": true, dir + "/certs/a.pem": true,
		".hidden/a.pem": false, ".writ/a.pem": false, "certs/../.writ/a.pem": false, "certs/hidden/a.pem": false, "certs/state.pem": false,
		"../other/a.pem": false, "out/a.pem": false, "certs": false, "": false,
		state + "/a.pem": false, other + "/state/a.pem": false, other + "/../state/a.pem": false, dir + "/.writ/a.pem": false, other + "/.writ/a.pem": false, dir + "/certs/state.pem": false,
		"/proc/self/environ": false, "/dev/zero": false,
	} {
		if _, err := options.ReadFile(name); (err == nil) != allowed {
			t.Errorf("%q: %v", name, err)
		}
	}
}
