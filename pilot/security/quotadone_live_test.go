package security

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/pilot/model"
)

// told gives what was said of requests that are over, "<hits> <entries>" each, and what
// was asked before they went on. Names of requests are replaced by their order.
func (d *decider) told() (asked, over []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	names := map[string]string{}
	for _, r := range d.limits {
		for _, desc := range r.GetDescriptors() {
			done := false
			var entries []string
			for _, e := range desc.GetEntries() {
				value := e.GetValue()
				if e.GetKey() == "writ.hold" {
					if names[value] == "" {
						names[value] = fmt.Sprint("name", len(names))
					}
					value = names[value]
				}
				done = done || e.GetKey() == "writ.done"
				entries = append(entries, e.GetKey()+"="+value)
			}
			text := strings.Join(entries[2:], " ")
			if !done {
				asked = append(asked, text)
				continue
			}
			hits := "-"
			if desc.GetHitsAddend() != nil {
				hits = fmt.Sprint(desc.GetHitsAddend().GetValue())
			}
			over = append(over, hits+" "+text)
		}
	}
	return asked, over
}

// forget has told begin anew.
func (d *decider) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.limits = nil
}

func costing(cost model.QuotaCost, dims ...model.Dimension) model.QuotaLimit {
	l := per(dims...)
	l.Cost = &cost
	return l
}

// TestQuotaCostLive: ratelimit is asked before a request and told after it what it
// cost, under a name that both have; it hears nothing of what was refused, and with
// ratelimit away no Envoy ends.
func TestQuotaCostLive(t *testing.T) {
	t.Parallel()
	byHeader := model.QuotaCost{From: model.CostResponseHeader, Header: "x-cost", Reserve: 50, Expire: time.Minute}
	byAnswer, byRequest := model.QuotaCost{From: model.CostResponseBytes}, model.QuotaCost{From: model.CostRequestBytes}
	eachEnvoy(t, func(t *testing.T, bin string) {
		build := func(address string, pols ...*model.QuotaPolicy) inbound {
			m := newMesh(t, "")
			m.Deciders.RateLimit, m.QuotaPolicies = address, pols
			return inbound{http: compileHTTP(t, m, workload()), shared: true}
		}
		server, inbounds := &decider{}, map[string]inbound{}
		address := server.serve(t)
		cases := []struct {
			name        string
			limits      []model.QuotaLimit
			requests    []request
			asked, over []string
		}{
			{
				"a header",
				[]model.QuotaLimit{costing(byHeader, dim("request.headers[who]"))},
				[]request{{header: map[string]string{"who": "a", "answer-cost": "17"}}, {header: map[string]string{"who": "b"}}},
				[]string{"writ.hold=name0 request.headers[who]=a", "writ.hold=name1 request.headers[who]=b"},
				[]string{"17 writ.hold=name0 writ.done=1 request.headers[who]=a", "1 writ.hold=name1 writ.done=1 request.headers[who]=b"},
			},
			{
				"bytes",
				[]model.QuotaLimit{costing(byAnswer), costing(byRequest, dim("request.method"))},
				[]request{{}},
				[]string{"", "request.method=GET"},
				[]string{"7 writ.done=1", "0 writ.done=1 request.method=GET"},
			},
			{
				"what is under way",
				[]model.QuotaLimit{{Requests: 1, Every: time.Minute, Algorithm: "concurrency", Per: []model.Dimension{dim("request.method")}}},
				[]request{{}},
				[]string{"writ.hold=name0 request.method=GET"},
				[]string{"- writ.hold=name0 writ.done=1 request.method=GET"},
			},
			{
				"beside a limit without a cost",
				[]model.QuotaLimit{per(dim("request.method")), costing(byAnswer)},
				[]request{{}},
				[]string{"request.method=GET", ""},
				[]string{"7 writ.done=1"},
			},
			{
				"what is no cost is not told",
				[]model.QuotaLimit{costing(byHeader)},
				[]request{{header: map[string]string{"answer-cost": "-3"}}, {header: map[string]string{"answer-cost": "5"}}},
				[]string{"writ.hold=name0", "writ.hold=name1"},
				[]string{"5 writ.hold=name1 writ.done=1"},
			},
			{
				"refused",
				[]model.QuotaLimit{costing(byHeader, dim("request.headers[who]"))},
				[]request{{header: map[string]string{"who": "refuse"}}, {header: map[string]string{"who": "a"}}},
				[]string{"writ.hold=name0 request.headers[who]=refuse", "writ.hold=name1 request.headers[who]=a"},
				[]string{"1 writ.hold=name1 writ.done=1 request.headers[who]=a"},
			},
		}
		for _, c := range cases {
			inbounds[c.name] = patient(t, build(address, quotaPolicy("q", false, c.limits...)))
		}
		p := start(t, bin, inbounds)
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				server.forget()
				for _, r := range c.requests {
					_, before := server.told()
					got := p.do(c.name, r)
					if (got.status == 429) != (r.header["who"] == "refuse") {
						t.Fatalf("status %d", got.status)
					}
					if got.status != 200 || r.header["answer-cost"] == "-3" {
						continue
					}
					proctest.Eventually(t, 10*time.Second, func() error { // in their order
						if _, over := server.told(); len(over) == len(before) {
							return errors.New("heard nothing of the end")
						}
						return nil
					})
				}
				asked, over := server.told()
				if !slices.Equal(asked, c.asked) {
					t.Errorf("asked\n got %q\nwant %q", asked, c.asked)
				}
				if !slices.Equal(over, c.over) {
					t.Errorf("told\n got %q\nwant %q", over, c.over)
				}
			})
		}
		gone := "unix://" + filepath.Join(t.TempDir(), "gone")
		away := start(t, bin, map[string]inbound{"open": build(gone, quotaPolicy("q", false, costing(byHeader), per())), "closed": build(gone, quotaPolicy("q", true, costing(byHeader)))})
		for range 3 {
			if got := away.do("open", request{}); got.status != 200 {
				t.Errorf("ratelimit away, open: %d", got.status)
			}
			if got := away.do("closed", request{}); got.status != 503 {
				t.Errorf("ratelimit away, closed: %d", got.status)
			}
		}
	})
}
