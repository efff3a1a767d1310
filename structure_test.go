// Package writ_test holds the rules of the repository's structure that no
// compiler knows: who may import whom, and which package is the one door to a
// large library.
package writ_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/writ-mesh/writ/"

type goPackage struct {
	ImportPath string
	Name       string
	Doc        string
	Imports    []string
}

// packages lists the packages of the repository; imports are those of the
// program, not of its tests, which may play any neighbour.
func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Name,Doc,Imports", "./...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func room(importPath string) string {
	rest, ok := strings.CutPrefix(importPath, module)
	if !ok {
		return ""
	}
	top, _, _ := strings.Cut(rest, "/")
	return top
}

func TestDirectionOfImports(t *testing.T) {
	services := []string{"ca", "nodeagent", "authz", "ratelimit", "pilot"}
	for _, p := range packages(t) {
		from := room(p.ImportPath)
		for _, imported := range p.Imports {
			to := room(imported)
			switch {
			case to == "" || to == from:
			case slices.Contains(services, from) && slices.Contains(services, to):
				t.Errorf("%s imports %s: services meet in proto only", p.ImportPath, imported)
			case (from == "internal" || from == "proto") && to != "internal" && to != "proto":
				t.Errorf("%s imports %s: leaves import nothing above them", p.ImportPath, imported)
			case to == "cmd" || to == "e2e" || to == "bench":
				t.Errorf("%s imports %s: nothing imports a program", p.ImportPath, imported)
			}
		}
	}
}

// TestOneDoor: a large library is used by one package, behind which it could be
// replaced.
func TestOneDoor(t *testing.T) {
	doors := map[string]string{
		"github.com/smallstep/certificates/cas/softcas":           "ca/signer",
		"github.com/smallstep/certificates/acme":                  "ca/acme",
		"github.com/smallstep/certificates/authority":             "ca/acme",
		"go.step.sm/crypto/kms":                                   "ca/kms",
		"github.com/open-policy-agent/opa":                        "authz/rego authz/bundle authz/basedoc authz/unpack", // its evaluator, its plugins, where they find data, and its reader
		"github.com/redis/go-redis":                               "ratelimit/redisstore",
		"github.com/envoyproxy/go-control-plane/pkg/server":       "pilot/xds",
		"github.com/envoyproxy/go-control-plane/pkg/cache":        "pilot/xds",
		"github.com/spf13/cobra":                                  "cmd/writ/internal/cli",
		"github.com/golang-jwt/jwt":                               "authz/token",
		"github.com/prometheus/client_golang/prometheus/promhttp": "internal/service",
	}
	for _, p := range packages(t) {
		own := strings.TrimPrefix(p.ImportPath, module)
		for _, imported := range p.Imports {
			for library, door := range doors {
				if (imported == library || strings.HasPrefix(imported, library+"/")) && !slices.Contains(strings.Fields(door), own) {
					t.Errorf("%s imports %s, whose door is %s", own, imported, door)
				}
			}
		}
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for _, p := range packages(t) {
		if strings.HasPrefix(p.ImportPath, module+"proto/") || p.ImportPath+"/" == module {
			continue
		}
		prefix := "Package " + p.Name + " "
		if p.Name == "main" {
			prefix = "Command " + path.Base(p.ImportPath) + " "
			if strings.HasSuffix(p.ImportPath, "examples/bookinfo/app") {
				prefix = "Command bookinfo "
			}
		}
		if !strings.HasPrefix(p.Doc, prefix) {
			t.Errorf("%s: the package comment begins %.40q, want %q", p.ImportPath, p.Doc, prefix)
		}
	}
}
