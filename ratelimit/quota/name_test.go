package quota_test

import (
	"strings"
	"testing"
	"time"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/quota"

	"google.golang.org/protobuf/types/known/durationpb"
)

func named(t testing.TB) *quota.Table {
	t.Helper()
	return table(t, policy("q", per(1, time.Second, "source.principal", "request.headers[x-key]"), per(5, time.Minute)))
}

// FuzzName: whatever a caller sends, the name that operators see finds the caller's
// counter again and no other.
func FuzzName(f *testing.F) {
	f.Add("cluster.local/ns/a/sa/b", "-")
	f.Add("a&b=c%25?", "#1234")
	f.Add("", strings.Repeat("x", 600))
	tab := named(f)
	f.Fuzz(func(t *testing.T, a, b string) {
		l, m := tab.Match(desc("writ.policy", "default/q", "writ.limit", "0", "source.principal", a, "request.headers[x-key]", b), time.Now())
		name := l.Name(m.Key)
		found, key, err := tab.Find(name)
		if err != nil || found != l || key.Key != m.Key {
			t.Errorf("%q, %q: %q finds %q (%v), want %q", a, b, name, key.Key, err, m.Key)
		}
	})
}

func TestFind(t *testing.T) {
	tab := named(t)
	for name, want := range map[string]string{
		"default/q/0?source.principal=a&request.headers[x-key]=b":   "writ:{default/q}:0:s&source.principal=a&request.headers[x-key]=b",
		"default/q/0?source.principal=a%26&request.headers[x-key]=": "writ:{default/q}:0:s&source.principal=a%26&request.headers[x-key]=",
		"default/q/1": "writ:{default/q}:1:s",
	} {
		if _, m, err := tab.Find(name); err != nil || m.Key != want {
			t.Errorf("%s: %q, %v", name, m.Key, err)
		}
	}
	for name, want := range map[string]string{
		"":               "is called",
		"q":              "is called",
		"default/x/0":    "no QuotaPolicy default/x",
		"default/q":      "no QuotaPolicy default",
		"default/q/2":    "has no limit 2, it has 2",
		"default/q/-1":   "has no limit -1",
		"default/q/0":    "needs ?source.principal=...&request.headers[x-key]=... with a value for each of its dimensions",
		"default/q/0?a=": "needs ?source",
		"default/q/0?request.headers[x-key]=b&source.principal=a": "needs ?source",
		"default/q/1?a=b":                "counts everybody together",
		"default/q/0?source.principal":   "want <key>=<value>",
		"default/q/0?=a":                 "want <key>=<value>",
		"default/q/0?source.principal=%": "invalid URL escape",
	} {
		if _, _, err := tab.Find(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", name, err, want)
		}
	}
}

// TestMasked: metrics tell the callers of a limit apart and show no value of a header.
func TestMasked(t *testing.T) {
	for name, want := range map[string]string{
		"default/q/1": "default/q/1",
		"default/q/0?source.principal=a&request.headers[x-key]=secret": "default/q/0?source.principal=a&request.headers[x-key]=#2bb80d53",
		"default/q/0?request.headers[x-key]=-":                         "default/q/0?request.headers[x-key]=-",
	} {
		if got := quota.Masked(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// TestUse: what each descriptor does to its counter.
func TestUse(t *testing.T) {
	cost := func(reserve uint32) *configpb.Limit {
		l := per(10, time.Minute)
		if l.Cost = (&configpb.Cost{Reserve: reserve}); reserve > 0 {
			l.Cost.Expire = durationpb.New(time.Second)
		}
		return l
	}
	concurrent := per(10, time.Minute)
	concurrent.Algorithm = configpb.QuotaConcurrency
	for _, c := range []struct {
		name string
		l    *configpb.Limit
		m    quota.Match
		want limit.Use
		ok   bool
	}{
		{"a plain one", per(10, time.Minute), quota.Match{}, limit.Use{Hits: 7}, true},
		{"a plain one that is over", per(10, time.Minute), quota.Match{Done: true}, limit.Use{Hits: 7}, false},
		{"before a cost", cost(0), quota.Match{Hold: "h"}, limit.Use{Hold: "h"}, true},
		{"a cost", cost(0), quota.Match{Done: true}, limit.Use{Op: limit.Charge, Hits: 7}, true},
		{"a reservation", cost(4), quota.Match{Hold: "h"}, limit.Use{Hits: 4, Hold: "h", HoldFor: time.Second}, true},
		{"its end", cost(4), quota.Match{Hold: "h", Done: true}, limit.Use{Op: limit.Settle, Hits: 7, Hold: "h", HoldFor: time.Second}, true},
		{"an end without a name", cost(4), quota.Match{Done: true}, limit.Use{Op: limit.Charge, Hits: 7}, true},
		{"a place", concurrent, quota.Match{Hold: "h"}, limit.Use{Hits: 7, Hold: "h"}, true},
		{"its end", concurrent, quota.Match{Hold: "h", Done: true}, limit.Use{Op: limit.Settle, Hold: "h"}, true},
		{"the end of no place", concurrent, quota.Match{Done: true}, limit.Use{Op: limit.Settle}, false},
	} {
		tab := table(t, policy("q", c.l))
		l, _ := tab.Match(desc("writ.policy", "default/q", "writ.limit", "0"), time.Now())
		c.want.Limit, c.m.Rule = l.Rule, l.Rule
		if got, ok := l.Use(c.m, 7); ok != c.ok || ok && got != c.want {
			t.Errorf("%s: %+v, %v; want %+v", c.name, got, ok, c.want)
		}
	}
	for name, l := range map[string]*configpb.Limit{
		"never expires":        {Requests: 1, Every: durationpb.New(time.Second), Cost: &configpb.Cost{Reserve: 1}},
		"expires too late":     {Requests: 1, Every: durationpb.New(time.Second), Cost: &configpb.Cost{Reserve: 1, Expire: durationpb.New(configpb.MaxHold + 1)}},
		"of what is under way": {Requests: 1, Every: durationpb.New(time.Second), Algorithm: configpb.QuotaConcurrency, Cost: &configpb.Cost{}},
	} {
		if _, err := quota.New(map[string]*configpb.QuotaPolicy{"default/q": policy("q", l)}, nil); err == nil || !strings.Contains(err.Error(), "limits[0].cost: ") {
			t.Errorf("a cost that %s: %v", name, err)
		}
	}
}
