package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// TestTwoRegionsExample: the two meshes of examples/two-regions keep 4 requests a minute
// together, and one that is alone has its part.
func TestTwoRegionsExample(t *testing.T) {
	t.Parallel()
	dir := copyDir(t, "../examples/two-regions")
	regions := []string{"east", "west"}
	ports := strings.NewReplacer("8081", fmt.Sprint(proctest.Port(t)), "8082", fmt.Sprint(proctest.Port(t)),
		"8181", fmt.Sprint(proctest.Port(t)), "8182", fmt.Sprint(proctest.Port(t)))
	meshes := map[string]*mesh{}
	for _, name := range regions {
		if err := os.RemoveAll(filepath.Join(dir, name, ".writ")); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{name + "-ratelimit.yaml", name + "/networking.yaml"} {
			data, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				t.Fatal(err)
			}
			write(t, dir, file, ports.Replace(string(data)))
		}
		meshes[name] = start(t, filepath.Join(dir, name), "--ratelimit", filepath.Join(dir, name+"-ratelimit.yaml"))
	}
	for _, name := range regions {
		meshes[name].waitReady()
	}
	counter := func(name string) string {
		out, _ := writ(t, "limits", "get", "default/keys/0?request.headers[x-key]=a", meshes[name].dir)
		return out
	}
	c := client("")
	ask := func(name, key string) bool {
		t.Helper()
		switch got := do(c, request{url: meshes[name].gateway("door"), headers: []string{"x-key: " + key}}); got.status {
		case http.StatusOK:
			return true
		case http.StatusTooManyRequests:
		default:
			t.Fatalf("%s: %s", name, got)
		}
		return false
	}
	// exactly sees that so many pass, and then no more.
	exactly := func(name, key string, want int) {
		t.Helper()
		n := 0
		proctest.Until(t, 20*time.Second, fmt.Sprintf("%d that pass in %s", want, name), func() bool {
			if ask(name, key) {
				n++
			}
			return n >= want
		})
		for range 10 {
			if ask(name, key) {
				n++
			}
		}
		if n != want {
			t.Errorf("%d pass in %s, want %d", n, name, want)
		}
	}
	for name, other := range map[string]string{"east": "west", "west": "east"} {
		proctest.Until(t, 20*time.Second, "the other region", func() bool { return strings.Contains(counter(name), other+" answered") })
	}
	exactly("east", "a", 3)
	exactly("west", "a", 1)
	if out := counter("east"); !strings.Contains(out, "region east has 2 of 4") {
		t.Errorf("operators are told: %s", out)
	}
	out, code := writ(t, "limits", "grant", "default/keys/0?request.headers[x-key]=a", "3", "--all-regions", "--reason", "test", meshes["east"].dir)
	if want := "\n  region east: 2 of its 2 are left, 2 given back\n  region west: 1 of its 2 are left, 1 given back\n"; code != 0 || !strings.HasSuffix(out, want) {
		t.Errorf("a grant in all regions: exit code %d: %s", code, out)
	}
	exactly("east", "a", 2)
	exactly("west", "a", 1)
	meshes["west"].stop()
	proctest.Until(t, 20*time.Second, "west to be away", func() bool { return strings.Contains(counter("east"), "west is away") })
	exactly("east", "b", 2)
}
