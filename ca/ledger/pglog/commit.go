package pglog

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/group"
	"github.com/writ-mesh/writ/ca/ledger/hashtree"
)

// commit makes a batch durable. Nobody's context ends it: the batch is everybody's.
func (l *Log) commit(b *group.Batch) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	err := l.transaction(ctx, b)
	if errors.Is(err, errBefore) && ctx.Err() == nil {
		// Mostly a connection that died since its last use.
		err = l.transaction(ctx, b)
	}
	return l.failed(err)
}

// errBefore marks errors of a transaction that has written nothing.
var errBefore = errors.New("before the first write")

func (l *Log) transaction(ctx context.Context, b *group.Batch) error {
	tx, err := l.writer.Begin(ctx)
	if err != nil {
		return errors.Join(errBefore, err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // nothing to do after a commit
	tree, versions, err := lock(ctx, tx, b)
	if err != nil {
		return errors.Join(errBefore, err)
	}
	b.Admit(tree.Size(), func(key string) uint64 { return versions[key] })
	if b.Len() == 0 {
		if !b.Probe() {
			return nil
		}
		// Whether a change could be made is known when one was.
		_, err := tx.Exec(ctx, `UPDATE writ_ledger_head SET size = size`)
		return errors.Join(err, tx.Commit(ctx))
	}
	if tree, err = tree.Grown(b.Hashes()...); err != nil {
		return err
	}
	if err := tx.SendBatch(ctx, statements(b, tree)).Close(); err != nil {
		return err
	}
	return tx.Commit(ctx)
}

// lock waits for the head of the log and reads it, and the versions of the documents
// that the batch depends on.
func lock(ctx context.Context, tx pgx.Tx, b *group.Batch) (hashtree.Tree, map[string]uint64, error) {
	var tree hashtree.Tree
	versions := make(map[string]uint64)
	var q pgx.Batch
	q.Queue(lockHead).QueryRow(func(row pgx.Row) (err error) {
		tree, err = scanHead(row)
		return err
	})
	// A statement of its own, so that it sees what the lock waited for.
	if keys := b.Conditions(); len(keys) > 0 {
		q.Queue(readVersions, keys).Query(func(rows pgx.Rows) error {
			var key string
			var version uint64
			_, err := pgx.ForEachRow(rows, []any{&key, &version}, func() error { versions[key] = version; return nil })
			return err
		})
	}
	err := tx.SendBatch(ctx, &q).Close()
	return tree, versions, err
}

func scanHead(row pgx.Row) (hashtree.Tree, error) {
	var size uint64
	var edge [][]byte
	if err := row.Scan(&size, &edge); err != nil {
		return hashtree.Tree{}, err
	}
	return hashtree.At(size, edge)
}

// statements are what the batch writes.
func statements(b *group.Batch, tree hashtree.Tree) *pgx.Batch {
	var q pgx.Batch
	for i, hash := range b.Hashes() {
		r := b.Record(i)
		q.Queue(addEntries, r.Index, r.Leaf, hash, r.Values, touched(r))
	}
	put, deleted := b.Documents()
	for _, d := range put {
		q.Queue(putDocument, d.Key, d.Value, d.Version)
	}
	if len(deleted) > 0 {
		q.Queue(deleteDocuments, deleted)
	}
	q.Queue(moveHead, tree.Size(), tree.Edge())
	if len(put)+len(deleted) > 0 {
		q.Queue(notify)
	}
	return &q
}

// touched are the keys of the documents that an entry put or deleted, nil for none.
func touched(r ledger.Record) []string {
	put, deleted, err := r.Documents()
	if err != nil {
		return nil // it was laid out just now
	}
	for _, d := range put {
		deleted = append(deleted, d.Key)
	}
	return deleted
}
