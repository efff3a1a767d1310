package authz

import (
	"strings"
	"testing"
)

// TestPanicInADecision: what panics is refused and in the log, also where Envoy lets pass
// what it cannot ask about, and the next request is decided.
func TestPanicInADecision(t *testing.T) {
	m := newMesh(t)
	m.apply(t, regoPolicy("default/yes", "allow := true"))
	asks := m.asks
	m.asks = nil
	if r := m.check(t, "default/yes"); allowed(r) || r.GetDeniedResponse().GetStatus().GetCode() != 403 {
		t.Errorf("a decision that panics: %v", r)
	}
	if text := m.log.String(); !strings.Contains(text, "panic in a decision") || !strings.Contains(text, "stack") {
		t.Errorf("log: %s", text)
	}
	m.asks = asks
	if r := m.check(t, "default/yes"); !allowed(r) {
		t.Errorf("the next one: %v", r)
	}
}
