package bundle

import (
	"fmt"
	"strings"
	"testing"

	opabundle "github.com/open-policy-agent/opa/v1/bundle"

	"github.com/writ-mesh/writ/authz/bundletest"
)

// TestSmall: what is small is so when it is unpacked, however little came.
func TestSmall(t *testing.T) {
	many := map[string]string{}
	for i := range smallModules + 1 {
		many[fmt.Sprint(i, ".rego")] = ""
	}
	archive := func(files map[string]string) []byte { return bundletest.Tarball(t, files) }
	for name, c := range map[string]struct {
		archive []byte
		want    bool
	}{
		"a policy":      {archive(policy(1)), true},
		"all spaces":    {archive(map[string]string{"a.rego": "package a\n" + strings.Repeat(" ", 1<<20)}), false},
		"all data":      {archive(map[string]string{"data.json": "[" + strings.Repeat("1,", smallUnpacked/2) + "1]"}), false},
		"in many parts": {archive(many), false},
		"padding":       {archive(map[string]string{"/" + strings.Repeat("a", smallRead): ""}), false},
		// With a long name's own headers the first file ends just where nothing is looked at any more.
		"more behind": {archive(map[string]string{"/" + strings.Repeat("a", smallRead-2*512-112): "", "b.rego": "package b\n" + strings.Repeat(" ", 1<<20)}), false},
		"cut off":     {archive(policy(1))[:100], false},
		"not packed":  {[]byte("package a"), false},
		"nothing":     {nil, false},
	} {
		if len(c.archive) > smallBytes {
			t.Fatalf("%s: %d bytes came", name, len(c.archive))
		}
		b := &opabundle.Bundle{Raw: []opabundle.Raw{{Path: wrappedName, Value: append([]byte(wrappedMagic), c.archive...)}}}
		if got := small(map[string]*opabundle.Bundle{"b": b}); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
	if plain := (&opabundle.Bundle{Raw: []opabundle.Raw{{Path: "data.json", Value: make([]byte, smallBytes+1)}}}); small(map[string]*opabundle.Bundle{"b": plain}) {
		t.Error("what is large as it came is small")
	}
}
