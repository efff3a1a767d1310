//go:build etcd

package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/hashtree"
)

// kv is a key with its value, as etcd has it.
type kv = *mvccpb.KeyValue

// The waits between attempts to follow the cluster.
const firstRetry, lastRetry = 100 * time.Millisecond, 5 * time.Second

// ask bounds a question, and says of its error whether it may pass. It asks again if the
// cluster chose another leader meanwhile, as when a member has died.
func (l *Log) ask(ctx context.Context, f func(context.Context) error) error {
	short, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := f(short)
	for errors.Is(err, rpctypes.ErrLeaderChanged) || errors.Is(err, rpctypes.ErrNoLeader) {
		select {
		case <-short.Done():
			return l.failed(err)
		case <-time.After(firstRetry):
		}
		err = f(short)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return l.failed(err)
}

// now is the log as it is in the cluster; what this member reads by itself afterwards is
// no older.
func (l *Log) now(ctx context.Context) (tree hashtree.Tree, err error) {
	err = l.ask(ctx, func(ctx context.Context) error {
		v, err := l.look(ctx, nil, false)
		tree = v.tree
		return err
	})
	return tree, err
}

// Head implements ledger.Log.
func (l *Log) Head(ctx context.Context) (ledger.Head, error) {
	tree, err := l.now(ctx)
	if err != nil {
		return ledger.Head{}, err
	}
	return tree.Head()
}

// piece reads the entries of a piece from this member, as far as they are there.
func (l *Log) piece(ctx context.Context, piece uint64) ([]ledger.Record, error) {
	resp, err := l.client.Txn(ctx).Then(
		clientv3.OpGet(packKey(piece), clientv3.WithSerializable()),
		clientv3.OpGet(entriesOf(piece), clientv3.WithPrefix(), clientv3.WithSerializable()),
	).Commit()
	if err != nil {
		return nil, err
	}
	for _, kv := range resp.Responses[0].GetResponseRange().GetKvs() {
		return unpack(kv.GetValue(), piece)
	}
	var out []ledger.Record
	for _, kv := range resp.Responses[1].GetResponseRange().GetKvs() {
		next := piece*hashtree.PieceSize + uint64(len(out))
		if string(kv.GetKey()) != segmentKey(next) || len(kv.GetValue()) < nonceSize {
			return nil, fmt.Errorf("%w: entry %d is missing", errAltered, next)
		}
		records, err := parseRecords(kv.GetValue()[nonceSize:], next)
		if err != nil {
			return nil, err
		}
		out = append(out, records...)
	}
	return out, nil
}

// Each implements ledger.Log.
func (l *Log) Each(ctx context.Context, from uint64, f func(ledger.Record) error) error {
	tree, err := l.now(ctx)
	if err != nil {
		return err
	}
	for size := tree.Size(); from < size; {
		records, err := l.from(ctx, from)
		if err != nil {
			return err
		}
		for _, r := range records[:min(uint64(len(records)), size-from)] {
			if err := f(r); err != nil {
				return err
			}
			from++
		}
	}
	return nil
}

// from gives entries from one on to the end of its piece.
func (l *Log) from(ctx context.Context, index uint64) (out []ledger.Record, err error) {
	err = l.ask(ctx, func(ctx context.Context) error {
		out, err = l.piece(ctx, index/hashtree.PieceSize)
		if skip := index % hashtree.PieceSize; err == nil && uint64(len(out)) > skip {
			out = out[skip:]
		} else if err == nil {
			err = fmt.Errorf("%w: entry %d is missing", errAltered, index)
		}
		return err
	})
	return out, err
}

// whole is the tree of the log as it is now, made of the hashes of its pieces.
func (l *Log) whole(ctx context.Context) (hashtree.Tree, error) {
	now, err := l.now(ctx)
	if err != nil {
		return hashtree.Tree{}, err
	}
	l.proving.Lock()
	defer l.proving.Unlock()
	if l.tree.Size() >= now.Size() {
		return l.tree, nil
	}
	if l.tree.Size()/hashtree.PieceSize != now.Size()/hashtree.PieceSize {
		if l.tree, err = l.resumed(ctx, now.Size()); err != nil {
			return hashtree.Tree{}, err
		}
	} else {
		hashes, err := l.leaves(ctx, l.tree.Size(), now.Size())
		if err != nil {
			return hashtree.Tree{}, err
		}
		if l.tree, err = l.tree.Grown(hashes...); err != nil {
			return hashtree.Tree{}, err
		}
	}
	if !slices.EqualFunc(l.tree.Edge(), now.Edge(), slices.Equal[[]byte]) {
		l.tree = hashtree.Tree{}
		return hashtree.Tree{}, l.failed(fmt.Errorf("%w: the entries are not those of the log's head", errAltered))
	}
	return l.tree, nil
}

// resumed makes the tree of the first size entries.
func (l *Log) resumed(ctx context.Context, size uint64) (hashtree.Tree, error) {
	count := size / hashtree.PieceSize
	pieces := make([][]byte, 0, count)
	const page = 10_000
	for uint64(len(pieces)) < count {
		err := l.ask(ctx, func(ctx context.Context) error {
			next := uint64(len(pieces))
			resp, err := l.client.Get(ctx, hashKey(next), clientv3.WithRange(hashKey(min(next+page, count))), clientv3.WithSerializable())
			if err != nil {
				return err
			}
			for _, kv := range resp.Kvs {
				if string(kv.GetKey()) != hashKey(uint64(len(pieces))) {
					break
				}
				pieces = append(pieces, kv.GetValue())
			}
			if uint64(len(pieces)) == next {
				return fmt.Errorf("%w: the hash of entries from %d on is missing", errAltered, next*hashtree.PieceSize)
			}
			return nil
		})
		if err != nil {
			return hashtree.Tree{}, err
		}
	}
	var tail [][]byte
	if count*hashtree.PieceSize < size {
		var err error
		if tail, err = l.leaves(ctx, count*hashtree.PieceSize, size); err != nil {
			return hashtree.Tree{}, err
		}
	}
	return hashtree.Resume(pieces, tail)
}

// leaves gives hashes of leaves, all of one piece.
func (l *Log) leaves(ctx context.Context, begin, end uint64) ([][]byte, error) {
	records, err := l.from(ctx, begin)
	if err != nil {
		return nil, err
	}
	if uint64(len(records)) < end-begin {
		return nil, l.failed(fmt.Errorf("%w: entry %d is missing", errAltered, begin+uint64(len(records))))
	}
	out := make([][]byte, 0, end-begin)
	for _, r := range records[:end-begin] {
		out = append(out, hashtree.Hash(r.Leaf))
	}
	return out, nil
}

// Get implements ledger.Documents.
func (l *Log) Get(ctx context.Context, key string) (ledger.Document, error) {
	docs, err := l.documents(ctx, documentPrefix+key)
	if err != nil {
		return ledger.Document{}, err
	}
	if len(docs) == 0 {
		return ledger.Document{}, ledger.ErrNoDocument
	}
	return docs[0], nil
}

// List implements ledger.Documents.
func (l *Log) List(ctx context.Context, prefix string) ([]ledger.Document, error) {
	return l.documents(ctx, documentPrefix+prefix, clientv3.WithPrefix())
}

func (l *Log) documents(ctx context.Context, key string, opts ...clientv3.OpOption) (out []ledger.Document, err error) {
	err = l.ask(ctx, func(ctx context.Context) error {
		resp, err := l.client.Get(ctx, key, opts...)
		if err != nil {
			return err
		}
		out, err = l.believed(ctx, resp.Kvs)
		return err
	})
	return out, err
}

// believed reads documents, each of which has to be the one that its entry names.
func (l *Log) believed(ctx context.Context, kvs []kv) ([]ledger.Document, error) {
	out := make([]ledger.Document, 0, len(kvs))
	for _, kv := range kvs {
		d, err := parseDocument(kv.GetKey(), kv.GetValue())
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	byVersion := slices.Clone(out)
	slices.SortFunc(byVersion, func(a, b ledger.Document) int { return int(a.Version) - int(b.Version) }) //nolint:gosec // of entries that there are
	var records []ledger.Record
	at := ^uint64(0)
	for _, d := range byVersion {
		index := d.Version - 1
		if piece := index / hashtree.PieceSize; piece != at {
			var err error
			if records, err = l.piece(ctx, piece); err != nil {
				return nil, err
			}
			at = piece
		}
		if i := index % hashtree.PieceSize; uint64(len(records)) <= i {
			return nil, fmt.Errorf("%w: document %s has no entry", errAltered, d.Key)
		} else if err := records[i].Holds(d); err != nil {
			return nil, fmt.Errorf("%w: %w", errAltered, err)
		}
	}
	return out, nil
}

// Watch implements ledger.Documents. While the cluster is away the watcher hears
// nothing.
func (l *Log) Watch(ctx context.Context, prefix string, f func(ledger.Update) error) error {
	// So that the first call has everything that was there before.
	tree, err := l.now(ctx)
	for wait := firstRetry; errors.Is(err, ledger.ErrUnavailable); wait = min(2*wait, lastRetry) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.queue.Done():
			return fmt.Errorf("%w: it is closed", ledger.ErrUnavailable)
		case <-time.After(wait):
		}
		tree, err = l.now(ctx)
	}
	if err != nil {
		return err
	}
	if err := l.followed.Reach(ctx, tree.Size(), l.queue.Done()); err != nil {
		return err
	}
	return l.docs.Watch(ctx, l.queue.Done(), prefix, f)
}

// follow keeps the documents in memory as they are in this member, until ctx ends.
func (l *Log) follow(ctx context.Context) {
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		begin := time.Now()
		err := l.listen(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(begin) > lastRetry {
			wait = firstRetry
		}
		l.log.WarnContext(ctx, "who watches the ledger hears nothing for the moment", slog.Any("error", l.failed(err)), slog.Duration("again_in", wait))
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// listen reads all documents and then what changes.
func (l *Log) listen(ctx context.Context) error {
	resp, err := l.client.Get(ctx, statePrefix, clientv3.WithPrefix(), clientv3.WithSerializable())
	if err != nil {
		return err
	}
	size, kvs, err := headOf(resp.Kvs)
	if err != nil {
		return err
	}
	docs, err := l.believed(ctx, kvs)
	if err != nil {
		return err
	}
	l.docs.Replace(docs)
	l.followed.Set(size)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for resp := range l.client.Watch(ctx, statePrefix, clientv3.WithPrefix(), clientv3.WithRev(resp.Header.GetRevision()+1)) {
		if err := resp.Err(); err != nil {
			return err
		}
		if err := l.changed(ctx, resp.Events); err != nil {
			return err
		}
	}
	return errors.New("the watch has ended")
}

// changed takes whole revisions.
func (l *Log) changed(ctx context.Context, events []*clientv3.Event) error {
	last := make(map[string]*clientv3.Event)
	for _, e := range events {
		last[string(e.Kv.GetKey())] = e
	}
	var put []kv
	var deleted []string
	for key, e := range last {
		if e.Type == clientv3.EventTypeDelete {
			deleted = append(deleted, strings.TrimPrefix(key, documentPrefix))
		} else {
			put = append(put, e.Kv)
		}
	}
	size, kvs, err := headOf(put)
	if err != nil {
		return err
	}
	docs, err := l.believed(ctx, kvs)
	if err != nil {
		return err
	}
	l.docs.Apply(docs, deleted)
	if len(kvs) < len(put) {
		l.followed.Set(size)
	}
	return nil
}

// headOf takes the head out of what is below statePrefix.
func headOf(kvs []kv) (size uint64, rest []kv, err error) {
	for _, kv := range kvs {
		if string(kv.GetKey()) != headKey {
			rest = append(rest, kv)
			continue
		}
		tree, err := parseHead(kv.GetValue())
		if err != nil {
			return 0, nil, err
		}
		size = tree.Size()
	}
	return size, rest, nil
}
