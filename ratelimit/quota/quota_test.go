package quota_test

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	"github.com/writ-mesh/writ/ratelimit/quota"
)

func policy(name string, limits ...*configpb.Limit) *configpb.QuotaPolicy {
	return &configpb.QuotaPolicy{Name: name, Namespace: "default", Limits: limits, Source: name + ".yaml:1"}
}

func per(requests uint32, every time.Duration, dims ...string) *configpb.Limit {
	return &configpb.Limit{Per: dims, Requests: requests, Every: durationpb.New(every)}
}

func table(t testing.TB, policies ...*configpb.QuotaPolicy) *quota.Table {
	t.Helper()
	byName := make(map[string]*configpb.QuotaPolicy)
	for _, p := range policies {
		byName[p.GetNamespace()+"/"+p.GetName()] = p
	}
	tab, err := quota.New(byName, nil)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

func desc(pairs ...string) *commonv3.RateLimitDescriptor {
	d := &commonv3.RateLimitDescriptor{}
	for i := 0; i < len(pairs); i += 2 {
		d.Entries = append(d.Entries, &commonv3.RateLimitDescriptor_Entry{Key: pairs[i], Value: pairs[i+1]})
	}
	return d
}

func TestMatch(t *testing.T) {
	tab := table(t, policy("q", per(1, time.Second, "source.principal"), per(5, 90*time.Second)), policy("other", per(1, time.Second)))
	for _, c := range []struct {
		name    string
		pairs   []string
		id, key string
	}{
		{
			"a dimension",
			[]string{"writ.policy", "default/q", "writ.limit", "0", "source.principal", "cluster.local/ns/a/sa/b"},
			"QuotaPolicy default/q limit 0", "writ:{default/q}:0:s&source.principal=cluster.local/ns/a/sa/b",
		},
		{"no dimension", []string{"writ.policy", "default/q", "writ.limit", "1"}, "QuotaPolicy default/q limit 1", "writ:{default/q}:1:s"},
		{"unknown policy", []string{"writ.policy", "default/none", "writ.limit", "0"}, "", ""},
		{"unknown limit", []string{"writ.policy", "default/q", "writ.limit", "2"}, "", ""},
		{"negative limit", []string{"writ.policy", "default/q", "writ.limit", "-1"}, "", ""},
		{"huge limit", []string{"writ.policy", "default/q", "writ.limit", "18446744073709551616"}, "", ""},
		{"no limit", []string{"writ.policy", "default/q"}, "", ""},
		{"the wrong way round", []string{"writ.limit", "0", "writ.policy", "default/q"}, "", ""},
		{"nothing", nil, "", ""},
	} {
		l, m := tab.Match(desc(c.pairs...), time.Now())
		if (l != nil) != (c.id != "") || l != nil && (l.ID != c.id) || m.Key != c.key {
			t.Errorf("%s: got %+v, %+v; want %q, %q", c.name, l, m, c.id, c.key)
		}
	}
}

// TestKeysDiffer: no caller may make up values that give another caller's counter.
func TestKeysDiffer(t *testing.T) {
	tab := table(t, policy("q", per(1, time.Second)), policy("q2", per(1, time.Second), per(1, time.Second)))
	head := func(policy, limit string, rest ...string) []string {
		return append([]string{"writ.policy", policy, "writ.limit", limit}, rest...)
	}
	long := strings.Repeat("x", 64<<10)
	seen := make(map[string]int)
	for i, pairs := range [][]string{
		head("default/q", "0"), head("default/q2", "0"), head("default/q2", "1"),
		head("default/q", "0", "a", "b"), head("default/q", "0", "a", "b&a=b"), head("default/q", "0", "a", "b", "a", "b"),
		head("default/q", "0", "a", "b%26a%3db"), head("default/q", "0", "a=b", ""), head("default/q", "0", "a", "=b"),
		head("default/q", "0", "a", ""), head("default/q", "0", "a", "", "b", ""), head("default/q", "0", "", "a"),
		head("default/q", "0", "a", long), head("default/q", "0", "a", long+"y"), head("default/q", "0", "b", long),
		head("default/q2", "1", "a", long),
	} {
		l, m := tab.Match(desc(pairs...), time.Now())
		if l == nil {
			t.Fatalf("%.100q met no limit", pairs)
		}
		if j, ok := seen[m.Key]; ok {
			t.Errorf("descriptors %d and %d share the key %q", j, i, m.Key)
		}
		seen[m.Key] = i
		if len(m.Key) > 600 {
			t.Errorf("a key of %d bytes", len(m.Key))
		}
	}
}

func TestNewRefuses(t *testing.T) {
	huge := make([]*configpb.Limit, configpb.MaxQuotaLimits+1)
	for i := range huge {
		huge[i] = per(1, time.Second)
	}
	for _, c := range []struct {
		name string
		in   map[string]*configpb.QuotaPolicy
		want string
	}{
		{"no window", map[string]*configpb.QuotaPolicy{"default/q": policy("q", &configpb.Limit{Requests: 1})}, "QuotaPolicy default/q (q.yaml:1): limits[0]"},
		{"negative", map[string]*configpb.QuotaPolicy{"default/q": policy("q", per(1, time.Second), per(1, -time.Second))}, "limits[1]: every"},
		{"too long", map[string]*configpb.QuotaPolicy{"default/q": policy("q", per(1, 20*365*24*time.Hour))}, "limits[0]"},
		{"not a duration", map[string]*configpb.QuotaPolicy{"default/q": policy("q", &configpb.Limit{Every: &durationpb.Duration{Seconds: 1, Nanos: -1}})}, "limits[0]"},
		{"too many", map[string]*configpb.QuotaPolicy{"default/q": policy("q", huge...)}, "at most 64"},
		{"another name", map[string]*configpb.QuotaPolicy{"default/p": policy("q", per(1, time.Second))}, `resource name "default/p"`},
	} {
		if _, err := quota.New(c.in, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want it to say %q", c.name, err, c.want)
		}
	}
}

// TestTakesWhatTheContractAllows: pilot checks these bounds and no others.
func TestTakesWhatTheContractAllows(t *testing.T) {
	limits := make([]*configpb.Limit, configpb.MaxQuotaLimits)
	for i := range limits {
		limits[i] = per(0, configpb.MinQuotaEvery)
	}
	limits[0] = per(math.MaxUint32, configpb.MaxQuotaEvery)
	table(t, policy("q", limits...))
	for _, every := range []time.Duration{configpb.MinQuotaEvery - 1, configpb.MaxQuotaEvery + 1} {
		if _, err := quota.New(map[string]*configpb.QuotaPolicy{"default/q": policy("q", per(1, every))}, nil); err == nil {
			t.Errorf("%s is taken, and pilot refuses it", every)
		}
	}
}

func TestDescribed(t *testing.T) {
	for every, want := range map[time.Duration]struct {
		unit       rlsv3.RateLimitResponse_RateLimit_Unit
		multiplier uint32
	}{
		time.Second:            {rlsv3.RateLimitResponse_RateLimit_SECOND, 0},
		10 * time.Second:       {rlsv3.RateLimitResponse_RateLimit_SECOND, 10},
		time.Minute:            {rlsv3.RateLimitResponse_RateLimit_MINUTE, 0},
		90 * time.Minute:       {rlsv3.RateLimitResponse_RateLimit_MINUTE, 90},
		48 * time.Hour:         {rlsv3.RateLimitResponse_RateLimit_DAY, 2},
		500 * time.Millisecond: {rlsv3.RateLimitResponse_RateLimit_UNKNOWN, 0},
	} {
		l, _ := table(t, policy("q", per(3, every))).Match(desc("writ.policy", "default/q", "writ.limit", "0"), time.Now())
		if d := l.Described; d.GetUnit() != want.unit || d.GetUnitMultiplier().GetValue() != want.multiplier || d.GetRequestsPerUnit() != 3 {
			t.Errorf("%s: %v", every, d)
		}
	}
}

func TestSaveAndRestore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policies.json")
	if got, err := quota.Restore(path); got != nil || err != nil {
		t.Errorf("nothing saved: %v, %v", got, err)
	}
	want := map[string]*configpb.QuotaPolicy{
		"default/a": policy("a", per(1, 1500*time.Millisecond, "source.ip", "x")),
		"default/b": {Name: "b", Namespace: "default", Observe: true},
	}
	if err := quota.Save(path, want); err != nil {
		t.Fatal(err)
	}
	got, err := quota.Restore(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("restored (-want +got):\n%s", diff)
	}
	for _, corrupt := range []string{"", "{", `[{"name": 1}]`, `[`, "\x00\x01"} {
		if err := os.WriteFile(path, []byte(corrupt), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := quota.Restore(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("corrupt %q: error %v, want one that names the file", corrupt, err)
		}
	}
}

func TestFromResources(t *testing.T) {
	if _, err := quota.FromResources(map[string]proto.Message{"x": &configpb.RegoPolicy{}}); err == nil {
		t.Error("another type was taken")
	}
}
