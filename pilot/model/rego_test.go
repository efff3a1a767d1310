package model_test

import (
	"strings"
	"testing"

	"github.com/writ-mesh/writ/internal/fieldtest"
	"github.com/writ-mesh/writ/pilot/model"
)

// TestQuotaContentHash: it is another one for all that ratelimit counts by, and for nothing
// else, so that no edit of anything else has two contents.
func TestQuotaContentHash(t *testing.T) {
	p := &model.QuotaPolicy{}
	fieldtest.Fill(p)
	hashed(t, p, p.ContentHash, ".Meta", ".Selector", ".Match", ".Upper", ".Lower", ".FailClosed", ".Fingerprint", ".Limits[0].Name")
	if p.Limits[0].Name == "" {
		t.Error("the policy was changed by it")
	}
}

// hashed holds a hash to each field of what it is of: it changes with all but the silent.
func hashed[T any](t *testing.T, p *T, hash func() string, silent ...string) {
	t.Helper()
	base := hash()
	if len(base) != 32 {
		t.Fatalf("%q", base)
	}
	fieldtest.Each(p, func(field string) {
		want := false
		for _, s := range silent {
			want = want || field == s || strings.HasPrefix(field, s+".") || strings.HasPrefix(field, s+"[")
		}
		if got := hash() == base; got != want {
			t.Errorf("%s: the same hash is %v, want %v", field, got, want)
		}
	})
}

// TestContentHash: it is another one for all that authz decides by, and for nothing else,
// so that no edit of anything else has routes sent again.
func TestContentHash(t *testing.T) {
	p := &model.RegoPolicy{}
	fieldtest.Fill(p)
	p.Form = nil
	hashed(t, p, p.ContentHash, ".Meta", ".Selector", ".FailOpen", ".BundleRefresh", ".Fingerprint", ".ModuleFile", ".ModuleLine", ".Form")
	// Text does not move from one field to another.
	a, b := &model.RegoPolicy{Query: "ab", Module: "c"}, &model.RegoPolicy{Query: "a", Module: "bc"}
	if a.ContentHash() == b.ContentHash() {
		t.Error("two contents have one hash")
	}
}
