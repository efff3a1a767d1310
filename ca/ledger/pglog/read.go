package pglog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/hashtree"
)

// page is how many entries are read at once.
const page = 1000

// Head implements ledger.Log.
func (l *Log) Head(ctx context.Context) (ledger.Head, error) {
	tree, err := l.head(ctx)
	if err != nil {
		return ledger.Head{}, err
	}
	return tree.Head()
}

func (l *Log) head(ctx context.Context) (tree hashtree.Tree, err error) {
	err = l.ask(ctx, func(ctx context.Context) error {
		tree, err = scanHead(l.pool.QueryRow(ctx, readHead))
		return err
	})
	return tree, err
}

// ask bounds a question, and says of its error whether it may pass.
func (l *Log) ask(ctx context.Context, f func(context.Context) error) error {
	err := l.within(ctx, f)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return l.failed(err)
}

// Each implements ledger.Log.
func (l *Log) Each(ctx context.Context, from uint64, f func(ledger.Record) error) error {
	tree, err := l.head(ctx)
	if err != nil {
		return err
	}
	for size := tree.Size(); from < size; {
		records, err := l.page(ctx, from, min(from+page, size))
		if err != nil {
			return err
		}
		for _, r := range records {
			if r.Index != from {
				return fmt.Errorf("ledger: %s: entry %d is missing; restore the database from a backup", l.name, from)
			}
			if err := f(r); err != nil {
				return err
			}
			from++
		}
		if len(records) == 0 {
			return fmt.Errorf("ledger: %s: entry %d is missing; restore the database from a backup", l.name, from)
		}
	}
	return nil
}

func (l *Log) page(ctx context.Context, begin, end uint64) (out []ledger.Record, err error) {
	err = l.ask(ctx, func(ctx context.Context) error {
		rows, err := l.pool.Query(ctx, readEntries, begin, end)
		if err != nil {
			return err
		}
		out, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (r ledger.Record, err error) {
			var hash []byte
			if err = row.Scan(&r.Index, &r.Leaf, &r.Values, &hash); err == nil && !bytes.Equal(hash, hashtree.Hash(r.Leaf)) {
				err = fmt.Errorf("%w: entry %d is not the one that was written", errAltered, r.Index)
			}
			return r, err
		})
		return err
	})
	return out, err
}

// whole is the tree of the log as it is now, made of the hashes of its leaves.
func (l *Log) whole(ctx context.Context) (hashtree.Tree, error) {
	now, err := l.head(ctx)
	if err != nil {
		return hashtree.Tree{}, err
	}
	l.proving.Lock()
	defer l.proving.Unlock()
	for l.tree.Size() < now.Size() {
		begin := l.tree.Size()
		hashes, err := l.hashes(ctx, begin, min(begin+100*page, now.Size()))
		if err != nil {
			return hashtree.Tree{}, err
		}
		tree, err := l.tree.Grown(hashes...)
		if err != nil {
			return hashtree.Tree{}, err
		}
		l.tree = tree
	}
	return l.tree, nil
}

func (l *Log) hashes(ctx context.Context, begin, end uint64) (out [][]byte, err error) {
	err = l.ask(ctx, func(ctx context.Context) error {
		rows, err := l.pool.Query(ctx, readHashes, begin, end)
		if err != nil {
			return err
		}
		out = make([][]byte, 0, end-begin)
		var index uint64
		var hash []byte
		_, err = pgx.ForEachRow(rows, []any{&index, &hash}, func() error {
			if index != begin+uint64(len(out)) {
				return fmt.Errorf("entry %d is missing", begin+uint64(len(out)))
			}
			out = append(out, hash)
			hash = nil
			return nil
		})
		if err == nil && uint64(len(out)) != end-begin {
			err = fmt.Errorf("entry %d is missing", begin+uint64(len(out)))
		}
		return err
	})
	return out, err
}

// Get implements ledger.Documents.
func (l *Log) Get(ctx context.Context, key string) (ledger.Document, error) {
	docs, err := l.documents(ctx, getDocuments, []string{key})
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
	return l.documents(ctx, listDocuments, prefix)
}

func (l *Log) documents(ctx context.Context, sql string, arg any) (out []ledger.Document, err error) {
	err = l.ask(ctx, func(ctx context.Context) error {
		rows, err := l.pool.Query(ctx, sql, arg)
		if err != nil {
			return err
		}
		out, err = collect(rows)
		return err
	})
	return out, err
}

// errAltered is that of what somebody changed in the tables.
var errAltered = errors.New("somebody altered the ledger's tables; restore the database from a backup")

// collect reads documents, each of which has to be the one that its entry names: what
// nobody wrote into the log is not believed.
func collect(rows pgx.Rows) ([]ledger.Document, error) {
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (d ledger.Document, err error) {
		r, hash := ledger.Record{}, []byte(nil)
		if err = row.Scan(&d.Key, &d.Value, &d.Version, &r.Leaf, &hash); err != nil {
			return d, err
		}
		r.Index = d.Version - 1
		if !bytes.Equal(hash, hashtree.Hash(r.Leaf)) {
			return d, fmt.Errorf("%w: entry %d is not the one that was written", errAltered, r.Index)
		}
		if err = r.Holds(d); err != nil {
			err = fmt.Errorf("%w: %w", errAltered, err)
		}
		return d, err
	})
}

// Watch implements ledger.Documents. While the database is away the watcher hears
// nothing.
func (l *Log) Watch(ctx context.Context, prefix string, f func(ledger.Update) error) error {
	// So that the first call has everything that was there before.
	tree, err := l.head(ctx)
	for wait := firstRetry; errors.Is(err, ledger.ErrUnavailable); wait = min(2*wait, lastRetry) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.queue.Done():
			return fmt.Errorf("%w: it is closed", ledger.ErrUnavailable)
		case <-time.After(wait):
		}
		tree, err = l.head(ctx)
	}
	if err != nil {
		return err
	}
	if err := l.followed.Reach(ctx, tree.Size(), l.queue.Done()); err != nil {
		return err
	}
	return l.docs.Watch(ctx, l.queue.Done(), prefix, f)
}
