//go:build etcd

package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/docstore"
	"github.com/writ-mesh/writ/ca/ledger/group"
	"github.com/writ-mesh/writ/ca/ledger/hashtree"
)

const (
	// timeout bounds a commit and every question.
	timeout = 5 * time.Second
	// attempt bounds one transaction of a commit: one that was on its way to a leader
	// that died is not answered any more. An election takes one to two seconds.
	attempt = 2 * time.Second
	// quota is how large a member's data may get, in bytes. When it is full nothing is
	// recorded any more. It is the most that etcd's authors suggest.
	quota = 8 << 30
	// maxRequest bounds a transaction, in bytes, and maxOps its operations: a batch of
	// package group, of which each change puts and deletes documents.
	maxRequest = 8 << 20
	maxOps     = 1 << 16
	// history is how many changes of keys etcd keeps; the log is ours.
	history = "1000"
	// sayEvery is how often the log says that a member waits for others at its start.
	sayEvery = 5 * time.Second
)

// Log is a ledger.Store that is a member of a cluster.
type Log struct {
	hashtree.Prover

	etcd   *embed.Etcd
	client *clientv3.Client
	writer clientv3.KV // of the client, for the committer
	config Config
	name   string
	log    *slog.Logger
	queue  *group.Queue
	turns  *turns // the committer's own

	// docs follow the cluster for watchers.
	docs     *docstore.Store
	followed *docstore.Mark
	stop     context.CancelFunc
	// tasks are the follower and those that pack.
	tasks sync.WaitGroup
	life  context.Context //nolint:containedctx // of the tasks, which are started by commits

	// proving guards tree, which has the first entries of the log, for proofs.
	proving sync.Mutex
	tree    hashtree.Tree
}

// heartbeat is how often the leader says that it is there; an election begins after ten
// of them without, and takes about as long.
const heartbeat = 100 * time.Millisecond

// Open starts the member. While there are not enough others it says so and waits until
// ctx ends.
func Open(ctx context.Context, c Config, opts Options) (ledger.Store, error) {
	return open(ctx, c, opts, heartbeat)
}

func open(ctx context.Context, c Config, opts Options, heartbeat time.Duration) (ledger.Store, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	cfg, err := settings(c, opts)
	if err != nil {
		return nil, fmt.Errorf("ledger: etcd: %w", err)
	}
	cfg.TickMs, cfg.ElectionMs = uint(heartbeat.Milliseconds()), uint(10*heartbeat.Milliseconds()) //nolint:gosec // some milliseconds
	if cfg.ClusterState, err = c.begins(ctx, opts.Dir); err != nil {
		return nil, fmt.Errorf("ledger: etcd: %w", err)
	}
	member, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("ledger: etcd: member %s: %w", c.Name, err)
	}
	for ready := false; !ready; {
		select {
		case <-member.Server.ReadyNotify():
			ready = true
		case <-time.After(sayEvery):
			opts.Log.WarnContext(ctx, "the ledger waits for more members of its cluster", slog.String("member", c.Name), slog.String("cluster", c.cluster()))
		case err := <-member.Err():
			member.Close()
			return nil, fmt.Errorf("ledger: etcd: member %s: %w", c.Name, err)
		case <-ctx.Done():
			member.Close()
			return nil, fmt.Errorf("%w: member %s found no cluster: %w", ledger.ErrUnavailable, c.Name, ctx.Err())
		}
	}
	l := &Log{etcd: member, client: v3client.New(member.Server), config: c, turns: newTurns(c.Name), name: "member " + c.Name, log: opts.Log, docs: docstore.New(), followed: docstore.NewMark()}
	l.writer = l.client
	l.Prover = hashtree.Prover{Whole: l.whole, Leaves: l.leaves}
	l.life, l.stop = context.WithCancel(context.WithoutCancel(ctx))
	l.tasks.Go(func() { l.follow(l.life) })
	l.tasks.Go(l.watchMember)
	l.queue = group.New(l.commit, opts.Committed)
	return l, nil
}

// settings are those of the member.
func settings(c Config, opts Options) (*embed.Config, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	info, err := os.Stat(c.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("key_file: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("key_file: %s has mode %04o, so that others may have read it; chmod 600 it if nobody could, else make another", c.KeyFile, mode)
	}
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, err
	}
	if info, err = os.Stat(opts.Dir); err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o, so that others may have read or changed the ledger; chmod 700 it if nobody could", opts.Dir, mode)
	}
	listen, err := url.Parse("https://" + c.listen())
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	reached, err := url.Parse("https://" + c.Peers[c.Name])
	if err != nil {
		return nil, fmt.Errorf("peers: %w", err)
	}
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = c.Name, opts.Dir
	cfg.InitialCluster, cfg.InitialClusterToken = c.cluster(), opts.Cluster
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*listen}, []url.URL{*reached}
	// Nobody is a client from outside. What is told to other members is how they know
	// later that this one had data.
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = nil, []url.URL{*reached}
	cfg.PeerTLSInfo = transport.TLSInfo{
		CertFile: c.CertFile, KeyFile: c.KeyFile, TrustedCAFile: c.CAFile, ClientCertAuth: true, AllowedHostnames: c.hosts(),
	}
	cfg.TlsMinVersion = "TLS1.3"
	cfg.QuotaBackendBytes, cfg.MaxRequestBytes, cfg.MaxTxnOps = quota, maxRequest, maxOps
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModeRevision, history
	cfg.EnableGRPCGateway = false
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(&bridge{log: opts.Log}))
	return cfg, nil
}

// failed says of an error that it may pass, as those of a cluster do, unless it is of
// what was altered.
func (l *Log) failed(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errAltered):
		return fmt.Errorf("ledger: %s: %w", l.name, err)
	}
	return fmt.Errorf("%w: %s: %w", ledger.ErrUnavailable, l.name, err)
}

// watchMember says so if etcd ends by itself, as it does when the cluster has put the
// member out.
func (l *Log) watchMember() {
	select {
	case <-l.life.Done():
	case <-l.etcd.Server.StopNotify():
		l.log.ErrorContext(l.life, "this member of the ledger's cluster has ended, because it was put out of the cluster or cannot go on; nothing is issued; start the authority again", slog.String("member", l.config.Name))
	}
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
		l.tasks.Wait()
		_ = l.client.Close() // it has no connections
		l.etcd.Close()
	}
	return nil
}
