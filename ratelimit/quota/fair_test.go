package quota

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/plans"
)

func fairLimit(change func(*configpb.Limit)) map[string]*configpb.QuotaPolicy {
	l := &configpb.Limit{
		Per: []string{"request.path", "source.namespace"}, Requests: 100, Every: durationpb.New(time.Minute),
		Fair: &configpb.QuotaFair{Weights: map[string]uint32{"b": 4}},
	}
	if change != nil {
		change(l)
	}
	return map[string]*configpb.QuotaPolicy{"n/p": {Namespace: "n", Name: "p", Limits: []*configpb.Limit{l}}}
}

// TestSharedKeys: all who share a limit have one counter together and one each; who
// differs in something else shares nothing.
func TestSharedKeys(t *testing.T) {
	table, err := New(fairLimit(nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	match := func(name string) Match {
		_, m, err := table.Find("n/p/0?" + name)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	a, b, c := match("request.path=/x&source.namespace=a"), match("request.path=/x&source.namespace=b"), match("request.path=/y&source.namespace=a")
	if a.Shared.Key != b.Shared.Key || a.Shared.Key == c.Shared.Key || a.Key == b.Key || a.Shared.Key == a.Key {
		t.Errorf("%+v, %+v, %+v", a, b, c)
	}
	if a.Shared.Weight != 1 || b.Shared.Weight != 4 {
		t.Errorf("weights %d and %d", a.Shared.Weight, b.Shared.Weight)
	}
	uses := b.Shared.Append(nil, limit.Use{Key: b.Key, Limit: b.Rule, Hits: 1})
	if len(uses) != 2 || uses[0].Key != b.Shared.Key || !limit.Part(uses, 1) || limit.Part(uses, 0) {
		t.Errorf("%+v", uses)
	}
	// The hash tag keeps both in one slot of a cluster.
	if tag := "{n/p}"; !strings.Contains(uses[0].Key, tag) || !strings.Contains(uses[1].Key, tag) {
		t.Errorf("keys %q and %q", uses[0].Key, uses[1].Key)
	}
	// One whose key is replaced by its hash shares as well.
	long := strings.Repeat("x", 600)
	if m := match("request.path=/x&source.namespace=" + long); m.Shared.Key != a.Shared.Key || len(m.Key) > 200 {
		t.Errorf("%+v", m.Shared)
	}
}

// TestWeightsByPlan: who has no weight in the policy has that of the table, as it is now,
// within the bounds of a weight.
func TestWeightsByPlan(t *testing.T) {
	dir := t.TempDir()
	text := "numbers minute weight\nplan free 1 1\nplan gold 9 5\ncaller a gold\ncaller b gold\ncaller none 9 0\ncaller much 9 4000000000\n"
	if err := os.WriteFile(filepath.Join(dir, "t.plans"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	book := plans.New(plans.Options{Folder: dir, MaxCallers: 10, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	planned := func(table, by, column string) map[string]*configpb.QuotaPolicy {
		return fairLimit(func(l *configpb.Limit) { l.Fair.Plan = &configpb.QuotaPlan{Table: table, By: by, Numbers: column} })
	}
	table, err := New(planned("t", "source.namespace", "weight"), book)
	if err != nil {
		t.Fatal(err)
	}
	for who, want := range map[string]uint32{"a": 5, "b": 4, "none": 1, "much": configpb.MaxQuotaWeight, "unknown": 1} {
		_, m, err := table.Find("n/p/0?request.path=/x&source.namespace=" + who)
		if err != nil || m.Shared.Weight != want || m.Rule.Requests() != 100 {
			t.Errorf("%s: weight %d of %d, want %d, %v", who, m.Shared.Weight, m.Rule.Requests(), want, err)
		}
	}
	if got := table.Plans(); !got["t"] || len(got) != 1 {
		t.Errorf("it names %v", got)
	}
	for name, policies := range map[string]map[string]*configpb.QuotaPolicy{
		"another dimension": planned("t", "request.path", "weight"), "none": planned("t", "", "weight"), "no table": planned("", "source.namespace", ""),
	} {
		if _, err := New(policies, book); err == nil || !strings.Contains(err.Error(), ".fair: plan: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := New(planned("t", "source.namespace", ""), nil); err == nil {
		t.Error("a service without tables takes it")
	}
}

func TestWhatCannotBeShared(t *testing.T) {
	for name, change := range map[string]func(*configpb.Limit){
		"gcra":        func(l *configpb.Limit) { l.Algorithm = configpb.QuotaGCRA },
		"concurrency": func(l *configpb.Limit) { l.Algorithm = configpb.QuotaConcurrency },
		"leased":      func(l *configpb.Limit) { l.Mode = configpb.QuotaLeased },
		"assigned":    func(l *configpb.Limit) { l.Mode = configpb.QuotaAssigned },
		"cost":        func(l *configpb.Limit) { l.Cost = &configpb.Cost{} },
		"nobody":      func(l *configpb.Limit) { l.Per = nil },
		"short":       func(l *configpb.Limit) { l.Every = durationpb.New(999 * time.Millisecond) },
		"weightless":  func(l *configpb.Limit) { l.Fair.Weights["c"] = 0 },
		"heavy":       func(l *configpb.Limit) { l.Fair.Weights["c"] = 1001 },
	} {
		if _, err := New(fairLimit(change), nil); err == nil || !strings.Contains(err.Error(), ".fair") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
