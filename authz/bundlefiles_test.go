package authz

import (
	"os"
	"testing"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// A policy whose bundle is on this machine is compiled anew when a file of it changed,
// and only then: its data may be large.
func TestFilesState(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir+"/p.rego", "package p")
	writeFile(t, dir+"/data.json", `{"a": 1}`)
	policy := &configpb.RegoPolicy{Name: "p", Query: "data.p.allow", Bundle: &configpb.Bundle{Url: "file://" + dir}}
	last := [32]byte{}
	look := func(what string, same bool) {
		t.Helper()
		fp, err := fingerprint(policy)
		if err != nil {
			t.Fatal(err)
		}
		if (fp == last) != same {
			t.Errorf("%s: the same is %v, want %v", what, fp == last, same)
		}
		last = fp
	}
	look("first", false)
	look("again", true)
	info, err := os.Stat(dir + "/data.json")
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir+"/next", `{"a": 2}`)
	if err := os.Chtimes(dir+"/next", info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir+"/next", dir+"/data.json"); err != nil {
		t.Fatal(err)
	}
	look("another file of the same size and time", false)
	writeFile(t, dir+"/q.rego", "package q")
	look("one more", false)
	look("again", true)
	if err := os.Symlink(dir+"/q.rego", dir+"/r.rego"); err != nil {
		t.Fatal(err)
	}
	look("a link", false)
	look("a link again", false)
	policy.Bundle.Url = "file://" + dir + "/data.json"
	look("a file", false)
	look("a file again", true)
	policy.Bundle.Url += ".gone"
	look("gone", false)
	look("still gone", false)
}
