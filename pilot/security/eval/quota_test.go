package eval

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/pilot/model"
)

// TestTakersAreBounded: what is asked before a limit counts is not more than an Envoy
// takes, however many policies take requests out of it and whatever they are called.
func TestTakersAreBounded(t *testing.T) {
	policy := func(upper, name string, limits ...model.QuotaLimit) *model.QuotaPolicy {
		p := &model.QuotaPolicy{Meta: model.Meta{Ref: model.Ref{Namespace: "app", Name: name}}, Upper: upper, Limits: limits}
		if upper != model.QuotaInherit {
			p.Match = []model.QuotaMatch{{Principals: []string{"td/ns/app/sa/" + name}}}
		}
		return p
	}
	limit := model.QuotaLimit{Requests: 5, Every: time.Minute}
	long := strings.Repeat("n", 200)
	for _, c := range []struct {
		name, prefix string
		upper        string
		want         int
	}{
		{"exempt", "", model.QuotaExempt, maxTakers},
		{"exempt, long names", long, model.QuotaExempt, maxTakersText / (termText + len("app") + len(long) + len("1000"))},
		{"override", "", model.QuotaOverride, maxTakers},
		{"override, long names", long, model.QuotaOverride, maxTakersText / (termText + len("app") + len(long) + len("1000"))},
	} {
		policies := []*model.QuotaPolicy{policy(model.QuotaInherit, "all", limit)}
		for i := range 2 * maxTakers {
			policies = append(policies, policy(c.upper, c.prefix+fmt.Sprint(1000+i), limit))
		}
		counted := Layers("root", policies)
		if got := len(counted[0].Takers); counted[0].Policy != policies[0] || got != c.want {
			t.Errorf("%s: %d take requests out, want %d", c.name, got, c.want)
		}
	}
}
