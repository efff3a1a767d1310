package pglog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/docstore"
	"github.com/writ-mesh/writ/ca/ledger/group"
	"github.com/writ-mesh/writ/ca/ledger/hashtree"
)

const (
	// timeout bounds a transaction and every question.
	timeout = 5 * time.Second
	// maxConnections is for reading; one commits, and one listens.
	maxConnections = 8
	// The waits between attempts to reach a database, from the first to all later ones.
	firstRetry, lastRetry = 100 * time.Millisecond, 5 * time.Second
)

// Config says where the database is.
type Config struct {
	// URL is postgres://user@host/database?sslmode=verify-full, without a password.
	URL string
	// PasswordFile holds the password, which may change; empty for none.
	PasswordFile string
}

// Options are the optional parts of Open.
type Options struct {
	// Log gets when the database goes away and comes back; nil means nothing is
	// logged.
	Log *slog.Logger
	// Committed is called after each commit with the number of entries, how long
	// it took and whether it worked. It must not block. May be nil.
	Committed func(entries int, took time.Duration, err error)
}

// Log is a ledger.Store in PostgreSQL.
type Log struct {
	hashtree.Prover

	// writer has one connection, which commits; so readers do not keep it waiting.
	writer, pool *pgxpool.Pool

	log   *slog.Logger
	queue *group.Queue
	name  string // of the server, for messages
	cfg   *pgx.ConnConfig

	// docs follow the database for watchers.
	docs     *docstore.Store
	followed *docstore.Mark
	stop     context.CancelFunc
	stopped  chan struct{}

	// proving guards tree, which has the first entries of the log, for proofs.
	proving sync.Mutex
	tree    hashtree.Tree
}

// Validate checks a Config without connecting.
func (c Config) Validate() error {
	_, err := c.parse()
	return err
}

// parse reads the URL. Its errors do not show it.
func (c Config) parse() (*pgxpool.Config, error) {
	if !strings.HasPrefix(c.URL, "postgres://") && !strings.HasPrefix(c.URL, "postgresql://") {
		return nil, errors.New("want postgres://user@host/database?sslmode=verify-full")
	}
	p, err := pgxpool.ParseConfig(c.URL)
	if err != nil {
		return nil, errors.New("the URL cannot be read; want postgres://user@host/database?sslmode=verify-full")
	}
	cc := p.ConnConfig
	if u, err := urlPassword(c.URL); err != nil || u {
		return nil, errors.New("the URL has a password, which others may read; put it into a file and name that as password_file")
	}
	for _, h := range append([]*pgconn.FallbackConfig{{Host: cc.Host, TLSConfig: cc.TLSConfig}}, cc.Fallbacks...) {
		if !local(h.Host) && (h.TLSConfig == nil || h.TLSConfig.InsecureSkipVerify && h.TLSConfig.VerifyPeerCertificate == nil || h.TLSConfig.ServerName == "") {
			return nil, fmt.Errorf("%s is another machine: with this sslmode somebody between could read and change the ledger; use sslmode=verify-full", h.Host)
		}
	}
	p.MaxConns = maxConnections
	cc.ConnectTimeout = timeout
	cc.RuntimeParams["application_name"] = "writ-ca"
	cc.RuntimeParams["idle_in_transaction_session_timeout"] = "2000"
	cc.RuntimeParams["statement_timeout"] = fmt.Sprint(timeout.Milliseconds())
	p.BeforeConnect = func(_ context.Context, cc *pgx.ConnConfig) error { return c.password(cc) }
	p.AfterConnect = durable
	return p, nil
}

// password reads the password anew for each connection, since it may change.
func (c Config) password(cc *pgx.ConnConfig) error {
	if c.PasswordFile == "" {
		return nil
	}
	data, err := os.ReadFile(c.PasswordFile)
	if err != nil {
		return fmt.Errorf("the password of the ledger's database: %w", err)
	}
	cc.Password = strings.TrimRight(string(data), "\r\n")
	return nil
}

// local tells whether a host is this machine: a folder of sockets or loopback.
func local(host string) bool {
	ip := net.ParseIP(host)
	return strings.HasPrefix(host, "/") || host == "localhost" || ip != nil && ip.IsLoopback()
}

// errNotDurable is that of a server on which a commit may be lost.
var errNotDurable = errors.New("the server runs with fsync off, so that nothing on it is durable; turn it on")

// durable sees to it that a commit of the session is on the server's disk.
func durable(ctx context.Context, c *pgx.Conn) error {
	var fsync string
	if err := c.QueryRow(ctx, `SELECT current_setting('fsync')`).Scan(&fsync); err != nil {
		return err
	}
	if fsync != "on" {
		return errNotDurable
	}
	_, err := c.Exec(ctx, `SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'`)
	return err
}

// Open connects and makes the tables if they are not there. While the database does
// not answer it says so and goes on trying until ctx ends; what no waiting heals, such
// as a wrong password, is an error at once.
func Open(ctx context.Context, c Config, opts Options) (*Log, error) {
	p, err := c.parse()
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	pool, err := pgxpool.NewWithConfig(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	one := p.Copy()
	one.MaxConns = 1
	writer, err := pgxpool.NewWithConfig(ctx, one)
	if err != nil {
		pool.Close()
		return nil, fmt.Errorf("ledger: %w", err)
	}
	l := &Log{
		writer: writer, pool: pool, log: opts.Log, cfg: p.ConnConfig, name: fmt.Sprintf("PostgreSQL at %s, database %s", p.ConnConfig.Host, p.ConnConfig.Database),
		docs: docstore.New(), followed: docstore.NewMark(), stopped: make(chan struct{}),
	}
	l.Prover = hashtree.Prover{Whole: l.whole, Leaves: l.hashes}
	if err := l.prepare(ctx); err != nil {
		writer.Close()
		pool.Close()
		return nil, err
	}
	follow, stop := context.WithCancel(context.WithoutCancel(ctx))
	l.stop = stop
	go l.follow(follow, c)
	l.queue = group.New(l.commit, opts.Committed)
	return l, nil
}

// prepare makes the tables, as soon as the database answers.
func (l *Log) prepare(ctx context.Context) error {
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		err := l.within(ctx, func(ctx context.Context) error { _, err := l.pool.Exec(ctx, schema); return err })
		if err == nil {
			return nil
		}
		err = l.failed(err)
		if ctx.Err() != nil || !errors.Is(err, ledger.ErrUnavailable) {
			return err
		}
		l.log.WarnContext(ctx, "the ledger's database does not answer; trying again", slog.Any("error", err), slog.Duration("in", wait))
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

func (*Log) within(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return f(ctx)
}

// failed says of an error of the database whether it may pass.
func (l *Log) failed(err error) error {
	if err == nil {
		return nil
	}
	if pg := new(pgconn.PgError); errors.As(err, &pg) && permanent(pg.Code) || errors.Is(err, errNotDurable) || errors.Is(err, errAltered) || errors.Is(err, os.ErrNotExist) && !errors.As(err, new(*net.OpError)) {
		return fmt.Errorf("ledger: %s: %w", l.name, err)
	}
	return fmt.Errorf("%w: %s: %w", ledger.ErrUnavailable, l.name, err)
}

// permanent tells whether an error stays until somebody changes something: a wrong
// name or password (class 28), a database that is not there (3D), a missing right or
// table (42). https://www.postgresql.org/docs/current/errcodes-appendix.html
func permanent(code string) bool {
	return strings.HasPrefix(code, "28") || strings.HasPrefix(code, "3D") || strings.HasPrefix(code, "42")
}

// Commit implements ledger.Store.
func (l *Log) Commit(ctx context.Context, c ledger.Change) (uint64, error) {
	return l.queue.Commit(ctx, c)
}

// Check implements ledger.Store.
func (l *Log) Check(ctx context.Context) error { return l.queue.Check(ctx) }

// Close implements ledger.Store.
func (l *Log) Close() error {
	if l.queue.Close() {
		l.stop()
		<-l.stopped
		l.writer.Close()
		l.pool.Close()
	}
	return nil
}

// urlPassword tells whether a URL has a password in it.
func urlPassword(text string) (bool, error) {
	u, err := url.Parse(text)
	if err != nil {
		return false, err
	}
	_, has := u.User.Password()
	return has || u.Query().Has("password"), nil
}
