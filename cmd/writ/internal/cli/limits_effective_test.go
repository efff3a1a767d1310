package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/writ-mesh/writ/pilot/explain"
	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
)

// layeredMesh is pageMesh of the section about layers.
func layeredMesh(t *testing.T) (dir, section string) {
	t.Helper()
	return pageMesh(t, "Layers", "quotas.yaml")
}

// pageMesh writes a mesh directory with the policies of a section of docs/quotas.md, and
// gives the section.
func pageMesh(t *testing.T, heading, file string) (dir, section string) {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "..", "..", "..", "docs", "quotas.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(page), "\n## "+heading+"\n")
	section, _, ended := strings.Cut(section, "\n## ")
	_, policies, written := strings.Cut(section, "```yaml\n# "+file+"\n")
	policies, _, closed := strings.Cut(policies, "```")
	if !found || !ended || !written || !closed {
		t.Fatalf("docs/quotas.md has no section %s with policies", heading)
	}
	dir = t.TempDir()
	for name, text := range map[string]string{
		file: "# " + file + "\n" + policies,
		"workloads.yaml": `kind: LocalWorkload
metadata: {name: reviews, labels: {app: reviews}}
spec: {command: ["true"], ports: [{name: http, port: 9080}]}
---
kind: LocalWorkload
metadata: {name: ratings, labels: {app: ratings}}
spec: {command: ["true"], ports: [{name: http, port: 9080}]}
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, section
}

func tellEffective(t *testing.T, dir, command string) (string, int) {
	t.Helper()
	args := strings.Fields(strings.TrimPrefix(command, "writ "))
	for i, a := range args {
		if a == "DIR" {
			args[i] = dir
		}
	}
	var stdout, stderr strings.Builder
	code := Main(args, &stdout, &stderr)
	return stdout.String() + stderr.String(), code
}

// TestLayersOfThePage: the commands of docs/quotas.md print what stands there.
func TestLayersOfThePage(t *testing.T) {
	dir, section := layeredMesh(t)
	if n := playPage(t, dir, section); n < 2 {
		t.Errorf("%d commands", n)
	}
}

// TestPathsOfThePage plays the commands of the section about paths.
func TestPathsOfThePage(t *testing.T) {
	dir, section := pageMesh(t, "By path", "orders.yaml")
	if n := playPage(t, dir, section); n != 1 {
		t.Errorf("%d commands", n)
	}
}

// playPage gives the commands of a section and compares what they print.
func playPage(t *testing.T, dir, section string) (commands int) {
	t.Helper()
	_, console, _ := strings.Cut(section, "```console\n")
	console, _, _ = strings.Cut(console, "```")
	for _, one := range strings.Split(console, "$ ")[1:] {
		command, want, _ := strings.Cut(one, "\n")
		commands++
		if got, code := tellEffective(t, dir, command); got != want || code != 0 {
			t.Errorf("%s\nexit code %d, prints\n%s\nwant\n%s", command, code, got, want)
		}
	}
	return commands
}

// TestEffective: which limits count, by the policies of the page.
func TestEffective(t *testing.T) {
	dir, _ := layeredMesh(t)
	for _, c := range []struct {
		command string
		want    string // in the output
		not     string
		code    int
	}{
		{"writ limits effective --route reviews --caller default/web DIR", "QuotaPolicy default/reviews limit 0, layer workload (quotas.yaml:21)\n    500 in 1s", "port 9080\nCOUNTED BY\n  QuotaPolicy istio-system", 0},
		{"writ limits effective --route ratings --caller default/web DIR", "COUNTED BY\n  QuotaPolicy istio-system/everybody limit 0, layer mesh", "default/reviews", 0},
		{"writ limits effective --route reviews --caller monitoring/scraper DIR", "counter default/reviews/0?source.principal=cluster.local/ns/monitoring/sa/scraper", "exempt", 0},
		{"writ limits effective --route reviews --caller monitoring/scraper --path /metrics DIR", "COUNTED BY\n  no limit\n", "", 0},
		{"writ limits effective --to reviews --from outside DIR", "counter default/reviews/0?source.principal=-", "", 0},
		{"writ limits effective --route reviews DIR", "name who calls: --caller", "", 2},
		{"writ limits effective --route nobody --caller default/web DIR", `"nobody" is no service`, "", 2},
	} {
		got, code := tellEffective(t, dir, c.command)
		if code != c.code || !strings.Contains(got, c.want) || c.not != "" && strings.Contains(got, c.not) {
			t.Errorf("%s\nexit code %d, want %d; prints\n%s\nwant %q, not %q", c.command, code, c.code, got, c.want, c.not)
		}
	}
	told := struct {
		Targets []struct {
			Limits []struct {
				Policy, Layer, At string
				Counts            bool
				Requests          int
			}
		}
	}{}
	got, _ := tellEffective(t, dir, "writ limits effective --route reviews --caller default/batch -o json DIR")
	if err := json.Unmarshal([]byte(got), &told); err != nil {
		t.Fatal(err)
	}
	if l := told.Targets[0].Limits; len(l) != 4 || l[0].Policy != "QuotaPolicy default/batch" || l[0].Requests != 50 || !l[1].Counts || l[2].Counts || l[3].Layer != "workload" {
		t.Errorf("%+v", l)
	}
}

// TestEffectiveByPlan: the numbers are those of the caller's plan.
func TestEffectiveByPlan(t *testing.T) {
	dir, _ := layeredMesh(t)
	policy := `kind: QuotaPolicy
metadata: {name: paid, namespace: default}
spec:
  selector: {matchLabels: {app: ratings}}
  limits:
  - {per: ["request.headers[x-customer]"], requests: 7, every: 1m, plan: {table: customers, by: "request.headers[x-customer]"}}
  - {per: ["request.headers[x-customer]"], requests: 7, every: 1m, algorithm: gcra, burst: 5, plan: {table: customers, by: "request.headers[x-customer]"}}
`
	for name, text := range map[string]string{"paid.yaml": policy, "plans/customers.plans": "numbers minute\nplan gold 600:60\ncaller alice gold\ncaller bob 50\ncaller dave 3\n"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for customer, want := range map[string]string{
		"alice":  "600 in 1m0s (sliding) per request.headers[x-customer], counted exact; if ratelimit does not answer: Allow\n    by plan: table customers, plan gold",
		"bob":    "50 in 1m0s (sliding) per request.headers[x-customer], counted exact; if ratelimit does not answer: Allow\n    by plan: table customers, the caller's own numbers",
		"alice ": "600 in 1m0s (gcra, burst 60)", "bob ": "50 in 1m0s (gcra, burst 5)", "dave": "3 in 1m0s (gcra, burst 3)", "carol ": "7 in 1m0s (gcra, burst 5)",
		"carol": "7 in 1m0s (sliding) per request.headers[x-customer], counted exact; if ratelimit does not answer: Allow\n    by plan: table customers does not tell of carol: the limit's own numbers",
	} {
		if got, code := tellEffective(t, dir, "writ limits effective --route ratings --caller default/web --header x-customer="+strings.TrimSpace(customer)+" DIR"); code != 0 || !strings.Contains(got, want) {
			t.Errorf("%s: exit code %d\n%s\nwant %s", customer, code, got, want)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "plans", "customers.plans"), []byte("numbers minute\nplan gold many\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _ := tellEffective(t, dir, "writ limits effective --route ratings --caller default/web --header x-customer=alice DIR"); !strings.Contains(got, "by plan: table customers cannot be read, customers.plans:2: ") {
		t.Errorf("of a table with a mistake:\n%s", got)
	}
}

// TestEffectiveOfWhatRuns: ratelimit tells what is left of each limit that counts.
func TestEffectiveOfWhatRuns(t *testing.T) {
	kept := &keptLimits{}
	conn, err := dialAdmin(adminServer(t, func(s *grpc.Server) { ratelimitpb.RegisterLimitsServer(s, kept) }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	told := &effectiveLimits{Counters: map[string]quotaCounter{}, Plans: map[string]string{}, Limits: &explain.Limits{Targets: []explain.LimitedTarget{{Limits: []explain.EffectiveLimit{
		{Policy: "QuotaPolicy default/q", Counts: true, Requests: 3, Every: "1m0s", Algorithm: "gcra", Burst: 2, Counter: "default/q/0?source.principal=a"}, {Policy: "QuotaPolicy default/r", Counter: "default/r/0"},
	}}}}}
	if err := told.ask(t.Context(), ratelimitpb.NewLimitsClient(conn)); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := told.print(&out); err != nil || len(kept.told) != 1 || !strings.Contains(out.String(), "10 in 1m0s (gcra, burst 4)") || !strings.Contains(out.String(), "default/q/0?source.principal=a: 0 left") {
		t.Errorf("%v, asked %q\n%s", err, kept.told, out.String())
	}
}
