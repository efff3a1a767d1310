package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// bookinfo copies the example, with its gateway at a port of the test's own.
func bookinfo(t *testing.T) string {
	t.Helper()
	dir := copyDir(t, filepath.Join("..", "examples", "bookinfo"))
	edit(t, dir, "networking.yaml", "number: 8080", fmt.Sprintf("number: %d", proctest.Port(t)))
	return dir
}

// edit replaces a text in a file.
func edit(t *testing.T, dir, name, old, text string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil || !strings.Contains(string(data), old) {
		t.Fatalf("%s: %q is not in it, %v", name, old, err)
	}
	write(t, dir, name, strings.ReplaceAll(string(data), old, text))
}

// says waits for what the terminal of `writ up` is to say.
func (m *mesh) says(want ...string) {
	m.t.Helper()
	proctest.Eventually(m.t, 15*time.Second, func() error {
		for _, w := range want {
			if !regexp.MustCompile(w).MatchString(m.err.String()) {
				return fmt.Errorf("%q is not in:\n%s", w, m.err)
			}
		}
		return nil
	})
}

// answers waits for the exit code and the text of a command.
func answers(t *testing.T, code int, want string, args ...string) {
	t.Helper()
	proctest.Eventually(t, 15*time.Second, func() error {
		if out, got := writ(t, args...); got != code || !strings.Contains(out, want) {
			return fmt.Errorf("writ %v: exit code %d, want %d and %q in:\n%s", args, got, code, want, out)
		}
		return nil
	})
}

// TestFirstUse goes the way of a newcomer: the example, an edit, a mistake, a
// service of one's own as docs/meshdir.md has it.
func TestFirstUse(t *testing.T) {
	t.Parallel()
	dir := bookinfo(t)
	m := up(t, dir)
	m.says(`Ctrl-C ends it`)
	if lines := strings.Count(m.err.String(), "\n"); lines > 6 {
		t.Errorf("%d lines are printed:\n%s", lines, m.err)
	}
	door := m.gateway("bookinfo-gateway")
	if got := do(client(""), request{url: door + "/"}); got.status != http.StatusFound || got.header.Get("Location") != "/productpage" {
		t.Errorf("the bare address: %s", got)
	}

	edit(t, dir, "policies/who-may-call.yaml", "[GET]", "[GET, HEAD]")
	m.says(`revision \d+ is live \(policies/who-may-call.yaml\) after \d+m?s`)
	edit(t, dir, "policies/who-may-call.yaml", "principals", "principles")
	m.says(`error: \S+/policies/who-may-call.yaml:8: .*principles.*; what was there before stays in force`)
	edit(t, dir, "policies/who-may-call.yaml", "principles", "principals")
	m.says(`no errors any more: revision \d+ is in force`)
	write(t, dir, "new.yaml", "kind: RegoPolicy\nmetadata: {name: x}\nspec: {qurey: x}\n")
	m.says(`error: \S+/new.yaml:3: .*; not in force: it has no earlier content`)
	answers(t, 1, "not in force", "status", dir)
	if err := os.Remove(filepath.Join(dir, "new.yaml")); err != nil {
		t.Fatal(err)
	}
	answers(t, 0, "serving revision", "status", dir)

	page, err := os.ReadFile(filepath.Join("..", "docs", "meshdir.md"))
	if err != nil {
		t.Fatal(err)
	}
	snippet := func(begin string) string {
		_, after, ok := strings.Cut(string(page), begin)
		text, _, end := strings.Cut(after, "```")
		if !ok || !end {
			t.Fatalf("docs/meshdir.md does not have %q", begin)
		}
		return text
	}
	write(t, dir, "hello.py", strings.ReplaceAll(snippet("   ```python\n"), "\n   ", "\n")[3:])
	write(t, dir, "hello.yaml", snippet("```yaml\n# shop/hello.yaml\n"))
	proctest.Eventually(t, 20*time.Second, func() error {
		got := do(client(""), request{url: door + "/hello.py", headers: []string{"Host: hello.example"}})
		if got.status != http.StatusOK || !strings.Contains(got.body, "http.server") {
			return fmt.Errorf("a service of one's own: %s", got)
		}
		return nil
	})
	m.says(`started hello-1`)
}

// TestProgramsThatDoNotRun: what is wrong with a program is told, and holds back
// nothing else.
func TestProgramsThatDoNotRun(t *testing.T) {
	t.Parallel()
	program := func(name, command string) string {
		return fmt.Sprintf("kind: LocalWorkload\nmetadata: {name: %s, labels: {app: %s}}\nspec:\n  command: [%s]\n  ports: [{name: http, port: 8000}]\n", name, name, command)
	}
	dir := writeFiles(t, map[string]string{"workloads.yaml": workload("a", "a", newEcho(t, "a"))})
	m := up(t, dir)
	write(t, dir, "x.yaml", program("x", "pyhton3, x.py"))
	m.says(`error: \S+/x.yaml:1: LocalWorkload default/x: spec.command: there is no program "pyhton3"`)
	answers(t, 1, `x.yaml:1: LocalWorkload default/x: spec.command: there is no program "pyhton3"`, "status", dir)
	answers(t, 0, "warning: "+filepath.Join(dir, "x.yaml:1"), "validate", dir)

	write(t, dir, "x.yaml", program("x", "sh, -c, 'echo it is broken; exit 3'"))
	m.says(`warning: process ended.* log=\S+/app-default-x-1.log`, `started x-1`)
	answers(t, 1, `exit status 3`, "status", dir)
	answers(t, 1, `it is broken`, "status", dir)

	// One that does not listen, and an edit of workloads behind it.
	write(t, dir, "x.yaml", program("x", "sleep, '1000'"))
	proctest.Eventually(t, 10*time.Second, func() error {
		for _, c := range m.children() {
			if c.name == "sleep" {
				return nil
			}
		}
		return fmt.Errorf("sleep does not run: %v", m.children())
	})
	began := time.Now()
	write(t, dir, "b.yaml", workload("b", "b", newEcho(t, "b")))
	proctest.Eventually(t, 15*time.Second, func() error {
		if got := m.get("a-1", "http://b:8000/"); got.status != http.StatusOK {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("an edit waited %s for a program that does not listen", took)
	}
	answers(t, 1, "does not listen on 127.0.0.1:", "status", dir)
	if err := os.Remove(filepath.Join(dir, "x.yaml")); err != nil {
		t.Fatal(err)
	}
	answers(t, 0, "serving revision", "status", dir)
}

// TestStateBelongsToOneDirectory: a copied state is refused, a moved one is taken
// along.
func TestStateBelongsToOneDirectory(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	dir, other, moved := filepath.Join(parent, "dir"), filepath.Join(parent, "other"), filepath.Join(parent, "moved")
	write(t, dir, "workloads.yaml", workload("a", "a", newEcho(t, "a"))+doorGateway(proctest.Port(t), "gateway: door")+doorTo("a"))
	m := up(t, dir)
	root, err := os.ReadFile(filepath.Join(dir, ".writ", "ca", "root.crt"))
	if err != nil {
		t.Fatal(err)
	}
	// Another mesh has the gateway's port: it is named.
	write(t, other, "workloads.yaml", mustRead(t, filepath.Join(dir, "workloads.yaml")))
	fails(t, other, nil, nil, "in use by `writ up "+dir+"`")
	m.stop()
	m.says(`stopping\nended`)
	if err := os.RemoveAll(other); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(other, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(other, ".writ"), 0o700); err != nil {
		t.Fatal(err)
	}
	fails(t, other, nil, nil, filepath.Join(other, ".writ")+" belongs to "+dir, "remove it", "--state")
	if err := os.Rename(dir, moved); err != nil {
		t.Fatal(err)
	}
	up(t, moved)
	if got := mustRead(t, filepath.Join(moved, ".writ", "ca", "root.crt")); got != string(root) {
		t.Error("a moved directory has another root")
	}
}

func mustRead(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestWhoHasWhichCertificate asks as an operator does.
func TestWhoHasWhichCertificate(t *testing.T) {
	t.Parallel()
	dir := writeFiles(t, map[string]string{"workloads.yaml": workload("a", "a", newEcho(t, "a")) + doorGateway(proctest.Port(t), "gateway: door") + doorTo("a")})
	up(t, dir)
	out, code := writ(t, "certs", "ls", dir)
	for _, want := range []string{`(?m)^WORKLOAD +EXPIRES IN +EXPIRES AT \(UTC\)`, `(?m)^a-1 +\d+m .*/ns/default/sa/a `, `(?m)^door +\d+m `, `(?m)^writ-pilot +\d+m `, `root .* expires in \d+d`} {
		if code != 0 || !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("exit code %d, %q is not in:\n%s", code, want, out)
		}
	}
	out, code = writ(t, "certs", "show", "a-1", dir, "-o", "json")
	var shown struct {
		Workload, Serial, SPIFFEID, Issuer, Key string
		SAN                                     []string
		Chain, Roots                            []any
	}
	if err := json.Unmarshal([]byte(out), &shown); err != nil || code != 0 {
		t.Fatalf("exit code %d, %v: %s", code, err, out)
	}
	if shown.Workload != "a-1" || shown.Serial == "" || shown.Key != "ECDSA P-256" || !strings.Contains(shown.Issuer, "Writ root") ||
		len(shown.SAN) != 1 || shown.SAN[0] != "spiffe://cluster.local/ns/default/sa/a" || len(shown.Chain) != 1 || len(shown.Roots) != 1 {
		t.Errorf("%+v", shown)
	}
	answers(t, 0, "spiffe://cluster.local/ns/istio-system/sa/door", "certs", "show", "door", dir)
	answers(t, 1, "there are a-1, door", "certs", "show", "b-1", dir)
	answers(t, 1, "begin with spiffe://", "certs", "ls", dir, "--id", "nonsense")
}

// TestWhatAnEnvoyHas asks Envoys for their configuration, as an operator does.
func TestWhatAnEnvoyHas(t *testing.T) {
	t.Parallel()
	dir := writeFiles(t, map[string]string{
		"workloads.yaml": workload("a", "a", newEcho(t, "a")) + workload("b", "b", newEcho(t, "b"), "version: v1") + doorGateway(proctest.Port(t), "gateway: door") + doorTo("a"),
		"routes.yaml": object("VirtualService", "default", "b", "hosts: [b]\nhttp: [{match: [{uri: {prefix: /old}}], redirect: {uri: /new}}, {route: [{destination: {host: b, subset: v1}}]}]") +
			object("DestinationRule", "default", "b", "host: b\nsubsets: [{name: v1, labels: {version: v1}}]"),
	})
	m := up(t, dir)
	for command, want := range map[string]string{
		"listeners a-1": `(?m)^` + regexp.QuoteMeta(m.addressOf("a-1")) + ` +8000 +active +tls +routes inbound\|8000\|\|~\w+$`,
		"routes a-1 --host b.default.svc.cluster.local:8000":                   `(?m) /old.* redirect to the same host/new\n.* /\* +outbound\|8000\|v1\|b\.default\.svc\.cluster\.local$`,
		"clusters a-1 --direction outbound --subset v1":                        `^HOST .*\nb\.default\.svc\.cluster\.local +8000 +v1 +outbound +EDS +active\n$`,
		"endpoints a-1 --cluster outbound|8000|v1|b.default.svc.cluster.local": `^ENDPOINT .*\n` + regexp.QuoteMeta(m.addressOf("b-1")) + `:8000 +HEALTHY +no .*\n$`,
		"secrets a-1":    `(?m)^default +certificate chain +active +1 +\S+ +\d+m .* spiffe://cluster\.local/ns/default/sa/a$`,
		"secrets door":   `spiffe://cluster\.local/ns/istio-system/sa/door`,
		"listeners door": `routes `,
	} {
		args := strings.Fields("proxy-config " + command)
		out, code := writ(t, append(args[:3:3], append([]string{dir}, args[3:]...)...)...)
		if code != 0 || !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("%s: exit code %d, %q is not in\n%s", command, code, want, out)
		}
	}
	answers(t, 1, "there are none such", "proxy-config", "clusters", "a-1", dir, "--fqdn", "nobody")
	answers(t, 1, "there are a-1, b-1, door", "proxy-config", "clusters", "c-1", dir)
	// Beside what Envoys have stands what it was made of.
	answers(t, 0, "routes.yaml:2", "get", "virtualservices", dir, "--live")
	answers(t, 0, "uri: {prefix: /old}", "get", "vs", dir, "--live", "--yaml")
	answers(t, 0, "DestinationRule", "get", "all", dir, "--live")
	answers(t, 0, "door", "get", "gateways", dir)
	out, code := writ(t, "pc", "s", "a-1", dir, "-o", "json")
	if code != 0 || strings.Contains(strings.ToLower(out), "private") {
		t.Errorf("exit code %d, and keys may be in\n%s", code, out)
	}
	saved := filepath.Join(t.TempDir(), "dump.json")
	dump := do(client(""), request{url: m.adminOf("a-1") + "/config_dump?include_eds"})
	if err := os.WriteFile(saved, []byte(dump.body), 0o600); err != nil {
		t.Fatal(err)
	}
	live, _ := writ(t, "proxy-config", "routes", "a-1", dir)
	if again, code := writ(t, "proxy-config", "routes", "-f", saved); code != 0 || again != live {
		t.Errorf("from a file, exit code %d:\n%s\nlive\n%s", code, again, live)
	}
}
