package ca

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/etcdstore"
	"github.com/writ-mesh/writ/ca/ledger/filelog"
	"github.com/writ-mesh/writ/ca/ledger/pglog"
	"github.com/writ-mesh/writ/internal/service"
)

// LedgerConfig says where the ledger is.
type LedgerConfig struct {
	// Postgres is the database of a ledger that several authorities share,
	// postgres://user@host/database?sslmode=verify-full without a password; empty
	// means a file in the state directory.
	Postgres string `yaml:"postgres"`
	// PasswordFile holds the password of its user; empty means that it needs none.
	PasswordFile string `yaml:"password_file"`
	// Etcd is the cluster of a ledger that several authorities form themselves; for
	// programs that are built with the tag etcd.
	Etcd etcdstore.Config `yaml:"etcd"`
}

// etcdDir is the folder of the state directory with what this member of a cluster has.
const etcdDir = "etcd"

func (c LedgerConfig) database() pglog.Config {
	return pglog.Config{URL: c.Postgres, PasswordFile: c.PasswordFile}
}

func (c LedgerConfig) validate() error {
	switch {
	case c.Postgres == "" && c.PasswordFile != "":
		return fmt.Errorf("ledger.password_file: it is for ledger.postgres, which is not set")
	case c.Postgres != "" && !c.Etcd.IsZero():
		return fmt.Errorf("ledger: it is in PostgreSQL or in etcd; leave ledger.postgres or ledger.etcd out")
	case !c.Etcd.IsZero():
		if err := c.Etcd.Validate(); err != nil {
			return fmt.Errorf("ledger.etcd: %w", err)
		}
		return nil
	case c.Postgres == "":
		return nil
	}
	if err := c.database().Validate(); err != nil {
		return fmt.Errorf("ledger.postgres: %w", err)
	}
	return nil
}

// shared tells whether other authorities may be over the same ledger.
func (c LedgerConfig) shared() bool { return c.Postgres != "" || !c.Etcd.IsZero() }

// openEtcd starts this authority's member of a cluster, and has it take over the file
// that the ledger was before, or was restored to.
func openEtcd(ctx context.Context, c Config, opts etcdstore.Options) (ledger.Store, error) {
	opts.Dir, opts.Cluster = filepath.Join(c.State, etcdDir), c.TrustDomain
	store, err := etcdstore.Open(ctx, c.Ledger.Etcd, opts)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(c.State, ledgerFile)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return store, nil
	}
	from, err := filelog.Open(path, filelog.Options{Log: opts.Log})
	if err == nil {
		err = errors.Join(etcdstore.Import(ctx, store, from), from.Close())
	}
	if err == nil {
		err = os.Rename(path, path+".imported")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s is to be taken over into the ledger of the cluster: %w", path, err), store.Close())
	}
	return store, nil
}

// openStore opens the ledger; a database that does not answer is waited for. failing
// tells from then on whether the last change failed.
func openStore(ctx context.Context, c Config, m *metrics, failing *atomic.Bool, rt *service.Runtime) (ledger.Store, error) {
	committed := func(entries int, took time.Duration, err error) {
		m.committed(entries, took, err)
		failing.Store(err != nil)
		rt.Health.Set(subsystemLedger, err)
	}
	if !c.Ledger.Etcd.IsZero() {
		return openEtcd(ctx, c, etcdstore.Options{Log: rt.Log, Committed: committed})
	}
	if c.Ledger.Postgres != "" {
		return pglog.Open(ctx, c.Ledger.database(), pglog.Options{Log: rt.Log, Committed: committed})
	}
	return filelog.Open(filepath.Join(c.State, ledgerFile), filelog.Options{Log: rt.Log, Committed: committed})
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
