package cli

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/authz/decisionlog"
	"github.com/writ-mesh/writ/authz/recording"
	"github.com/writ-mesh/writ/cmd/writ/internal/replay"
)

const shop = `apiVersion: local.writ.mesh/v1alpha1
kind: LocalWorkload
metadata: {name: shop, labels: {app: shop}}
spec: {serviceAccount: shop, ports: [{name: http, port: 8000}]}
---
apiVersion: local.writ.mesh/v1alpha1
kind: LocalWorkload
metadata: {name: web, labels: {app: web}}
spec: {serviceAccount: web, ports: [{name: http, port: 8000}]}
---
apiVersion: local.writ.mesh/v1alpha1
kind: LocalWorkload
metadata: {name: admin, labels: {app: admin}}
spec: {serviceAccount: admin, ports: [{name: http, port: 8000}]}
`

// shopDir goes to a folder with the mesh directory shop and a recording of it, made by
// authz's recorder: the words of each request are CALLER METHOD PATH, and then refused
// or the header x-user with its value.
func shopDir(t *testing.T, files map[string]string, requests ...string) {
	t.Helper()
	t.Chdir(t.TempDir())
	meshFiles(t, "shop", files)
	r, err := recording.Open(recording.Options{
		Folder: "shop/.writ/authz/recording", MaxBytes: 1 << 20, PerSecond: 10, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, words := range requests {
		f := append(strings.Fields(words), "")
		s := &recording.Seen{
			Time: time.Now(), From: "spiffe://cluster.local/ns/default/sa/" + f[0], To: "spiffe://cluster.local/ns/default/sa/shop", SourceAddress: "127.0.1.9",
			Port: 8000, Method: f[1], Path: f[2], Host: "shop", Headers: map[string]string{}, AllHeaders: true, Allowed: f[3] != "refused",
		}
		if user, ok := strings.CutPrefix(f[3], "x-user="); ok {
			s.Headers["x-user"] = user
		}
		if rule, ok := strings.CutPrefix(f[3], "observed="); ok {
			s.Observed = []string{strings.ReplaceAll(rule, "_", " ")}
		}
		r.Offer(s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Run(ctx); err != nil {
		t.Fatal(err)
	}
}

func meshFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"mesh.yaml": "trustDomain: cluster.local\n", "workloads.yaml": shop} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

const denyMallory = `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny}
spec:
  selector: {matchLabels: {app: shop}}
  action: DENY
  rules:
  - to: [{operation: {methods: [DELETE]}}]
  - when: [{key: "request.headers[x-user]", values: [mallory]}]
`

// TestReplayCommand: the command tries a candidate on a recording, says which decisions
// flip and for whom, and of which it cannot be told.
func TestReplayCommand(t *testing.T) {
	shopDir(t, nil, "web GET /a", "web GET /a", "web DELETE /a", "web GET /b x-user=mallory", "web GET /b x-user=alice", "admin GET /a refused", "admin DELETE /x refused")
	meshFiles(t, "next", map[string]string{"deny.yaml": denyMallory})
	meshFiles(t, "closed", map[string]string{"deny.yaml": "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: closed}\nspec: {rules: [{from: [{source: {serviceAccounts: [web]}}]}]}\n"})
	code, out := writ("replay", "--candidate", "next", "shop")
	for _, want := range []string{
		"cluster.local/ns/default/sa/web    default/shop  DELETE /a  1      allowed -> refused  AuthorizationPolicy default/deny rule 0",
		"cluster.local/ns/default/sa/web    default/shop  GET /b     1      allowed -> refused  AuthorizationPolicy default/deny rule 1",
		"cluster.local/ns/default/sa/admin  default/shop  GET /a     1      refused -> allowed",
		"7 requests: 3 flip, of 0 it cannot be told",
	} {
		if code != 1 || !strings.Contains(out, want) {
			t.Errorf("exit code %d, want 1 and %q in\n%s", code, want, out)
		}
	}
	// What is as it was: nothing flips but what was refused for a reason that is gone.
	if code, out := writ("replay", "--candidate", "closed", "shop"); code != 0 || !strings.Contains(out, "7 requests: 0 flip") {
		t.Errorf("of the same decisions: exit code %d\n%s", code, out)
	}
	code, out = writ("replay", "--candidate", "next", "-o", "json", "shop")
	var r replay.Result
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != 1 || len(r.Flips) != 3 || r.Requests != 7 || r.Unchanged != 4 {
		t.Errorf("exit code %d, %v, %s", code, err, out)
	}
	for want, args := range map[string][]string{
		"name the policies to try":  {"replay", "shop"},
		"there is no recording":     {"replay", "--candidate", "next", "next"},
		"/nowhere is no mesh":       {"replay", "--candidate", "/nowhere", "shop"},
		"there is no recording; na": {"replay", "--candidate", "next", "--recording", "/nowhere", "shop"},
	} {
		if code, out := writ(args...); code != 2 || !strings.Contains(out, want) {
			t.Errorf("%v: exit code %d, want 2 and %q in %s", args, code, want, out)
		}
	}
	// A secret that a rule asks for: nobody can tell.
	shopDir(t, nil, "web GET /b x-user="+decisionlog.Redacted)
	meshFiles(t, "next", map[string]string{"deny.yaml": denyMallory})
	if code, out := writ("replay", "--candidate", "next", "shop"); code != 2 || !strings.Contains(out, "1 request: 0 flip, of 1 it cannot be told") {
		t.Errorf("of a redacted header: exit code %d\n%s", code, out)
	}
}

const observedLists = `apiVersion: policy.writ.mesh/v1alpha1
kind: AccessList
metadata: {name: users}
spec:
  selector: {matchLabels: {app: shop}}
  action: DENY
  match: request.headers[x-user]
  entries: [mallory]
  mode: observe # since Monday
---
apiVersion: policy.writ.mesh/v1alpha1
kind: AccessList
metadata: {name: partners}
spec:
  selector: {matchLabels: {app: shop}}
  action: ALLOW
  match: source.ip
  from: {url: "https://lists.example/partners"}
  mode: observe
`

// TestPromoteLists: whom a list would refuse is predicted, by its entries or, where they
// come from elsewhere, by what Envoys said; and then it is one value that changes.
func TestPromoteLists(t *testing.T) {
	shopDir(t, map[string]string{"lists.yaml": observedLists}, "web GET /a x-user=mallory", "web GET /a x-user=alice", "admin GET /b observed=AccessList_default/partners_rule_1")
	text := func() string {
		data, err := os.ReadFile("shop/lists.yaml")
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	code, out := writ("promote", "AccessList/default/users", "shop", "--max", "0")
	if code != 1 || !strings.Contains(out, "allowed -> refused  AccessList default/users rule 1") || !strings.Contains(out, "3 requests: 1 would be refused, of 0") || text() != observedLists {
		t.Errorf("nobody agreed: exit code %d\n%s", code, out)
	}
	if code, out := writ("promote", "default/users", "shop", "--max", "1"); code != 0 || text() != strings.Replace(observedLists, "observe #", "enforce #", 1) {
		t.Errorf("exit code %d\n%s\n%s", code, out, text())
	}
	code, out = writ("promote", "default/partners", "shop", "--max", "5")
	if code != 1 || !strings.Contains(out, "AccessList default/partners rule 1") || !strings.Contains(out, "1 would be refused") || !strings.Contains(out, "come from elsewhere") {
		t.Errorf("of a list from elsewhere: exit code %d\n%s", code, out)
	}
	if code, out := writ("promote", "default/partners", "shop", "--yes"); code != 0 || strings.Contains(text(), "observe") {
		t.Errorf("exit code %d\n%s\n%s", code, out, text())
	}
	if code, out := writ("promote", "default/partners", "shop"); code != 2 {
		t.Errorf("what enforces already: exit code %d\n%s", code, out)
	}
	// The same requests, with both lists in force.
	if code, out := writ("replay", "--candidate", "shop", "shop"); code != 2 && code != 1 || !strings.Contains(out, "what the source of AccessList default/partners gives is not known here") {
		t.Errorf("exit code %d\n%s", code, out)
	}
}

// TestSuggestRoundTrip: the policy that is suggested of what was seen lets all of it
// pass, by the same evaluator, and no neighbour of it.
func TestSuggestRoundTrip(t *testing.T) {
	seen := []string{"web GET /orders/17", "web GET /orders/18", "web POST /orders", "web GET /", "admin DELETE /orders/17", "admin GET /health"}
	shopDir(t, nil, append(seen, "web DELETE /orders/17 refused")...)
	code, suggestion := writ("suggest", "--to", "default/shop", "shop")
	if code != 0 || !strings.Contains(suggestion, `istio.io/dry-run: "true"`) {
		t.Fatalf("exit code %d\n%s", code, suggestion)
	}
	meshFiles(t, "shop", map[string]string{"seen.yaml": suggestion})
	if code, out := writ("promote", "default/shop-seen", "shop", "--max", "0"); code != 0 || !strings.Contains(out, "6 requests: 0 would be refused, of 0") {
		t.Fatalf("what was seen would be refused: exit code %d\n%s\n%s", code, out, suggestion)
	}
	if code, out := writ("replay", "--candidate", "shop", "shop"); code != 0 || !strings.Contains(out, "7 requests: 0 flip, of 0") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	for want, requests := range map[int][]string{
		0: append(seen, "web GET /orders/99"),
		1: {"web DELETE /orders/17", "web GET /orders", "web GET /orders/17/items", "web POST /orders/17", "admin GET /orders/17", "web GET /health", "admin GET /", "shop GET /"},
	} {
		for _, words := range requests {
			f := strings.Fields(words)
			if code, out := writ("explain", "--from", "default/"+f[0], "--to", "shop", "--method", f[1], "--path", f[2], "shop"); code != want {
				t.Errorf("%s: exit code %d, want %d\n%s\n%s", words, code, want, out, suggestion)
			}
		}
	}
}
