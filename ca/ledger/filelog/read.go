package filelog

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/hashtree"
)

// Read reads the log in a file from its beginning, also one that a writ-ca has
// open, and calls f, which may be nil, for each record. What is no record, a torn
// end included, is an error that names the offset.
func Read(path string, f func(ledger.Record) error) (ledger.Head, error) {
	in, err := os.Open(path)
	if err != nil {
		return ledger.Head{}, fmt.Errorf("ledger: %w", err)
	}
	defer func() { _ = in.Close() }() // read only: nothing can be lost
	c, err := scan(in, path, f)
	if err != nil {
		return ledger.Head{}, err
	}
	if end, err := in.Seek(0, io.SeekEnd); err != nil || end > c.size {
		return ledger.Head{}, errors.Join(err, fmt.Errorf("ledger: %s: what stands at offset %d, behind the %d entries, is no entry, or only a part of one (a writ-ca that runs may be about to write it)", path, c.size, c.next))
	}
	return c.tree.Head()
}

// Head implements ledger.Log.
func (l *Log) Head(context.Context) (ledger.Head, error) {
	l.mu.Lock()
	tree := l.tree
	l.mu.Unlock()
	return tree.Head()
}

// whole is the tree of what is durable.
func (l *Log) whole(context.Context) (hashtree.Tree, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tree, nil
}

// hashes are those of some leaves.
func (l *Log) hashes(ctx context.Context, begin, end uint64) ([][]byte, error) {
	out := make([][]byte, 0, end-begin)
	enough := errors.New("enough")
	err := l.Each(ctx, begin, func(r ledger.Record) error {
		if r.Index == end {
			return enough
		}
		out = append(out, hashtree.Hash(r.Leaf))
		return nil
	})
	if err != nil && !errors.Is(err, enough) {
		return nil, err
	}
	return out, nil
}

// Each implements ledger.Log.
func (l *Log) Each(ctx context.Context, from uint64, f func(ledger.Record) error) error {
	l.mu.Lock()
	size, count, offsets := l.size, l.tree.Size(), l.offsets
	l.mu.Unlock()
	if from >= count {
		return nil
	}
	in, err := os.Open(l.path)
	if err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	defer func() { _ = in.Close() }() // read only: nothing can be lost
	off := offsets[from/stride]
	r := bufio.NewReaderSize(io.NewSectionReader(in, off, size-off), maxLine)
	for index := from / stride * stride; index < count; index++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := r.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("ledger: read %s at offset %d: %w", l.path, off, err)
		}
		rec, err := whole(b)
		if err == nil && rec.record.Index != index {
			err = fmt.Errorf("entry %d stands there", rec.record.Index)
		}
		if err != nil {
			return fmt.Errorf("ledger: %s is damaged at offset %d, where entry %d should be: %w; restore the file from a backup", l.path, off, index, err)
		}
		off += int64(len(b))
		if index < from {
			continue
		}
		if err := f(rec.record); err != nil {
			return err
		}
	}
	return nil
}
