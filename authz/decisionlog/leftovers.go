package decisionlog

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/writ-mesh/writ/authz/decisionlog/spool"
)

// maxLine bounds a line of a journal, in bytes; a record has less, however it is
// escaped.
const maxLine = 1 << 20

// leftover is a journal that an earlier process left and that is not in batches as a whole.
// It waits on disk until the spool has room, as the refusals of this process do; what is in
// a batch already is sent twice.
type leftover struct {
	spool.Left

	// kept is how many batches of it are in the spool.
	kept int
	// told says that it is in the log that it cannot be taken.
	told bool
}

// findLeft takes what there is and has room. Together the journals that wait are no larger
// than the spool may be, or processes that are killed again and again would fill the disk
// while the sink is away: of those beyond, the newest are dropped and counted.
func (l *Log) findLeft() error {
	files, err := l.spool.Left()
	if err != nil {
		return err
	}
	for _, f := range files {
		l.left = append(l.left, &leftover{Left: f})
	}
	l.takeLeft()
	room := max(l.o.SpoolBytes, maxLine)
	for i, f := range l.left {
		if room -= f.Size; room < 0 && i > 0 {
			l.dropLeft(l.left[i:])
			l.left = l.left[:i]
			break
		}
	}
	return nil
}

func (l *Log) dropLeft(files []*leftover) {
	for _, f := range files {
		records := 0
		err := l.spool.Take(f.Left, func(r io.Reader) error {
			_, err := journalRecords(r, func([]byte) error { records++; return nil })
			return err
		})
		l.metrics.drop(classRefusal, records, reasonSpool)
		l.o.Log.ErrorContext(context.Background(), "refusals of an earlier process find no room and are dropped", slog.Int("records", records), slog.Any("error", err))
	}
}

// takeLeft puts what was left into batches, until there is no more or no room for it, and
// says whether there is less of it now. A journal that cannot be read holds up no other.
func (l *Log) takeLeft() (less bool) {
	full := false
	l.left = slices.DeleteFunc(l.left, func(f *leftover) bool {
		if full {
			return false
		}
		before := f.kept
		err := l.spool.Take(f.Left, func(r io.Reader) error { return l.keepLeft(f, r) })
		less = less || err == nil || f.kept > before
		if full = errors.Is(err, spool.ErrFull); err != nil && !full && !f.told {
			l.o.Log.ErrorContext(context.Background(), "refusals of an earlier process cannot be taken from its journal", slog.Any("error", err))
			f.told = true
		}
		return err == nil
	})
	return less
}

// keepLeft puts a journal into the spool, but for the batches that are there already.
func (l *Log) keepLeft(f *leftover, r io.Reader) error {
	z, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed) // the level is one
	var b batch
	batches := 0
	keep := func() error {
		if batches++; batches <= f.kept {
			b = batch{}
			return nil
		}
		p, err := b.pack(classRefusal, z)
		if err != nil {
			return err
		}
		evicted, err := l.spool.Put(p.class, p.records, p.data)
		l.evicted(evicted)
		if err != nil {
			return err
		}
		f.kept++
		poke(l.stored)
		return nil
	}
	damaged, err := journalRecords(r, func(text []byte) error {
		b.add(text, nil)
		if b.text.Len() < batchBytes {
			return nil
		}
		return keep()
	})
	if err == nil && b.records > 0 {
		err = keep()
	}
	if err == nil && damaged > 0 {
		l.metrics.drop(classRefusal, damaged, reasonDamaged)
		l.o.Log.ErrorContext(context.Background(), "lines of the journal of refusals are damaged", slog.Int("lines", damaged))
	}
	return err
}

// takeLeftLater goes on with what found no room at first, until ctx ends: what is left then
// is for the next process.
func (l *Log) takeLeftLater(ctx context.Context) {
	for wait := minRetry; len(l.left) > 0; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if wait = min(2*wait, maxRetry); l.takeLeft() {
			wait = minRetry
		}
	}
}

// journalRecords gives add each record of a journal, and how many lines were none. A
// last line without an end is one whose answer never left, and no damage.
func journalRecords(r io.Reader, add func(text []byte) error) (damaged int, err error) {
	lines := bufio.NewReaderSize(r, maxLine)
	for last := false; !last; {
		line, err := lines.ReadSlice('\n')
		for errors.Is(err, bufio.ErrBufferFull) {
			line = []byte("too long")
			_, err = lines.ReadSlice('\n')
		}
		if last = errors.Is(err, io.EOF); err != nil && !last {
			return damaged, err
		}
		switch text := bytes.TrimSpace(line); {
		case len(text) == 0:
		case text[0] == '{' && json.Valid(text):
			if err := add(text); err != nil {
				return damaged, err
			}
		case !last:
			damaged++
		}
	}
	return damaged, nil
}
