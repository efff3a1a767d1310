package ca

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/filelog"
	"github.com/writ-mesh/writ/internal/service"
)

// openStore opens the ledger. failing tells from then on whether its last change
// failed.
func openStore(c Config, m *metrics, failing *atomic.Bool, rt *service.Runtime) (ledger.Store, error) {
	return filelog.Open(filepath.Join(c.State, ledgerFile), filelog.Options{
		Log: rt.Log,
		Committed: func(entries int, took time.Duration, err error) {
			m.committed(entries, took, err)
			failing.Store(err != nil)
			rt.Health.Set(subsystemLedger, err)
		},
	})
}

// lastEntry is the newest entry of the ledger, and whether there is one.
func lastEntry(ctx context.Context, log ledger.Log) (e ledger.Entry, inUse bool, err error) {
	head, err := log.Head(ctx)
	if err != nil || head.Size == 0 {
		return e, false, err
	}
	err = log.Each(ctx, head.Size-1, func(r ledger.Record) (err error) {
		e, err = r.Entry()
		return err
	})
	return e, true, err
}

// warnOfClock says so if this machine's clock is behind what the ledger saw.
func (a *Authority) warnOfClock(ctx context.Context, last ledger.Entry, skew time.Duration) {
	if now := a.now(); last.Time.After(now.Add(skew)) {
		a.log.WarnContext(ctx, "this machine's clock is behind the last entry of the ledger; set the clock, or peers will find new certificates expired",
			slog.Time("last_entry", last.Time), slog.Time("now", now))
	}
}
