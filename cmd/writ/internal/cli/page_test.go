package cli

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"
)

// pageExample runs an example of docs/authorization.md: the files of a section, and of
// the test, are the mesh directory "shop", and the commands say of it what the page says.
func pageExample(t *testing.T, title string, files map[string]string) {
	t.Helper()
	page, err := os.ReadFile("../../../../docs/authorization.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "## "+title+"\n")
	section, _, _ = strings.Cut(section, "\n## ")
	yaml := regexp.MustCompile("(?s)```yaml\n# ([a-z.]+)\n(.*?)```").FindAllStringSubmatch(section, -1)
	console := regexp.MustCompile("(?s)```console\n(.*?)```").FindStringSubmatch(section)
	if yaml == nil || console == nil {
		t.Fatal("the page has no example any more")
	}
	for _, y := range yaml {
		files[y[1]] = y[2]
	}
	t.Chdir(t.TempDir())
	if err := os.Mkdir("shop", 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile("shop/"+name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	commands := regexp.MustCompile(`(?m)^\$ writ (.*)\n`)
	said := commands.Split(console[1], -1)[1:]
	for i, command := range commands.FindAllStringSubmatch(console[1], -1) {
		var out bytes.Buffer
		Main(strings.Fields(command[1]), &out, &out)
		if out.String() != said[i] {
			t.Errorf("writ %s says\n%s\nthe page\n%s", command[1], &out, said[i])
		}
	}
}

// TestRegoAndTCPOnThePage runs the example of Rego at TCP ports.
func TestRegoAndTCPOnThePage(t *testing.T) {
	pageExample(t, "Rego and TCP ports", map[string]string{"mesh.yaml": "trustDomain: cluster.local\n"})
}

// TestPoliciesOnThePage runs the example of AuthorizationPolicies.
func TestPoliciesOnThePage(t *testing.T) {
	workloads := ""
	for _, w := range []struct{ name, ports string }{
		{"orders", "{name: http, port: 8080}"}, {"feed", "{name: tcp-feed, port: 9090}"}, {"web", "{name: http, port: 8080}"}, {"batch", "{name: http, port: 8080}"}, {"risk", "{name: http, port: 8000}"},
	} {
		workloads += "---\napiVersion: local.writ.mesh/v1alpha1\nkind: LocalWorkload\nmetadata: {name: " + w.name + ", labels: {app: " + w.name + "}}\nspec: {serviceAccount: " + w.name + ", ports: [" + w.ports + "]}\n"
	}
	pageExample(t, "AuthorizationPolicy", map[string]string{"workloads.yaml": workloads})
}
