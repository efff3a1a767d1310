//go:build etcd

package etcdstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/filelog"
	"github.com/writ-mesh/writ/ca/ledger/hashtree"
	"github.com/writ-mesh/writ/ca/ledger/ledgertest"
	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
)

// cluster is the members of a cluster, in this process.
type cluster struct {
	t       *testing.T
	root    *pkitest.Root
	configs map[string]Config
	dirs    map[string]string
	// beat is short for one member alone, with whom nobody competes for the processor.
	beat time.Duration
}

// newCluster makes the files of a cluster of that many.
func newCluster(t *testing.T, size int) *cluster {
	t.Helper()
	c := &cluster{t: t, root: pkitest.NewRoot(t, "peers.example"), configs: make(map[string]Config), dirs: make(map[string]string), beat: heartbeat}
	if size == 1 {
		c.beat = heartbeat / 5
	}
	peers := make(map[string]string)
	for n := range size {
		peers[fmt.Sprintf("m%d", n)] = freePort(t)
	}
	for name := range peers {
		dir := t.TempDir()
		c.configs[name] = c.config(dir, name, peers, "127.0.0.1")
		c.dirs[name] = filepath.Join(dir, "etcd")
	}
	return c
}

// config has a certificate for a host.
func (c *cluster) config(dir, name string, peers map[string]string, host string) Config {
	c.t.Helper()
	leaf := pkitest.Leaf("spiffe://peers.example/"+name, time.Hour)
	leaf.URIs, leaf.IPAddresses = nil, []net.IP{net.ParseIP(host)}
	cert, key := c.root.Issue(c.t, leaf)
	out := Config{
		Name: name, Peers: peers, Listen: peers[name],
		CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem"), CAFile: filepath.Join(dir, "ca.pem"),
	}
	for path, data := range map[string][]byte{out.CertFile: cert, out.KeyFile: key, out.CAFile: c.root.PEM()} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			c.t.Fatal(err)
		}
	}
	return out
}

// freePort is an address where nobody listens.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start starts members together.
func (c *cluster) start(names ...string) map[string]*Log {
	c.t.Helper()
	out := make(map[string]*Log)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, name := range names {
		wg.Go(func() {
			s, err := open(c.t.Context(), c.configs[name], Options{Dir: c.dirs[name], Cluster: "test"}, c.beat)
			if err != nil {
				c.t.Errorf("%s: %v", name, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out[name] = s.(*Log)
		})
	}
	wg.Wait()
	if len(out) != len(names) {
		c.t.FailNow()
	}
	return out
}

func names(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf("m%d", i))
	}
	return out
}

func issue(ctx context.Context, l ledger.Store, n int) error {
	_, err := l.Commit(ctx, ledgertest.Issue(n))
	return err
}

// One member keeps what every store has to.
func TestStore(t *testing.T) {
	t.Parallel()
	clusters := make(map[ledger.Store]*cluster)
	ledgertest.Run(t, func(t *testing.T) ledger.Store {
		c := newCluster(t, 1)
		l := c.start("m0")["m0"]
		clusters[l] = c
		return l
	}, func(t *testing.T, s ledger.Store) ledger.Store {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		c := clusters[s]
		c.t = t
		l := c.start("m0")["m0"]
		clusters[l] = c
		return l
	})
}

// Three members write at once: nothing is lost or twice, a token is good once, the log
// is one. One dies under load, the leader, and the others go on; it comes back and has
// everything. What one changes the watchers of another hear of.
func TestThreeMembers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	members := c.start(names(3)...)
	token, err := members["m0"].Commit(t.Context(), ledgertest.Put("tokens/1", "secret"))
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan ledger.Update, 100)
	watching, stopWatching := context.WithCancel(t.Context())
	defer stopWatching()
	lead := leader(t, members)
	watcher := slices.DeleteFunc(names(3), func(n string) bool { return n == lead })[0]
	go func() {
		_ = members[watcher].Watch(watching, "tokens/", func(u ledger.Update) error { heard <- u; return nil })
	}()
	if u := <-heard; len(u.Put) != 1 || string(u.Put[0].Value) != "secret" {
		t.Fatalf("heard %+v", u)
	}
	var acked sync.Map
	var won atomic.Int32
	counts := map[string]*atomic.Int64{}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for m, name := range names(3) {
		counts[name] = new(atomic.Int64)
		for w := range 3 {
			wg.Go(func() {
				l := members[name]
				if _, err := l.Commit(ctx, ledgertest.Use("tokens/1", token, 9_000_000+10*m+w)); err == nil {
					won.Add(1)
				} else if !errors.Is(err, ledger.ErrConflict) {
					t.Errorf("the token: %v", err)
				}
				for n := 1_000_000*(1+3*m+w) - 500_000; ctx.Err() == nil; n++ {
					switch err := issue(ctx, l, n); {
					case err == nil:
						acked.Store(ledgertest.Certificate(n).Serial, true)
						counts[name].Add(1)
					case errors.Is(err, ledger.ErrUnavailable):
						if name == lead {
							return // it died
						}
						// An election may take longer than a commit may.
					case ctx.Err() == nil:
						t.Errorf("%s: %v", name, err)
						return
					}
				}
			})
		}
	}
	began := time.Now()
	for name := range counts {
		proctest.Until(t, time.Minute, name+" issues", func() bool { return counts[name].Load() > 30 })
	}
	for name, count := range counts {
		t.Logf("%s, the leader's: %v, issued %d in %s", name, name == lead, count.Load(), time.Since(began))
	}
	if u := <-heard; len(u.Deleted) != 1 || won.Load() != 1 {
		t.Errorf("the token was used %d times; heard %+v", won.Load(), u)
	}
	// As a process that dies, or its network: nobody hears of it any more.
	members[lead].etcd.Server.PauseSending()
	began = time.Now()
	for name := range counts {
		if name == lead {
			continue
		}
		before := counts[name].Load()
		proctest.Until(t, time.Minute, name+" goes on", func() bool { return counts[name].Load() > before+30 })
	}
	t.Logf("they went on %s after the leader's death", time.Since(began))
	cancel()
	wg.Wait()
	_ = members[lead].Close()
	maps.Copy(members, c.start(lead))
	defer func() {
		for _, l := range members {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}
	}()
	want, err := members[watcher].Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, l := range members {
		if h, err := l.Head(t.Context()); err != nil || h != want {
			t.Errorf("%s says %+v, %v; another %+v", name, h, err, want)
		}
		seen := make(map[string]int)
		for _, e := range ledgertest.All(t, l) {
			seen[e.Serial]++
		}
		acked.Range(func(serial, _ any) bool {
			if seen[serial.(string)] != 1 {
				t.Errorf("%s: certificate %s was acknowledged and is there %d times", name, serial, seen[serial.(string)])
			}
			delete(seen, serial.(string))
			return true
		})
		for serial, n := range seen { // of those whose acknowledgement never came
			if n != 1 && serial != "" {
				t.Errorf("%s: certificate %s is there %d times", name, serial, n)
			}
		}
	}
	if _, err := members[lead].Commit(t.Context(), ledgertest.Put("tokens/2", "x")); err != nil {
		t.Fatal(err)
	}
	if u := <-heard; len(u.Put) != 1 || u.Put[0].Key != "tokens/2" {
		t.Errorf("heard %+v", u)
	}
	verifies(t, members[lead])
}

func leader(t *testing.T, members map[string]*Log) string {
	t.Helper()
	for name, l := range members {
		if l.etcd.Server.Leader() == l.etcd.Server.MemberID() {
			return name
		}
	}
	t.Fatal("there is no leader")
	return ""
}

// verifies computes the root from the entries, and proofs with it.
func verifies(t *testing.T, l *Log) {
	t.Helper()
	var tree hashtree.Tree
	if err := l.Each(t.Context(), 0, func(r ledger.Record) (err error) {
		tree, err = tree.Grown(hashtree.Hash(r.Leaf))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	want, err := tree.Head()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := l.Head(t.Context()); err != nil || got != want {
		t.Fatalf("the store says %+v, %v, its entries %+v", got, err, want)
	}
	if _, err := l.ConsistencyProof(t.Context(), want.Size/2, want.Size); err != nil {
		t.Error(err)
	}
}

// forgetful loses the answer to every third transaction that writes: to one that was made,
// or before it was.
type forgetful struct {
	clientv3.KV
	n atomic.Int64
}

type forgetfulTxn struct {
	clientv3.Txn
	kv     *forgetful
	writes bool
}

func (f *forgetful) Txn(ctx context.Context) clientv3.Txn {
	return &forgetfulTxn{Txn: f.KV.Txn(ctx), kv: f}
}

func (f *forgetfulTxn) If(c ...clientv3.Cmp) clientv3.Txn {
	f.Txn = f.Txn.If(c...)
	return f
}

func (f *forgetfulTxn) Then(ops ...clientv3.Op) clientv3.Txn {
	f.Txn, f.writes = f.Txn.Then(ops...), slices.ContainsFunc(ops, clientv3.Op.IsPut)
	return f
}

func (f *forgetfulTxn) Else(ops ...clientv3.Op) clientv3.Txn {
	f.Txn = f.Txn.Else(ops...)
	return f
}

func (f *forgetfulTxn) Commit() (*clientv3.TxnResponse, error) {
	n := int64(0)
	if f.writes {
		n = f.kv.n.Add(1)
	}
	if n%6 == 5 {
		return nil, context.DeadlineExceeded
	}
	resp, err := f.Txn.Commit()
	if n%6 == 2 {
		return nil, context.DeadlineExceeded
	}
	return resp, err
}

// When the answer to a transaction is lost, it is made once all the same, whether it was
// made or not, also when its entries were packed meanwhile.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	l := newCluster(t, 1).start("m0")["m0"]
	defer l.Close()
	lossy := &forgetful{KV: l.client}
	l.writer = lossy
	v, err := l.Commit(t.Context(), ledgertest.Put("a", "0"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	const workers, each = 6, 60
	for w := range workers {
		wg.Go(func() {
			for n := range each {
				if err := issue(t.Context(), l, w*each+n); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for n := range 30 { // each on condition of the one before, whose version was told
		c := ledger.Change{If: map[string]uint64{"a": v}, Entry: ledgertest.Certificate(10_000 + n), Put: map[string][]byte{"a": fmt.Append(nil, n)}}
		if v, err = l.Commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	seen := make(map[string]int)
	for _, e := range ledgertest.All(t, l) {
		seen[e.Serial]++
	}
	for n := range workers * each {
		if got := seen[ledgertest.Certificate(n).Serial]; got != 1 {
			t.Errorf("certificate %d is there %d times", n, got)
		}
	}
	if len(seen) != workers*each+31 || lossy.n.Load() < 20 {
		t.Errorf("%d different entries after %d transactions", len(seen), lossy.n.Load())
	}
	verifies(t, l)
}

// A member that lost its data says so instead of beginning anew by itself, until it was
// renewed at another one; then it gets everything, and another one may fail.
func TestLostMember(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	members := c.start(names(3)...)
	defer func() {
		for _, l := range members {
			_ = l.Close()
		}
	}()
	for n := range 300 {
		if err := issue(t.Context(), members["m0"], n); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"m0", "m1", "m9"} { // itself, one that is there, nobody
		if err := Renew(t.Context(), members["m0"], name); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if err := members["m2"].Close(); err != nil {
		t.Fatal(err)
	}
	refused := func(what string) {
		t.Helper()
		if err := os.RemoveAll(c.dirs["m2"]); err != nil {
			t.Fatal(err)
		}
		if l, err := open(t.Context(), c.configs["m2"], Options{Dir: c.dirs["m2"], Cluster: "test"}, c.beat); err == nil || !strings.Contains(err.Error(), "renew-member m2") {
			t.Fatalf("%s: it begins anew by itself: %v, %v", what, l, err)
		}
	}
	refused("lost")
	if err := Renew(t.Context(), members["m0"], "m2"); err != nil {
		t.Fatal(err)
	}
	if err := Renew(t.Context(), members["m1"], "m2"); err != nil {
		t.Errorf("once more: %v", err)
	}
	maps.Copy(members, c.start("m2"))
	if got := len(ledgertest.All(t, members["m2"])); got != 300 {
		t.Errorf("it has %d entries", got)
	}
	if err := members["m1"].Close(); err != nil {
		t.Fatal(err)
	}
	proctest.Eventually(t, 20*time.Second, func() error { return issue(t.Context(), members["m0"], 1000) })
	verifies(t, members["m2"])
}

// Without most of the members nothing is recorded, within a bound; with them it goes on.
func TestMostAreAway(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	members := c.start(names(3)...)
	if err := issue(t.Context(), members["m0"], 1); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"m1", "m2"} {
		if err := members[name].Close(); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	var wg sync.WaitGroup
	for what, f := range map[string]func() error{
		"a change": func() error { return issue(t.Context(), members["m0"], 2) },
		"reading":  func() error { _, err := members["m0"].Get(t.Context(), "x"); return err },
	} {
		wg.Go(func() {
			if err := f(); !errors.Is(err, ledger.ErrUnavailable) || time.Since(began) > 3*timeout {
				t.Errorf("%s, after %s: %v", what, time.Since(began), err)
			}
		})
	}
	wg.Wait()
	maps.Copy(members, c.start("m1"))
	proctest.Eventually(t, 20*time.Second, func() error { return issue(t.Context(), members["m0"], 3) })
	for _, name := range []string{"m0", "m1"} {
		if err := members[name].Close(); err != nil {
			t.Error(err)
		}
	}
}

// Complete pieces are one value each, much smaller than their entries.
func TestPacks(t *testing.T) {
	t.Parallel()
	l := newCluster(t, 1).start("m0")["m0"]
	defer l.Close()
	var wg sync.WaitGroup
	for w := range 20 {
		wg.Go(func() {
			for n := range 60 {
				if err := issue(t.Context(), l, w*100+n); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	count := func(prefix string) (n, size int) {
		resp, err := l.client.Get(t.Context(), prefix, clientv3.WithPrefix())
		if err != nil {
			t.Fatal(err)
		}
		for _, kv := range resp.Kvs {
			size += len(kv.Value)
		}
		return len(resp.Kvs), size
	}
	proctest.Until(t, 20*time.Second, "four pieces are packed", func() bool { n, _ := count(packPrefix); return n == 4 })
	n, packed := count(packPrefix)
	_, rest := count(entryPrefix)
	t.Logf("%d packs of %d bytes; the other %d entries have %d", n, packed, 1200-1024, rest)
	if packed/1024*2 > rest/(1200-1024) {
		t.Errorf("an entry has %d bytes packed, %d otherwise", packed/1024, rest/(1200-1024))
	}
	verifies(t, l)
}

// Who has a certificate of another authority, or one of the members' authority for a host
// that is no member's, is none.
func TestStrangers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	l := c.start("m0")["m0"]
	defer l.Close()
	pool := c.root.Pool()
	try := func(certs ...tls.Certificate) error {
		conn, err := tls.Dial("tcp", c.configs["m0"].Listen, &tls.Config{RootCAs: pool, Certificates: certs, MinVersion: tls.VersionTLS13})
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := fmt.Fprintf(conn, "GET /members HTTP/1.1\r\nHost: m0\r\n\r\n"); err != nil {
			return err
		}
		_, err = conn.Read(make([]byte, 1)) // with TLS 1.3 the refusal comes with the first answer
		return err
	}
	leaf := pkitest.Leaf("spiffe://peers.example/m0", time.Hour)
	leaf.URIs, leaf.IPAddresses = nil, []net.IP{net.ParseIP("127.0.0.1")}
	if err := try(c.root.Pair(t, leaf)); err != nil {
		t.Fatalf("a member: %v", err)
	}
	if err := try(pkitest.NewRoot(t, "other.example").Pair(t, leaf)); err == nil {
		t.Error("a certificate of another authority is taken")
	}
	leaf.IPAddresses = []net.IP{net.ParseIP("127.0.0.2")}
	if err := try(c.root.Pair(t, leaf)); err == nil {
		t.Error("a certificate for another host is taken")
	}
	if err := try(); err == nil {
		t.Error("nobody needs a certificate")
	}
}

// Nobody else on the machine reads what a member has.
func TestModes(t *testing.T) {
	c := newCluster(t, 1)
	l := c.start("m0")["m0"]
	defer l.Close()
	if err := issue(t.Context(), l, 1); err != nil {
		t.Fatal(err)
	}
	seen := 0
	err := filepath.WalkDir(c.dirs["m0"], func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		seen++
		if info, err := d.Info(); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v, %v", path, info.Mode(), err)
		}
		return nil
	})
	if err != nil || seen < 4 {
		t.Errorf("%d files, %v", seen, err)
	}
	config := c.configs["m0"]
	if err := os.Chmod(c.dirs["m0"], 0o750); err != nil {
		t.Fatal(err)
	}
	if _, err := settings(config, Options{Dir: c.dirs["m0"]}); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("a wider mode: %v", err)
	}
}

// A file's log goes over byte by byte, also by several at once and after an import that
// was cut off; another log does not.
func TestImport(t *testing.T) {
	t.Parallel()
	open := func(entries int) *filelog.Log {
		log, err := filelog.Open(filepath.Join(t.TempDir(), filelog.Name), filelog.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = log.Close() })
		for n := range entries {
			if err := issue(t.Context(), log, n); err != nil {
				t.Fatal(err)
			}
			if n%100 == 0 {
				key := fmt.Sprintf("docs/%d", n/200)
				if _, err := log.Commit(t.Context(), ledger.Change{Entry: ledgertest.Certificate(n), Put: map[string][]byte{key: fmt.Append(nil, n)}}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if _, err := log.Commit(t.Context(), ledger.Change{Entry: ledgertest.Certificate(1), Delete: []string{"docs/0"}}); err != nil {
			t.Fatal(err)
		}
		return log
	}
	from := open(1500)
	l := newCluster(t, 1).start("m0")["m0"]
	defer l.Close()
	if err := l.importFrom(t.Context(), from, 0); err != nil { // and then it was cut off
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := Import(t.Context(), l, from); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	want, err := from.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := l.Head(t.Context()); err != nil || got != want {
		t.Fatalf("got %+v, %v, want %+v", got, err, want)
	}
	docs, err := l.List(t.Context(), "docs/")
	wantDocs, werr := from.List(t.Context(), "docs/")
	if err != nil || werr != nil || !slices.EqualFunc(docs, wantDocs, func(a, b ledger.Document) bool {
		return a.Key == b.Key && a.Version == b.Version && string(a.Value) == string(b.Value)
	}) {
		t.Errorf("documents: %v, %v", err, werr)
	}
	if err := issue(t.Context(), l, 9999); err != nil {
		t.Fatal(err)
	}
	if err := Import(t.Context(), l, from); err != nil {
		t.Errorf("the same log, which has gone on: %v", err)
	}
	verifies(t, l)
	if err := Import(t.Context(), l, open(3)); err == nil || !strings.Contains(err.Error(), "another ledger") {
		t.Errorf("another log: %v", err)
	}
}

// What is altered in a member is found by its readers.
func TestTampering(t *testing.T) {
	t.Parallel()
	l := newCluster(t, 1).start("m0")["m0"]
	defer l.Close()
	ctx := t.Context()
	v, err := l.Commit(ctx, ledgertest.Put("a", "value"))
	if err != nil {
		t.Fatal(err)
	}
	get := func() error { _, err := l.Get(ctx, "a"); return err }
	list := func() error { _, err := l.List(ctx, ""); return err }
	put := func(key, value string) {
		t.Helper()
		if _, err := l.client.Put(ctx, key, value); err != nil {
			t.Fatal(err)
		}
	}
	good := encodeDocument(ledger.Document{Value: []byte("value"), Version: v})
	for name, bad := range map[string]string{
		"value": encodeDocument(ledger.Document{Value: []byte("other"), Version: v}), "version": encodeDocument(ledger.Document{Value: []byte("value"), Version: v + 1}),
		"version 0": encodeDocument(ledger.Document{Value: []byte("value")}), "cut": good[:3],
	} {
		put(documentPrefix+"a", bad)
		for _, f := range []func() error{get, list} {
			if err := f(); err == nil || errors.Is(err, ledger.ErrUnavailable) || !strings.Contains(err.Error(), "was altered") {
				t.Errorf("%s: got %v", name, err)
			}
		}
	}
	put(documentPrefix+"a", good)
	if err := errors.Join(get(), list()); err != nil {
		t.Fatal(err)
	}
	put(segmentKey(0), strings.Repeat("x", 40))
	if err := l.Each(ctx, 0, func(ledger.Record) error { return nil }); err == nil || errors.Is(err, ledger.ErrUnavailable) {
		t.Errorf("entries: %v", err)
	}
}

// A member with a key that others may read, or without its files, does not start.
func TestBadMember(t *testing.T) {
	c := newCluster(t, 1)
	config := c.configs["m0"]
	try := func() error {
		l, err := Open(t.Context(), config, Options{Dir: c.dirs["m0"]})
		if err == nil {
			_ = l.Close()
		}
		return err
	}
	if err := os.Chmod(config.KeyFile, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := try(); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("got %v", err)
	}
	if err := errors.Join(os.Remove(config.KeyFile)); err != nil {
		t.Fatal(err)
	}
	if err := try(); err == nil || !strings.Contains(err.Error(), config.KeyFile) {
		t.Errorf("got %v", err)
	}
}

func TestAddresses(t *testing.T) {
	c := Config{Name: "a", Peers: map[string]string{"a": "a.example:2380", "b": "10.0.0.2:2380", "c": "[::1]:2380"}}
	if want := "a=https://a.example:2380,b=https://10.0.0.2:2380,c=https://[::1]:2380"; c.cluster() != want || c.listen() != "0.0.0.0:2380" {
		t.Errorf("got %s and %s", c.cluster(), c.listen())
	}
	if got := c.hosts(); !slices.Equal(got, []string{"10.0.0.2", "::1", "a.example"}) {
		t.Errorf("got %v", got)
	}
}

func FuzzParseRecords(f *testing.F) {
	f.Add(encodeRecords(nil, []ledger.Record{{Leaf: []byte("a"), Values: []byte("b")}, {Leaf: []byte("c")}}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		records, err := parseRecords(data, 0)
		if err != nil {
			return
		}
		again, err := parseRecords(encodeRecords(nil, records), 0)
		if err != nil || len(again) != len(records) {
			t.Fatalf("%d records, then %d, %v", len(records), len(again), err)
		}
	})
}

// A question that meets the choice of another leader is asked again; other errors and
// the end of the caller's patience are told.
func TestAsksAgainAfterALeader(t *testing.T) {
	l, other := &Log{name: "m"}, errors.New("other")
	for _, c := range []struct {
		answers []error
		want    error
	}{
		{[]error{rpctypes.ErrLeaderChanged, rpctypes.ErrNoLeader, nil}, nil},
		{[]error{rpctypes.ErrLeaderChanged, other}, other},
		{[]error{other}, other},
	} {
		asked := 0
		err := l.ask(t.Context(), func(context.Context) error { asked++; return c.answers[asked-1] })
		if !errors.Is(err, c.want) || asked != len(c.answers) {
			t.Errorf("%v: asked %d times, %v", c.answers, asked, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := l.ask(ctx, func(context.Context) error { cancel(); return rpctypes.ErrNoLeader }); err == nil {
		t.Error("a question that nobody waits for was answered")
	}
}
