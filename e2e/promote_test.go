package e2e

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

const observing = `# Two policies that wait.
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: deny-delete
  annotations:
    istio.io/dry-run: "true" # since Monday
spec:
  action: DENY
  selector: {matchLabels: {app: b}}
  rules: [{to: [{operation: {methods: [DELETE]}}]}]
---
kind: RegoPolicy
metadata: {name: attic}
spec:
  selector: {matchLabels: {app: b}}
  module: |
    package attic

    default allow := true

    allow := false if input.parsed_path[0] == "attic"
  query: data.attic.allow
  mode: observe # and see
`

// promoteSeen puts what was suggested in force: it lets pass all that passes without it,
// as writ replay says beforehand, and not what is next to it.
func (m *mesh) promoteSeen(t *testing.T, suggestion string, send func() map[string]string) {
	t.Helper()
	before := send()
	write(t, m.dir, "seen.yaml", suggestion)
	if out, code := m.writ("promote", "default/b-seen", m.dir, "--max", "0"); code != 0 {
		t.Fatalf("promote what was seen: %d %s\n%s", code, out, suggestion)
	}
	if out, code := m.writ("replay", "--candidate", m.dir, m.dir); code == 2 || strings.Contains(out, "b-seen") {
		t.Errorf("replay: %d %s", code, out)
	}
	var neighbour answer
	proctest.Until(t, 15*time.Second, "what nobody sent is refused", func() bool {
		neighbour = m.from("c-1", request{method: "PUT", url: "http://b:8000/x"})
		return neighbour.status == 403
	})
	if by := neighbour.header.Get("x-writ-denied-by"); by != "AuthorizationPolicy default/b-seen no rule allows" {
		t.Errorf("refused by %q", by)
	}
	if after := send(); !maps.Equal(after, before) {
		t.Errorf("refused with what was suggested: %v, without it: %v\n%s", after, before, suggestion)
	}
}

// TestObservePromote: policies that only observe refuse nothing; whom they would refuse
// is recorded, and after they were promoted by the command exactly these are refused.
// What Envoys refuse gets into authz's decision log, and a policy can be written from
// what was seen.
func TestObservePromote(t *testing.T) {
	t.Parallel()
	a, b, c := newEcho(t, "a"), newEcho(t, "b"), newEcho(t, "c")
	m := up(t, writeFiles(t, map[string]string{
		"workloads.yaml": workload("a", "a", a) + workload("b", "b", b) + workload("c", "c", c),
		"policies.yaml":  observing,
	}))
	requests := []string{"a GET /", "a DELETE /x", "c GET /attic/1", "c DELETE /attic/2", "a GET /attic/3", "c GET /x?access_token=hidden"}
	// send gives what was refused, with the rule.
	send := func() map[string]string {
		refused := map[string]string{}
		for _, r := range requests {
			f := strings.Fields(r)
			switch got := m.from(f[0]+"-1", request{method: f[1], url: "http://b:8000" + f[2]}); got.status {
			case 200:
			case 403:
				refused[r] = got.header.Get("x-writ-denied-by")
			default:
				t.Errorf("%s: %s", r, got)
			}
		}
		return refused
	}
	if refused := send(); len(refused) > 0 {
		t.Errorf("policies that only observe refused %v", refused)
	}

	predicted := map[string]bool{}
	for policy, want := range map[string]int{"default/deny-delete": 2, "RegoPolicy/default/attic": 3} {
		var cases []string
		proctest.Until(t, 15*time.Second, policy+" has its prediction", func() bool {
			out, code := m.writ("promote", policy, m.dir, "-o", "json", "--max", "1")
			var p struct {
				Flips []struct{ From, Method, Path string }
			}
			if code != 1 || json.Unmarshal([]byte(out), &p) != nil {
				return false // nothing is recorded yet
			}
			cases = nil
			for _, f := range p.Flips {
				cases = append(cases, strings.Join([]string{f.From[strings.LastIndexByte(f.From, '/')+1:], f.Method, f.Path}, " "))
			}
			return len(cases) == want
		})
		for _, r := range cases {
			predicted[r] = true
		}
	}
	for _, policy := range []string{"RegoPolicy/default/attic", "default/deny-delete"} {
		if out, code := m.writ("promote", policy, m.dir, "--max", "3"); code != 0 {
			t.Fatalf("promote %s: %d %s", policy, code, out)
		}
	}
	text, err := os.ReadFile(filepath.Join(m.dir, "policies.yaml"))
	if want := strings.NewReplacer(`"true" # since`, `"false" # since`, "observe # and", "enforce # and").Replace(observing); err != nil || string(text) != want {
		t.Errorf("the file is %s, %v", text, err)
	}
	var refused map[string]string
	proctest.Until(t, 15*time.Second, "both policies are in force", func() bool {
		refused = send()
		return refused["a DELETE /x"] != "" && refused["a GET /attic/3"] != ""
	})
	if got, want := slices.Sorted(maps.Keys(refused)), slices.Sorted(maps.Keys(predicted)); !slices.Equal(got, want) {
		t.Errorf("refused %q, predicted %q", got, want)
	}
	if refused["a DELETE /x"] != "AuthorizationPolicy default/deny-delete rule 0" || refused["a GET /attic/3"] != "RegoPolicy default/attic" {
		t.Errorf("refused by %v", refused)
	}
	proctest.Until(t, 15*time.Second, "the Envoy's refusal is in the decision log", func() bool {
		log, err := os.ReadFile(filepath.Join(m.dir, ".writ", "logs", "writ-authz.log"))
		return err == nil && slices.ContainsFunc(strings.Split(string(log), "\n"), func(line string) bool {
			return strings.Contains(line, "AuthorizationPolicy default/deny-delete rule 0") && strings.Contains(line, "refuse") && strings.Contains(line, "envoy")
		})
	})

	if out, code := m.writ("record", "--percent", "100", m.dir); code != 0 {
		t.Fatalf("record: %s", out)
	}
	var suggestion string
	proctest.Until(t, 15*time.Second, "a policy from what was seen", func() bool {
		send()
		var code int
		suggestion, code = m.writ("suggest", "--to", "default/b", m.dir)
		ofA, ofC, both := strings.Cut(suggestion, "cluster.local/ns/default/sa/c\n")
		return code == 0 && both && strings.Contains(ofA, "- /\n") && strings.Contains(ofC, "- /x\n") // all that passes now
	})
	m.promoteSeen(t, suggestion, send)
	recorded, err := os.ReadFile(filepath.Join(m.dir, ".writ", "authz", "recording", "recording.jsonl"))
	if err != nil || strings.Contains(string(recorded), "hidden") {
		t.Errorf("the recording has secrets, or %v: %.2000s", err, recorded)
	}
}
