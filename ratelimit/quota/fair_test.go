package quota

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	"github.com/writ-mesh/writ/ratelimit/limit"
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
