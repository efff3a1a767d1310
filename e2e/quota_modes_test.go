package e2e

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// What proxies are assigned, and what is under way, in a whole mesh.
func TestQuotaModes(t *testing.T) {
	t.Parallel()
	a, b, c := newEcho(t, "a"), newEcho(t, "b"), newEcho(t, "c")
	var inside atomic.Int32
	ended := make(chan struct{})
	c.answerWith(func(_ http.ResponseWriter, r *http.Request) {
		if r.Header.Get("x-wait") != "" {
			inside.Add(1)
			<-ended
		}
	})
	m := up(t, writeFiles(t, map[string]string{
		"workloads.yaml": workload("a", "a", a) + workload("b", "b", b) + workload("c", "c", c),
		"quota.yaml": ownHead + `kind: QuotaPolicy
metadata: {name: assigned}
spec:
  selector: {matchLabels: {app: b}}
  limits: [{per: [source.principal], requests: 12, every: 1h, mode: assigned}]
---
` + ownHead + `kind: QuotaPolicy
metadata: {name: underway}
spec:
  selector: {matchLabels: {app: c}}
  whenUnavailable: Deny
  limits: [{per: [source.principal], concurrent: 2, timeout: 10m}]
`,
	}))
	t.Run("assigned", func(t *testing.T) {
		t.Parallel()
		// What comes before the first assignment passes, which on a busy machine may be more
		// than one request, so that more than the limit may pass, but not for long.
		passed, refused := 0, 0
		proctest.Eventually(t, 60*time.Second, func() error {
			switch got := m.get("a-1", "http://b:8000/"); {
			case got.status == 200:
				passed, refused = passed+1, 0
			case got.status == 429 && got.header.Get("retry-after") != "":
				refused++
			default:
				return fmt.Errorf("%s", got)
			}
			if passed < 12 || refused < 50 {
				return fmt.Errorf("%d passed, and then %d were refused", passed, refused)
			}
			return nil
		})
		if got := m.get("c-1", "http://b:8000/"); got.status != 200 {
			t.Errorf("another caller: %s", got)
		}
	})
	t.Run("under way", func(t *testing.T) {
		t.Parallel()
		// One that is refused because ratelimit is late may count as under way until its
		// timeout. The first are late most likely, so they are another caller's.
		for range 5 {
			m.get("c-1", "http://c:8000/")
		}
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for m.get("a-1", "http://c:8000/", "x-wait: yes").status == 503 { // ratelimit was late
				}
			})
		}
		end := sync.OnceFunc(func() { close(ended); wg.Wait() })
		defer end()
		proctest.Until(t, 20*time.Second, "two are under way", func() bool { return inside.Load() == 2 })
		if got := decided(t, func() answer { return m.get("a-1", "http://c:8000/") }); got.status != 429 {
			t.Errorf("beside two: %s", got)
		}
		if got := decided(t, func() answer { return m.get("b-1", "http://c:8000/") }); got.status != 200 {
			t.Errorf("another caller: %s", got)
		}
		end()
		proctest.Eventually(t, 20*time.Second, func() error {
			if got := m.get("a-1", "http://c:8000/"); got.status != 200 {
				return fmt.Errorf("after they ended: %s", got)
			}
			return nil
		})
	})
}
