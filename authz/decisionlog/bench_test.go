package decisionlog_test

import (
	"errors"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/writ-mesh/writ/authz/decisionlog"
)

// BenchmarkRefusals is the processor time of a refusal at 5,000 a second, from 64
// callers, with a sink that is away.
func BenchmarkRefusals(b *testing.B) {
	f := open(b, decisionlog.Options{Spool: b.TempDir(), SpoolBytes: 1 << 30, RefusalWait: 5 * time.Millisecond})
	f.sink.set(errors.New("away"))
	arrive := make(chan int)
	var callers sync.WaitGroup
	for range 64 {
		callers.Go(func() {
			for i := range arrive {
				f.Add(refusal(i))
			}
		})
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	start := used(b)
	for i := 0; b.Loop(); i++ {
		if i%5 == 0 {
			<-tick.C
		}
		arrive <- i
	}
	close(arrive)
	callers.Wait()
	b.ReportMetric(float64(used(b)-start)/float64(b.N), "cpu-ns/op")
	b.ReportMetric(gathered(b, f.metrics, "writ_authz_refusals_unwritten_total"), "late")
}

// used is the processor time of this process.
func used(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
