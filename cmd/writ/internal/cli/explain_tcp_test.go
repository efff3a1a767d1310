package cli

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestRegoAndTCPOnThePage runs the example of docs/authorization.md: the commands say
// of the mesh on the page what the page says.
func TestRegoAndTCPOnThePage(t *testing.T) {
	page, err := os.ReadFile("../../../../docs/authorization.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "## Rego and TCP ports\n")
	section, _, _ = strings.Cut(section, "\n## ")
	yaml := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindStringSubmatch(section)
	console := regexp.MustCompile("(?s)```console\n(.*?)```").FindStringSubmatch(section)
	if yaml == nil || console == nil {
		t.Fatal("the page has no example any more")
	}
	t.Chdir(t.TempDir())
	if err := os.Mkdir("shop", 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"mesh.yaml": "trustDomain: cluster.local\n", "shop.yaml": strings.TrimPrefix(yaml[1], "# shop.yaml\n")} {
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
