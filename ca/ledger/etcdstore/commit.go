//go:build etcd

package etcdstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"log/slog"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/group"
	"github.com/writ-mesh/writ/ca/ledger/hashtree"
)

// view is what a transaction is made on.
type view struct {
	// revision is that of the head, which must be the same when it is made.
	revision int64
	tree     hashtree.Tree
	// versions are those of the documents that were asked for.
	versions map[string]uint64
}

// reading is the operations that give a view.
func reading(keys []string, opts ...clientv3.OpOption) []clientv3.Op {
	ops := []clientv3.Op{clientv3.OpGet(headKey, opts...)}
	for _, key := range keys {
		ops = append(ops, clientv3.OpGet(documentPrefix+key, opts...))
	}
	return ops
}

// seen makes a view of the answers to reading.
func seen(resp *clientv3.TxnResponse) (view, error) {
	v := view{versions: make(map[string]uint64)}
	for _, r := range resp.Responses {
		for _, kv := range r.GetResponseRange().GetKvs() {
			if string(kv.GetKey()) == headKey {
				tree, err := parseHead(kv.GetValue())
				if err != nil {
					return v, err
				}
				v.revision, v.tree = kv.GetModRevision(), tree
				continue
			}
			d, err := parseDocument(kv.GetKey(), kv.GetValue())
			if err != nil {
				return v, err
			}
			v.versions[d.Key] = d.Version
		}
	}
	return v, nil
}

// look reads a view; a local one may be behind, which costs another try.
func (l *Log) look(ctx context.Context, keys []string, local bool) (view, error) {
	var opts []clientv3.OpOption
	if local {
		opts = append(opts, clientv3.WithSerializable())
	}
	resp, err := l.client.Txn(ctx).Then(reading(keys, opts...)...).Commit()
	if err != nil {
		return view{}, err
	}
	return seen(resp)
}

// commit makes a batch durable. Nobody's context ends it: the batch is everybody's.
func (l *Log) commit(b *group.Batch) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	l.turns.wait(ctx)
	w := &writing{l: l, turns: l.turns, keys: b.Conditions()}
	err := w.run(ctx, func(v view) ([]ledger.Record, [][]byte, []clientv3.Op) {
		b.Admit(v.tree.Size(), func(key string) uint64 { return v.versions[key] })
		records := make([]ledger.Record, 0, b.Len())
		for i := range b.Len() {
			records = append(records, b.Record(i))
		}
		put, deleted := b.Documents()
		return records, b.Hashes(), documentOps(put, deleted)
	}, b.Probe())
	return l.failed(err)
}

func documentOps(put []ledger.Document, deleted []string) []clientv3.Op {
	var ops []clientv3.Op
	for _, d := range put {
		ops = append(ops, clientv3.OpPut(documentPrefix+d.Key, encodeDocument(d)))
	}
	for _, key := range deleted {
		ops = append(ops, clientv3.OpDelete(documentPrefix+key))
	}
	return ops
}

// writing is a batch on its way.
type writing struct {
	l     *Log
	turns *turns
	// keys are those of the documents that it depends on.
	keys []string
	// lost are the attempts whose answer never came.
	lost []lostAttempt
	// slow is how long the longest attempt took; zero before the first.
	slow time.Duration
}

// lostAttempt is one that may have been made.
type lostAttempt struct {
	on view
	// key and value are of its first segment, which nobody else writes.
	key   string
	value []byte
}

// run makes what settle says durable, once. settle is asked for the records, their
// hashes and the rest for a view, as often as that turns out to be another; the last
// time for the one that came true. Without records nothing is written, unless probe asks
// whether it could be.
func (w *writing) run(ctx context.Context, settle func(view) ([]ledger.Record, [][]byte, []clientv3.Op), probe bool) error {
	v, err := w.l.look(ctx, w.keys, true)
	for err == nil {
		records, hashes, ops := settle(v)
		if len(records) == 0 && !probe {
			return w.current(ctx, v, settle)
		}
		var next hashtree.Tree
		if next, err = v.tree.Grown(hashes...); err != nil {
			return err
		}
		var tried lostAttempt
		if ops, tried, err = w.operations(v, next, records, ops); err != nil {
			return err
		}
		var done bool
		if v, done, err = w.try(ctx, v, ops, tried); done || err != nil {
			if done {
				w.l.complete(v.tree.Size(), next)
			}
			return err
		}
		if on, made, merr := w.wasMade(ctx); made || merr != nil {
			if made {
				settle(on)
			}
			return merr
		}
	}
	return err
}

// current makes sure that a view in which nothing holds is the one of now, since whoever
// asked is told of a conflict.
func (w *writing) current(ctx context.Context, v view, settle func(view) ([]ledger.Record, [][]byte, []clientv3.Op)) error {
	now, err := w.l.look(ctx, w.keys, false)
	if err != nil || now.revision == v.revision {
		return err
	}
	records, _, _ := settle(now)
	if len(records) == 0 {
		return nil
	}
	return w.run(ctx, settle, false)
}

// operations are those of a transaction: entries, hashes of complete pieces, the head.
func (w *writing) operations(v view, next hashtree.Tree, records []ledger.Record, ops []clientv3.Op) ([]clientv3.Op, lostAttempt, error) {
	first := lostAttempt{on: v}
	for begin := 0; begin < len(records); {
		index := records[begin].Index
		end := min(len(records), begin+int(hashtree.PieceSize-index%hashtree.PieceSize)) //nolint:gosec // at most a piece
		value := make([]byte, nonceSize)
		if _, err := rand.Read(value); err != nil {
			return nil, first, err
		}
		value = encodeRecords(value, records[begin:end])
		if begin == 0 {
			first.key, first.value = segmentKey(index), value
		}
		ops = append(ops, clientv3.OpPut(segmentKey(index), string(value)))
		begin = end
	}
	for i, hash := range next.Pieces() {
		ops = append(ops, clientv3.OpPut(hashKey(v.tree.Size()/hashtree.PieceSize+uint64(i)), string(hash)))
	}
	text, err := encodeHead(next)
	return append(ops, clientv3.OpPut(headKey, text)), first, err
}

// try makes the transaction if the view is still that of now, and otherwise gives that
// one. When no answer comes it remembers the attempt and gives the view of later.
func (w *writing) try(ctx context.Context, v view, ops []clientv3.Op, tried lostAttempt) (view, bool, error) {
	began := time.Now()
	short, cancel := context.WithTimeout(ctx, attempt)
	resp, err := w.l.writer.Txn(short).If(clientv3.Compare(clientv3.ModRevision(headKey), "=", v.revision)).
		Then(append(ops, w.turns.after(w.slow > 0)...)...).
		Else(append(reading(w.keys), w.turns.ask(w.slow))...).Commit()
	cancel()
	w.slow = max(w.slow, time.Since(began))
	switch {
	case err == nil && resp.Succeeded:
		w.turns.seen(resp, time.Now())
		return v, true, nil
	case err == nil:
		v, err = seen(resp)
		return v, false, err
	}
	why := err
	w.lost = append(w.lost, tried)
	for {
		short, cancel := context.WithTimeout(ctx, attempt)
		v, err = w.l.look(short, w.keys, false)
		cancel()
		if err == nil {
			return v, false, nil
		}
		select {
		case <-ctx.Done():
			return v, false, why
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// wasMade tells whether one of the attempts whose answer was lost was made after all. The
// member has read a view of later, so it has what was made before that.
func (w *writing) wasMade(ctx context.Context) (on view, made bool, err error) {
	for _, a := range w.lost {
		if a.key == "" {
			continue // it wrote nothing that anybody needs
		}
		resp, err := w.l.client.Get(ctx, a.key, clientv3.WithSerializable())
		if err != nil {
			return view{}, false, err
		}
		if slices.ContainsFunc(resp.Kvs, func(kv kv) bool { return bytes.Equal(kv.GetValue(), a.value) }) {
			return a.on, true, nil
		}
		if len(resp.Kvs) > 0 {
			continue
		}
		// Packed since, without its mark.
		records, err := w.l.piece(ctx, a.on.tree.Size()/hashtree.PieceSize)
		if err != nil {
			return view{}, false, err
		}
		if i := a.on.tree.Size() % hashtree.PieceSize; uint64(len(records)) > i {
			want, err := parseRecords(a.value[nonceSize:], a.on.tree.Size())
			if err == nil && bytes.Equal(want[0].Leaf, records[i].Leaf) {
				return a.on, true, nil
			}
		}
	}
	return view{}, false, nil
}

// complete packs the pieces that a commit completed.
func (l *Log) complete(before uint64, after hashtree.Tree) {
	for i := range after.Pieces() {
		piece := before/hashtree.PieceSize + uint64(i)
		l.tasks.Go(func() {
			ctx, cancel := context.WithTimeout(l.life, timeout)
			defer cancel()
			// What fails stays as it is, which only takes more room.
			if err := l.pack(ctx, piece); err != nil && ctx.Err() == nil {
				l.log.WarnContext(ctx, "entries of the ledger are not packed", slog.Any("error", err))
			}
		})
	}
}

// pack puts a complete piece into one value.
func (l *Log) pack(ctx context.Context, piece uint64) error {
	records, err := l.piece(ctx, piece)
	if err != nil || len(records) != hashtree.PieceSize {
		return err
	}
	value, err := pack(records)
	if err != nil || len(value) > maxPack {
		return err
	}
	_, err = l.client.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(packKey(piece)), "=", 0)).
		Then(clientv3.OpPut(packKey(piece), string(value)), clientv3.OpDelete(entriesOf(piece), clientv3.WithPrefix())).Commit()
	return err
}
