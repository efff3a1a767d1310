package ratelimit

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/pilot/meshdir"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
	"github.com/writ-mesh/writ/ratelimit/lease"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/plans"
	"github.com/writ-mesh/writ/ratelimit/quota"
	"github.com/writ-mesh/writ/ratelimit/redisstore"
	"github.com/writ-mesh/writ/ratelimit/redistest"
)

// replaceFile puts a file in the place of another by a rename.
func replaceFile(t testing.TB, path, text string) {
	t.Helper()
	writeFile(t, path+".new", text)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// followed gives tables that are followed until the test ends.
func followed(t *testing.T, o plans.Options) *plans.Book {
	t.Helper()
	o.MaxCallers, o.Now, o.Log = 1000, time.Now, slog.New(slog.DiscardHandler)
	book := plans.New(o)
	proctest.Background(t, book.Run)
	return book
}

// planned is a limit of one request an hour, or of what the table t has.
func planned(algorithm, mode string) *configpb.Limit {
	return &configpb.Limit{
		Per: []string{"constant", "source.principal"}, Requests: 1, Every: durationpb.New(time.Hour), Algorithm: algorithm, Mode: mode,
		Plan: &configpb.QuotaPlan{Table: "t", By: "source.principal"},
	}
}

// withPlans has the server enforce limits of the policy q by a book.
func withPlans(t *testing.T, s *Server, book *plans.Book, limits ...*configpb.Limit) {
	t.Helper()
	table, err := quota.New(map[string]*configpb.QuotaPolicy{"default/q": policy("q", false, limits...)}, book)
	if err != nil {
		t.Fatal(err)
	}
	s.quotas.Store(table)
}

func plannedDesc(index int, caller string) *commonv3.RateLimitDescriptor {
	return desc("writ.policy", "default/q", "writ.limit", fmt.Sprint(index), "constant", "constant", "source.principal", caller)
}

// numbersBecome waits until an answer speaks of so many requests, and says how long
// that took. It takes nothing.
func numbersBecome(t *testing.T, s *Server, caller string, want uint32) time.Duration {
	t.Helper()
	start := time.Now()
	proctest.Eventually(t, 20*time.Second, func() error {
		c, err := s.find("default/q/0?constant=constant&source.principal=" + caller)
		if err == nil && c.use.Limit.Requests() != want {
			err = fmt.Errorf("%s has %d requests, want %d", caller, c.use.Limit.Requests(), want)
		}
		return err
	})
	return time.Since(start)
}

// passed asks until it is refused, and says how often it was not.
func passed(t *testing.T, s *Server, d *commonv3.RateLimitDescriptor) (n int) {
	t.Helper()
	for ; n < 100; n++ {
		if ask(t, s, "writ", d).GetOverallCode() == rlsv3.RateLimitResponse_OVER_LIMIT {
			return n
		}
	}
	return n
}

// TestPlansOfAFile: callers have what the file says, a change holds while the service
// runs and keeps what was counted, and a broken file changes nothing.
func TestPlansOfAFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "t.plans")
	replaceFile(t, file, "numbers n\nplan free 3\nplan gold 6\ndefault free\ncaller ann gold\ncaller bob 0\n")
	s, _, reg := newServer(t)
	s.now = time.Now
	book := followed(t, plans.Options{Folder: dir})
	reg.MustRegister(book.Collector())
	withPlans(t, s, book, planned("", ""))
	for caller, want := range map[string]int{"ann": 6, "bob": 0, "nobody": 3} {
		if got := passed(t, s, plannedDesc(0, caller)); got != want {
			t.Errorf("%s: %d pass, want %d", caller, got, want)
		}
	}
	resp := ask(t, s, "writ", plannedDesc(0, "ann"))
	if n := resp.GetStatuses()[0].GetCurrentLimit().GetRequestsPerUnit(); n != 6 {
		t.Errorf("ann is told of %d requests", n)
	}
	replaceFile(t, file, "numbers n\nplan free 3\nplan gold 6\ndefault free\ncaller ann 8\ncaller bob 1\n")
	t.Logf("a changed file holds after %s", numbersBecome(t, s, "ann", 8))
	for caller, want := range map[string]int{"ann": 2, "bob": 1, "nobody": 0} {
		if got := passed(t, s, plannedDesc(0, caller)); got != want {
			t.Errorf("after the change %s: %d pass, want %d more", caller, got, want)
		}
	}
	replaceFile(t, file, "numbers n\ncaller ann -1\n")
	proctest.Eventually(t, 20*time.Second, func() error {
		if metric(t, reg, "writ_ratelimit_plan_failures_total", "t") == 0 {
			return errors.New("the broken file was not read")
		}
		return nil
	})
	numbersBecome(t, s, "ann", 8) // as before
}

// TestPlansByAnyCount: a plan's numbers hold for each way of counting and mode.
func TestPlansByAnyCount(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	replaceFile(t, filepath.Join(dir, "t.plans"), "numbers n\ncaller ann 5:2\ncaller big 512\ncaller huge 4294967295\n")
	s, _, _ := newServer(t)
	s.now = time.Now
	limits := []*configpb.Limit{
		planned("", configpb.QuotaLocal), planned("", configpb.QuotaLeased), planned("", configpb.QuotaAssigned),
		planned(configpb.QuotaGCRA, ""), planned(configpb.QuotaConcurrency, ""),
	}
	withPlans(t, s, followed(t, plans.Options{Folder: dir}), limits...)
	for i, want := range []int{5, 5, 5, 2, 5} {
		if got := passed(t, s, plannedDesc(i, "ann")); got != want {
			t.Errorf("limit %d: %d pass, want %d", i, got, want)
		}
		if got := passed(t, s, plannedDesc(i, "nobody")); got != 1 {
			t.Errorf("limit %d: %d of the policy's own pass", i, got)
		}
	}
	use := func(i int, caller string) limit.Use {
		t.Helper()
		c, err := s.find(fmt.Sprintf("default/q/%d?constant=constant&source.principal=%s", i, caller))
		if err != nil {
			t.Fatal(err)
		}
		return c.use
	}
	if n := use(4, "huge").Limit.Requests(); n != configpb.MaxQuotaConcurrent {
		t.Errorf("%d under way", n)
	}
	for caller, want := range map[string]bool{"ann": false, "big": true, "huge": true} {
		if _, leased := lease.TermsOf(use(1, caller).Limit); leased != want {
			t.Errorf("%s is leased: %v", caller, leased)
		}
	}
	for name, burst := range map[string]uint32{"3?constant=constant&source.principal=ann": 2, "3?constant=constant&source.principal=nobody": 1, "0?constant=constant&source.principal=ann": 0} {
		got, err := newAdmin(t, s, "").GetCounter(t.Context(), &ratelimitpb.GetCounterRequest{Key: "default/q/" + name})
		if err != nil || got.GetBurst() != burst {
			t.Errorf("%s: operators are told of a burst of %d, want %d, %v", name, got.GetBurst(), burst, err)
		}
	}
	// Whoever names dimensions that the limit has not, or in another order, is nobody.
	odd := desc("writ.policy", "default/q", "writ.limit", "0", "source.principal", "ann", "constant", "constant")
	if got := passed(t, s, odd); got != 1 {
		t.Errorf("odd dimensions: %d pass", got)
	}
	if got := passed(t, s, desc("writ.policy", "default/q", "writ.limit", "0")); got != 1 {
		t.Errorf("no dimensions: %d pass", got)
	}
}

// TestPlansOfRedis: a service with a real Redis takes callers' numbers from it; what is
// changed there holds while it runs, and what was known stays when it is gone.
func TestPlansOfRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	key := redisstore.PlansKey("t")
	server.Command(t, "HSET", key, "ann", "gold", "bob", "0")
	server.Command(t, "SET", key+":head", "numbers n\nplan free 3\nplan gold 6\ndefault free\n")
	c := DefaultConfig()
	c.Listen, c.Pilot, c.Redis.Address, c.Plans.Redis = "unix://"+filepath.Join(t.TempDir(), "s"), "127.0.0.1:1", server.Address(), []string{"t"}
	rt := runtime()
	service, err := New(c, rt)
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range service.tasks {
		proctest.Background(t, task)
	}
	if err := service.takeQuotas(map[string]*configpb.QuotaPolicy{"default/q": policy("q", false, planned("", ""))}); err != nil {
		t.Fatal(err)
	}
	s := service.server
	numbersBecome(t, s, "ann", 6)
	if got := passed(t, s, plannedDesc(0, "ann")); got != 6 {
		t.Errorf("ann: %d pass", got)
	}
	server.Command(t, "HSET", key, "ann", "8")
	server.Command(t, "XADD", key+":changes", "*", "caller", "ann")
	t.Logf("a changed caller holds after %s", numbersBecome(t, s, "ann", 8))
	if got := passed(t, s, plannedDesc(0, "ann")); got != 2 {
		t.Errorf("after the change ann: %d more pass, want 2", got)
	}
	for name, want := range map[string]float64{"writ_ratelimit_plan_callers": 2, "writ_ratelimit_plan_failures_total": 0} {
		if got := metric(t, rt.Metrics, name, "t"); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	server.Kill()
	proctest.Eventually(t, 20*time.Second, func() error {
		if metric(t, rt.Metrics, "writ_ratelimit_plan_failures_total", "t") == 0 {
			return errors.New("nobody notices that Redis is gone")
		}
		return nil
	})
	if got := passed(t, s, plannedDesc(0, "bob")); got != 0 {
		t.Errorf("bob, who may nothing: %d pass without Redis", got)
	}
	numbersBecome(t, s, "ann", 8)
}

// TestPlansOfThePage: the policy and the table of docs/quotas.md come to what stands
// there.
func TestPlansOfThePage(t *testing.T) {
	page, err := os.ReadFile("../docs/quotas.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "## How much by plan")
	_, text, _ := strings.Cut(section, "```yaml\n")
	text, _, _ = strings.Cut(text, "```")
	mesh, problems := meshdir.Parse(map[string][]byte{"q.yaml": []byte(text)}, nil, meshdir.Options{})
	if len(mesh.QuotaPolicies) != 1 || len(meshdir.Errors(problems)) > 0 {
		t.Fatalf("%v", problems)
	}
	var limits []*configpb.Limit
	for _, l := range mesh.QuotaPolicies[0].Limits {
		limits = append(limits, &configpb.Limit{
			Per: []string{l.Per[0].Text}, Requests: l.Requests, Every: durationpb.New(l.Every),
			Plan: &configpb.QuotaPlan{Table: l.Plan.Table, By: l.Plan.By, Numbers: l.Plan.Numbers},
		})
	}
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "customers.plans"), strings.Join(block(t, "quotas.md", "plans"), "\n")+"\n")
	s, _, _ := newServer(t)
	table, err := quota.New(map[string]*configpb.QuotaPolicy{"default/customers": policy("customers", false, limits...)},
		plans.New(plans.Options{Folder: dir, MaxCallers: 100, Now: time.Now, Log: slog.New(slog.DiscardHandler)}))
	if err != nil {
		t.Fatal(err)
	}
	s.quotas.Store(table)
	for _, line := range block(t, "quotas.md", "callers") {
		m := regexp.MustCompile(`^(.*): (\d+) minute, (\d+) month: (.*)$`).FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("%q", line)
		}
		for i, want := range m[2:4] {
			c, err := s.find(fmt.Sprintf("default/customers/%d?request.auth.claims[sub]=%s", i, m[1]))
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprint(c.use.Limit.Requests()); got != want || c.plan != m[4] {
				t.Errorf("%s: %s, %s; want %s", line, got, c.plan, want)
			}
		}
		d := desc("writ.policy", "default/customers", "writ.limit", "0", "request.auth.claims[sub]", m[1])
		if got := fmt.Sprint(passed(t, s, d)); got != m[2] {
			t.Errorf("%s: %s pass", line, got)
		}
	}
}
