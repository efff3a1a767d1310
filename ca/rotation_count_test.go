package ca

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/writ-mesh/writ/ca/ledger/ledgertest"
	"github.com/writ-mesh/writ/internal/identity"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// TestWatchersAreCountedByTheLoop: to take the reports of 5,000 watchers counts nobody. They are counted when the loop
// comes to it, once for all that came meanwhile, and not again until there is another.
func TestWatchersAreCountedByTheLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many = 5000
		a := newAuthority(t, ledgertest.NewMemory(), time.Now)
		k, gauge := a.keeper, a.metrics.acknowledged
		// A count sets both values; without one there are none.
		counted := func() bool {
			values := make(chan prometheus.Metric, 2)
			gauge.Collect(values)
			return len(values) > 0
		}
		value := func(current string) float64 {
			var m dto.Metric
			if err := gauge.WithLabelValues(current).Write(&m); err != nil {
				t.Fatal(err)
			}
			return m.GetGauge().GetValue()
		}
		want := func(what string, current, behind float64) {
			t.Helper()
			if c, b := value("true"), value("false"); c != current || b != behind {
				t.Errorf("%s: %v current and %v behind, want %v and %v", what, c, b, current, behind)
			}
			gauge.Reset()
		}
		watchers := make([]*report, many)
		for i := range watchers {
			id, err := identity.Node(td, fmt.Sprint("n", i))
			if err != nil {
				t.Fatal(err)
			}
			watchers[i] = k.watch(id)
		}
		jwt, _ := a.keys.current()
		for _, w := range watchers[:many-1] {
			k.heard(w, &capb.WatchBundleRequest{Acknowledged: a.trusted().state.Sequence + jwt.version})
		}
		if counted() {
			t.Errorf("reports were counted as they came")
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- k.run(ctx) }()
		synctest.Wait()
		want("all that came", many-1, 1)
		time.Sleep(5 * gateTick) // fake time
		synctest.Wait()
		if counted() {
			t.Errorf("reports were counted again though none had come")
		}
		k.heard(watchers[many-1], &capb.WatchBundleRequest{Acknowledged: a.trusted().state.Sequence + jwt.version})
		k.forget(watchers[0])
		time.Sleep(gateTick) // fake time
		synctest.Wait()
		want("one more and one less", many-1, 0)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
