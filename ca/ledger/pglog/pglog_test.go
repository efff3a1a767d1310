package pglog

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/ledgertest"
	"github.com/writ-mesh/writ/ca/ledger/pgtest"
	"github.com/writ-mesh/writ/internal/proctest"
)

func open(t *testing.T, url string) *Log {
	t.Helper()
	l, err := Open(t.Context(), Config{URL: url}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// opened is a store that is closed with the test.
func opened(t *testing.T, url string) *Log {
	t.Helper()
	l := open(t, url)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func issue(ctx context.Context, l *Log, n int) error {
	_, err := l.Commit(ctx, ledgertest.Issue(n))
	return err
}

func TestPostgreSQL(t *testing.T) {
	server := pgtest.Start(t)
	t.Run("while it lives", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T){
			"conformance":     func(t *testing.T) { testConformance(t, server) },
			"replicas":        func(t *testing.T) { testReplicas(t, server.Schema(t)) },
			"start together":  func(t *testing.T) { testStartTogether(t, server.Schema(t)) },
			"tampering":       func(t *testing.T) { testTampering(t, server) },
			"not durable":     func(t *testing.T) { testSynchronous(t, server) },
			"hanging replica": func(t *testing.T) { testHanging(t, server.Schema(t)) },
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t)
			})
		}
	})
	// Notifications are the database's: those of other tests would wake it, too.
	t.Run("watch over replicas", func(t *testing.T) { testWatchReplicas(t, server.Schema(t)) })
	t.Run("idle", func(t *testing.T) { testIdle(t, server) })
	t.Run("away under load", func(t *testing.T) { testAway(t, server) })
	t.Run("frozen", func(t *testing.T) { testFrozen(t, server) })
	t.Run("away at start", func(t *testing.T) { testAwayAtStart(t, server) })
}

func testConformance(t *testing.T, server *pgtest.Server) {
	urls := make(map[ledger.Store]string)
	ledgertest.Run(t,
		func(t *testing.T) ledger.Store {
			url := server.Schema(t)
			l := open(t, url)
			urls[l] = url
			return l
		},
		func(t *testing.T, s ledger.Store) ledger.Store {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			l := open(t, urls[s])
			urls[l] = urls[s]
			return l
		})
}

// Several replicas write at once: nothing is lost or twice, a token is good once, and
// the log is one.
func testReplicas(t *testing.T, url string) {
	replicas := []*Log{opened(t, url), opened(t, url), opened(t, url)}
	token, err := replicas[0].Commit(t.Context(), ledgertest.Put("tokens/1", "secret"))
	if err != nil {
		t.Fatal(err)
	}
	const workers, each = 6, 20
	var wg sync.WaitGroup
	var won atomic.Int32
	for w := range workers {
		l := replicas[w%len(replicas)]
		wg.Go(func() {
			for n := range each {
				if err := issue(t.Context(), l, w*each+n); err != nil {
					t.Error(err)
				}
			}
			switch _, err := l.Commit(t.Context(), ledgertest.Use("tokens/1", token, 1000+w)); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, ledger.ErrConflict):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("the token was used %d times", won.Load())
	}
	want, err := replicas[0].Head(t.Context())
	if err != nil || want.Size != workers*each+2 {
		t.Fatalf("got %+v, %v", want, err)
	}
	for _, l := range replicas {
		if h, err := l.Head(t.Context()); err != nil || h != want {
			t.Errorf("a replica says %+v, %v; another %+v", h, err, want)
		}
		seen := make(map[string]bool)
		for _, e := range ledgertest.All(t, l) {
			seen[e.Serial] = true
		}
		if len(seen) != workers*each+2 { // with the token's, which has none
			t.Errorf("%d different entries, want %d", len(seen), workers*each+2)
		}
	}
}

// What one replica changes the watchers of another hear of soon.
func testWatchReplicas(t *testing.T, url string) {
	a, b := opened(t, url), opened(t, url)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	seen := make(chan ledger.Update, 100)
	go func() {
		defer close(seen)
		_ = b.Watch(ctx, "r/", func(u ledger.Update) error { seen <- u; return nil })
	}()
	<-seen
	for n := range 5 {
		key := fmt.Sprintf("r/%d", n)
		begin := time.Now()
		v, err := a.Commit(ctx, ledgertest.Put(key, "x"))
		if err != nil {
			t.Fatal(err)
		}
		if u := <-seen; len(u.Put) != 1 || u.Put[0].Key != key || u.Put[0].Version != v {
			t.Fatalf("got %+v", u)
		}
		// Not by the look that is taken now and then.
		if took := time.Since(begin); took > look/2 {
			t.Errorf("heard after %s", took)
		}
		if _, err := a.Commit(ctx, ledgertest.Use(key, v, n)); err != nil {
			t.Fatal(err)
		}
		if u := <-seen; len(u.Deleted) != 1 || u.Deleted[0] != key {
			t.Fatalf("got %+v", u)
		}
	}
}

func testStartTogether(t *testing.T, url string) {
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			l, err := Open(t.Context(), Config{URL: url}, Options{})
			if err != nil {
				t.Error(err)
				return
			}
			if err := issue(t.Context(), l, n); err != nil {
				t.Error(err)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(ledgertest.All(t, opened(t, url))); n != 8 {
		t.Errorf("%d entries, want 8", n)
	}
}

// Somebody who may write to the tables is found out by the readers.
func testTampering(t *testing.T, server *pgtest.Server) {
	each := func(l *Log) error { return l.Each(t.Context(), 0, func(ledger.Record) error { return nil }) }
	prove := func(l *Log) error { _, err := l.ConsistencyProof(t.Context(), 1, 4); return err }
	get := func(l *Log) error { _, err := l.Get(t.Context(), "a"); return err }
	list := func(l *Log) error { _, err := l.List(t.Context(), ""); return err }
	for name, tc := range map[string]struct {
		sql   string
		finds []func(*Log) error
	}{
		"entry gone":      {"DELETE FROM writ_ledger_entries WHERE index = 1", []func(*Log) error{each, prove}},
		"last one gone":   {"DELETE FROM writ_ledger_entries WHERE index = 3", []func(*Log) error{each, prove, get, list}},
		"entry altered":   {"UPDATE writ_ledger_entries SET leaf = set_byte(leaf, 20, 65) WHERE index = 1", []func(*Log) error{each}},
		"its entry":       {"UPDATE writ_ledger_entries SET leaf = set_byte(leaf, 20, 65) WHERE index = 3", []func(*Log) error{each, get, list}},
		"document":        {"UPDATE writ_ledger_documents SET value = 'x'", []func(*Log) error{get, list}},
		"older version":   {"UPDATE writ_ledger_documents SET version = 1", []func(*Log) error{get, list}},
		"version to come": {"UPDATE writ_ledger_documents SET version = 9", []func(*Log) error{get, list}},
		"made up":         {"INSERT INTO writ_ledger_documents VALUES ('b', 'x', 4)", []func(*Log) error{list}},
	} {
		url := server.Schema(t)
		l := opened(t, url)
		for n := range 3 {
			if err := issue(t.Context(), l, n); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := l.Commit(t.Context(), ledgertest.Put("a", "value")); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(each(l), get(l), list(l)); err != nil {
			t.Fatal(err)
		}
		server.Exec(t, url, tc.sql)
		for i, find := range tc.finds {
			if err := find(l); err == nil || !strings.Contains(err.Error(), "restore the database from a backup") && !strings.Contains(err.Error(), "is missing") {
				t.Errorf("%s: reader %d got %v", name, i, err)
			}
		}
	}
}

// A session makes a commit durable though the server's configuration does not.
func testSynchronous(t *testing.T, server *pgtest.Server) {
	u, err := url.Parse(server.Schema(t))
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("synchronous_commit", "off")
	u.RawQuery = q.Encode()
	l := opened(t, u.String())
	var now string
	if err := l.writer.QueryRow(t.Context(), "SELECT current_setting('synchronous_commit')").Scan(&now); err != nil || now != "on" {
		t.Errorf("synchronous_commit is %q, %v", now, err)
	}
}

// A replica that stands still with the head locked holds up the others for two
// seconds and not for ever.
func testHanging(t *testing.T, url string) {
	hanging, other := opened(t, url), opened(t, url)
	tx, err := hanging.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	if _, err := scanHead(tx.QueryRow(t.Context(), lockHead)); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	proctest.Eventually(t, 20*time.Second, func() error { return issue(t.Context(), other, 1) })
	t.Logf("waited %s", time.Since(begin))
}

// A replica with nothing to do asks the database for next to nothing.
func testIdle(t *testing.T, server *pgtest.Server) {
	url := server.Schema(t)
	l := opened(t, url)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ready := make(chan struct{}, 1)
	go func() { _ = l.Watch(ctx, "", func(ledger.Update) error { ready <- struct{}{}; return nil }) }()
	<-ready
	// Whoever is asked for something has its time; the one who asks is not meant.
	const asked = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'writ-ca' AND pid <> pg_backend_pid() AND query_start > now() - interval '2 seconds'"
	proctest.Eventually(t, 20*time.Second, func() error {
		var n int
		if err := l.pool.QueryRow(ctx, asked).Scan(&n); err != nil {
			return err
		}
		if n > 0 {
			return fmt.Errorf("%d sessions asked for something within two seconds", n)
		}
		return nil
	})
}

// The server dies under load and comes back: nobody is told of a record that is not
// there, and all goes on by itself, watchers included.
func testAway(t *testing.T, server *pgtest.Server) {
	url := server.Schema(t)
	l := opened(t, url)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	heard := make(chan string, 1000)
	go func() {
		_ = l.Watch(ctx, "", func(u ledger.Update) error {
			for _, d := range u.Put {
				heard <- d.Key
			}
			return nil
		})
	}()
	var acked sync.Map
	var count, failures atomic.Int64
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for n := w * 1_000_000; ctx.Err() == nil; n++ {
				switch err := issue(ctx, l, n); {
				case err == nil:
					acked.Store(ledgertest.Certificate(n).Serial, true)
					count.Add(1)
				case errors.Is(err, ledger.ErrUnavailable):
					failures.Add(1)
				case ctx.Err() == nil:
					t.Error(err)
					return
				}
			}
		})
	}
	more := func(than int64) func() error {
		return func() error {
			if n := count.Load(); n <= than {
				return fmt.Errorf("%d of more than %d", n, than)
			}
			return nil
		}
	}
	proctest.Eventually(t, 20*time.Second, more(50))
	server.Stop()
	proctest.Until(t, 20*time.Second, "a change fails", func() bool { return failures.Load() > 0 })
	if err := l.Check(ctx); !errors.Is(err, ledger.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if _, err := l.Get(ctx, "x"); !errors.Is(err, ledger.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	server.Restart(t)
	proctest.Eventually(t, 30*time.Second, more(count.Load()+50))
	if _, err := l.Commit(ctx, ledgertest.Put("after", "x")); err != nil {
		t.Error(err)
	}
	select {
	case key := <-heard:
		if key != "after" {
			t.Errorf("heard of %s", key)
		}
	case <-time.After(30 * time.Second):
		t.Error("the watcher hears nothing any more")
	}
	cancel()
	wg.Wait()
	again := opened(t, url)
	there := make(map[string]int)
	for _, e := range ledgertest.All(t, again) {
		there[e.Serial]++
	}
	acked.Range(func(serial, _ any) bool {
		if there[serial.(string)] != 1 { //nolint:forcetypeassert // stored above
			t.Errorf("certificate %s was acknowledged, and is there %d times", serial, there[serial.(string)]) //nolint:forcetypeassert // stored above
		}
		return true
	})
}

// A server that stands still fails calls within a bound.
func testFrozen(t *testing.T, server *pgtest.Server) {
	l := opened(t, server.Schema(t))
	if err := issue(t.Context(), l, 1); err != nil {
		t.Fatal(err)
	}
	server.Signal(syscall.SIGSTOP)
	for _, pid := range server.Children(t) {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Log(err)
		}
	}
	begin := time.Now()
	err := issue(t.Context(), l, 2)
	took := time.Since(begin)
	for _, pid := range server.Children(t) {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
	server.Signal(syscall.SIGCONT)
	if !errors.Is(err, ledger.ErrUnavailable) || took > 3*timeout {
		t.Errorf("after %s: %v", took, err)
	}
	proctest.Eventually(t, 30*time.Second, func() error { return issue(t.Context(), l, 3) })
}

// The server is away at the start: an authority says so and waits for it; what waiting
// does not heal is an error at once.
func testAwayAtStart(t *testing.T, server *pgtest.Server) {
	url := server.Schema(t)
	wrong := strings.Replace(url, "/postgres?", "/nothing?", 1)
	if _, err := Open(t.Context(), Config{URL: wrong}, Options{}); err == nil || errors.Is(err, ledger.ErrUnavailable) || !strings.Contains(err.Error(), "nothing") {
		t.Errorf("a database that is not there: %v", err)
	}
	missing := filepath.Join(t.TempDir(), "password")
	if _, err := Open(t.Context(), Config{URL: url, PasswordFile: missing}, Options{}); err == nil || errors.Is(err, ledger.ErrUnavailable) || !strings.Contains(err.Error(), missing) {
		t.Errorf("a password file that is not there: %v", err)
	}
	server.Stop()
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := Open(short, Config{URL: url}, Options{}); !errors.Is(err, ledger.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	started := make(chan error, 1)
	var l *Log
	go func() {
		var err error
		l, err = Open(context.WithoutCancel(t.Context()), Config{URL: url}, Options{})
		started <- err
	}()
	select {
	case err := <-started:
		t.Fatalf("it started without a server: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	server.Restart(t)
	select {
	case err := <-started:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it does not start")
	}
	if err := errors.Join(issue(t.Context(), l, 1), l.Close()); err != nil {
		t.Error(err)
	}
}

func TestValidate(t *testing.T) {
	for url, want := range map[string]string{
		"postgres://writ@/writ?host=/run/postgresql":                                        "",
		"postgres://writ@localhost/writ":                                                    "",
		"postgres://writ@127.0.0.1:5433/writ?sslmode=disable":                               "",
		"postgresql://writ@[::1]/writ":                                                      "",
		"postgres://writ@db.example/writ?sslmode=verify-full":                               "",
		"postgres://writ@db.example,db2.example/writ?sslmode=verify-full":                   "",
		"postgres://writ@db.example/writ":                                                   "use sslmode=verify-full",
		"postgres://writ@db.example/writ?sslmode=require":                                   "use sslmode=verify-full",
		"postgres://writ@db.example/writ?sslmode=disable":                                   "use sslmode=verify-full",
		"postgres://writ@localhost,db.example/writ?sslmode=require":                         "use sslmode=verify-full",
		"postgres://writ:sesame@localhost/writ":                                             "put it into a file",
		"postgres://writ@localhost/writ?password=sesame":                                    "put it into a file",
		"postgres://writ:sesame@localhost/writ?sslmode=nonsense":                            "cannot be read",
		"mysql://writ:sesame@localhost/writ":                                                "want postgres://",
		"host=localhost user=writ password=sesame":                                          "want postgres://",
		"postgres://writ:sesame@local host/writ":                                            "cannot be read",
		"postgres://writ@db.example/writ?sslmode=verify-full&sslrootcert=/nowhere/root.pem": "cannot be read",
	} {
		err := Config{URL: url}.Validate()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", url, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "sesame") {
			t.Errorf("%s: the password is in %v", url, err)
		}
	}
}

// The password is read for each connection, without what an editor leaves at its end.
func TestPasswordFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "p")
	c := Config{URL: "postgres://writ@localhost/writ", PasswordFile: file}
	p, err := c.parse()
	if err != nil {
		t.Fatal(err)
	}
	for _, password := range []string{"sesame", "open"} {
		if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := p.BeforeConnect(t.Context(), p.ConnConfig); err != nil || p.ConnConfig.Password != password {
			t.Errorf("got %q, %v", p.ConnConfig.Password, err)
		}
	}
}
