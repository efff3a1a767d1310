package model_test

import (
	"strings"
	"testing"

	"github.com/writ-mesh/writ/internal/fieldtest"
	"github.com/writ-mesh/writ/pilot/model"
)

// TestContentHash: it is another one for all that authz decides by, and for nothing else,
// so that no edit of anything else has routes sent again.
func TestContentHash(t *testing.T) {
	p := &model.RegoPolicy{}
	fieldtest.Fill(p)
	p.Form = nil
	silent := []string{".Meta", ".Selector", ".FailOpen", ".BundleRefresh", ".Fingerprint", ".ModuleFile", ".ModuleLine", ".Form"}
	base := p.ContentHash()
	if len(base) != 32 {
		t.Fatalf("%q", base)
	}
	fieldtest.Each(p, func(field string) {
		want := false
		for _, s := range silent {
			want = want || field == s || strings.HasPrefix(field, s+".") || strings.HasPrefix(field, s+"[")
		}
		if got := p.ContentHash() == base; got != want {
			t.Errorf("%s: the same hash is %v, want %v", field, got, want)
		}
	})
	// Text does not move from one field to another.
	a, b := &model.RegoPolicy{Query: "ab", Module: "c"}, &model.RegoPolicy{Query: "a", Module: "bc"}
	if a.ContentHash() == b.ContentHash() {
		t.Error("two contents have one hash")
	}
}
