//go:build etcd

package etcdstore

import (
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/checkpoint"
	"github.com/writ-mesh/writ/ca/ledger/hashtree"
)

// importSize bounds what is imported at once, in bytes.
const importSize = 1 << 20

// Import copies a log into an empty ledger, byte by byte, or what is still missing of it
// after an import that was cut off. Several members may do so at once with the same log.
// A ledger that is not the beginning of the log, nor the log of its, is left alone.
func Import(ctx context.Context, to ledger.Store, from ledger.Log) error {
	l, ok := to.(*Log)
	if !ok {
		return errors.New("import: the ledger is none of etcd")
	}
	for {
		now, err := l.Head(ctx)
		if err != nil {
			return err
		}
		all, err := from.Head(ctx)
		if err != nil {
			return err
		}
		if now.Size >= all.Size {
			if err := checkpoint.Compare(ctx, l, all); err != nil {
				return fmt.Errorf("the cluster has another ledger: %w", err)
			}
			return nil
		}
		if err := checkpoint.Compare(ctx, from, now); err != nil {
			return fmt.Errorf("the cluster has another ledger: %w", err)
		}
		if err := l.importFrom(ctx, from, now.Size); err != nil {
			return l.failed(err)
		}
	}
}

var errEnough = errors.New("enough")

// importFrom appends the next records, if nobody was faster.
func (l *Log) importFrom(ctx context.Context, from ledger.Log, at uint64) error {
	var records []ledger.Record
	size := 0
	err := from.Each(ctx, at, func(r ledger.Record) error {
		records = append(records, ledger.Record{Index: r.Index, Leaf: append([]byte{}, r.Leaf...), Values: append([]byte{}, r.Values...)})
		if size += len(r.Leaf) + 2*len(r.Values); size > importSize || len(records) >= 4*hashtree.PieceSize {
			return errEnough
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	hashes, ops, err := effects(records)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	w := &writing{l: l, turns: newTurns(l.config.Name)}
	return w.run(ctx, func(v view) ([]ledger.Record, [][]byte, []clientv3.Op) {
		if v.tree.Size() != at {
			return nil, nil, nil // somebody else has imported them
		}
		return records, hashes, ops
	}, false)
}

// effects are the hashes of records and what they leave of documents.
func effects(records []ledger.Record) (hashes [][]byte, ops []clientv3.Op, err error) {
	docs := make(map[string]ledger.Document)
	for _, r := range records {
		hashes = append(hashes, hashtree.Hash(r.Leaf))
		put, deleted, err := r.Documents()
		if err != nil {
			return nil, nil, err
		}
		for _, d := range put {
			docs[d.Key] = d
		}
		for _, key := range deleted {
			docs[key] = ledger.Document{Key: key}
		}
	}
	for key, d := range docs {
		if d.Version == 0 {
			ops = append(ops, clientv3.OpDelete(documentPrefix+key))
		} else {
			ops = append(ops, clientv3.OpPut(documentPrefix+key, encodeDocument(d)))
		}
	}
	return hashes, ops, nil
}
