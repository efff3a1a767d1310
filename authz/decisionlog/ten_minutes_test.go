package decisionlog_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-mesh/writ/authz/decisionlog"
	"github.com/writ-mesh/writ/internal/proctest"
)

var refusals = flag.Int("refusals", 6_000, "how many refusals TestTenMinutes keeps while the sink is away; ten minutes at 5,000 a second are 3000000")

// spoolPerRefusal bounds the spool, in bytes: the refusals have room and some of the
// allowed decisions.
const spoolPerRefusal = 100

// ticks counts how often each record came. It is made once, so that a sink that
// remembers takes no memory while the log's is looked at.
type ticks struct {
	away atomic.Bool
	// of refusals and of allowed decisions, by number.
	refused, allowed []byte
}

func (k *ticks) Send(_ context.Context, b decisionlog.Batch) error {
	if k.away.Load() {
		return errors.New("away")
	}
	var r struct {
		ID string `json:"decision_id"`
	}
	for line := range bytes.Lines(b.Lines) {
		if err := json.Unmarshal(line, &r); err != nil {
			return err
		}
		n, err := strconv.Atoi(r.ID[len(r.ID)-9:])
		if err != nil {
			return err
		}
		if r.ID[0] == 'r' {
			k.refused[n]++
		} else {
			k.allowed[n]++
		}
	}
	return nil
}

// likely is a record as a mesh has them: what is random in one is random here.
func likely(kind byte, i int) *decisionlog.Record {
	r := refusal(i)
	if kind == 'a' {
		r = allow(i)
	}
	uuid := func(end string) string {
		return fmt.Sprintf("%08x-%04x-%04x-%04x-", rand.Uint32(), rand.N(1<<16), rand.N(1<<16), rand.N(1<<16)) + end
	}
	r.ID = string(kind) + uuid(fmt.Sprintf("%09d", i))
	r.RequestID, r.Revision = uuid(fmt.Sprintf("%012x", rand.N(uint64(1)<<48))), "63d1c0a9b2f4"
	r.SourceAddress, r.Host = fmt.Sprintf("10.%d.%d.%d", rand.N(4), rand.N(256), rand.N(256)), "ratings.shop.svc.cluster.local:9080"
	r.Path = fmt.Sprintf("/api/v1/items/%d", rand.N(100_000))
	r.Inputs = map[string]string{"header x-user": fmt.Sprintf("user-%d", rand.N(5000))}
	r.Latency = int64(50 + rand.N(100))
	return r
}

// TestTenMinutes: what ten minutes of a sink that is away come to at 5,000 refusals a
// second, in number and on a real disk, though not in time. Memory does not grow, the
// disk is bounded, and when the sink is back each refusal arrives, once; allowed
// decisions made room, and are counted. CI keeps some; all are
//
//	go test ./authz/decisionlog -run TestTenMinutes -refusals 3000000 -v -timeout 20m
func TestTenMinutes(t *testing.T) {
	n := *refusals
	k := &ticks{refused: make([]byte, n), allowed: make([]byte, n)}
	k.away.Store(true)
	dir := filepath.Join(t.TempDir(), "spool")
	limit := int64(n) * spoolPerRefusal
	f := open(t, decisionlog.Options{AllowPercent: 100, Spool: dir, SpoolBytes: limit, Sink: k})
	began := time.Now()
	base := heap()
	var most uint64
	for i := range n {
		for _, r := range []*decisionlog.Record{likely('r', i), likely('a', i)} {
			if err := f.Wait(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		if i%(n/20) == n/20-1 {
			most = max(most, heap())
		}
	}
	took := time.Since(began)
	refused, used, journal := onDisk(t, dir)
	most = max(most, heap())
	t.Logf("%d refusals and as many allowed decisions in %s: %.0f records a second; %d bytes a refusal on disk, %d in all of %d; at most %d KiB of memory more",
		n, took.Round(time.Millisecond), float64(2*n)/took.Seconds(), refused/int64(n), used, limit, (int64(most)-int64(base))>>10)
	// Two batches of each class are under way, and the queue: some MiB, whatever n is.
	if grown := int64(most) - int64(base); grown > 24<<20 {
		t.Errorf("%d bytes more in memory", grown)
	}
	if journal > maxJournal {
		t.Errorf("%d bytes of journals, more than %d", journal, maxJournal)
	}
	if used > limit {
		t.Errorf("%d bytes on disk, more than %d", used, limit)
	}
	k.away.Store(false)
	proctest.Eventually(t, 10*time.Minute, func() error {
		if left := gathered(t, f.metrics, "writ_authz_log_spool_bytes"); left > 0 {
			return fmt.Errorf("%.0f bytes are left", left)
		}
		return nil
	})
	f.stop()
	for i, times := range k.refused {
		if times != 1 {
			t.Fatalf("refusal %d came %d times", i, times)
		}
	}
	got := 0
	for _, times := range k.allowed {
		got += int(times)
	}
	t.Logf("%d allowed decisions made room", f.dropped(t, "allow"))
	if lost := f.dropped(t, "allow"); got+lost != n || f.dropped(t, "refusal") != 0 {
		t.Errorf("%d allowed decisions arrived and %d were dropped of %d; %d refusals were dropped", got, lost, n, f.dropped(t, "refusal"))
	}
}

// maxJournal bounds the journals of usual records: those in the queue, and sixteen
// batches and those that are being made, of half a MiB.
const maxJournal = 16 << 20

// onDisk is what a spool has of refusals, and in all, and beside it in journals, in
// bytes.
func onDisk(t *testing.T, dir string) (refused, all, journal int64) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			continue
		}
		if strings.HasPrefix(e.Name(), "journal-") {
			journal += info.Size()
			continue
		}
		all += info.Size()
		if strings.HasPrefix(e.Name(), "0-") {
			refused += info.Size()
		}
	}
	return refused, all, journal
}
