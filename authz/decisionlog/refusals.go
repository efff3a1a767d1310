package decisionlog

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/writ-mesh/writ/authz/decisionlog/spool"
)

// entry is a record on its way into a batch.
type entry struct {
	class  int
	record *Record
	// text is the record, encoded; nil if it is not yet.
	text []byte
	// written is where it is in the journal; nil if it is not.
	written *spool.Written
	// told is closed when Options.Each has got it; nil if nobody waits for that.
	told chan struct{}
}

// entry makes one of a record; a refusal is on its way to the disk then.
func (l *Log) entry(class int, r *Record) entry {
	e := entry{class: class, record: r}
	switch {
	case class != classRefusal:
	case l.o.Each != nil:
		e.told = make(chan struct{})
	case l.journal != nil:
		var err error
		if e.text, err = e.encoded(); err == nil {
			e.written, err = l.journal.Append(e.text)
		}
		if err != nil { // it is no worse off than without a journal
			l.metrics.late.Inc()
		}
	}
	return e
}

func (e *entry) encoded() ([]byte, error) {
	if e.text != nil {
		return e.text, nil
	}
	text, err := json.Marshal(e.record)
	if err != nil {
		return nil, fmt.Errorf("encode a record: %w", err)
	}
	return text, nil
}

// written waits until a refusal outlives the process, and counts if it takes too long.
func (l *Log) written(e entry) {
	switch {
	case e.written != nil:
		if e.written.Wait(l.o.RefusalWait) != nil {
			l.metrics.late.Inc()
		}
	case e.told != nil:
		t := time.NewTimer(l.o.RefusalWait)
		defer t.Stop()
		select {
		case <-e.told:
		case <-t.C:
			l.metrics.late.Inc()
		}
	}
}

// gaveUp is for an entry that found no room in the queue.
func (l *Log) gaveUp(e entry) {
	l.metrics.drop(e.class, 1, reasonQueue)
	if e.written != nil {
		l.journal.Release([]*spool.Written{e.written})
	}
}

func (l *Log) each(e entry) {
	l.o.Each(e.record)
	if e.told != nil {
		close(e.told)
	}
}

func (l *Log) release(written []*spool.Written) {
	if len(written) > 0 {
		l.journal.Release(written)
	}
}

// leave leaves a batch of refusals that finds no room when the log stops to the next
// process, which finds them in the journal. Those that are not there are dropped.
func (l *Log) leave(p *packed) {
	lost := p.records
	for _, w := range p.written {
		if w.Wait(0) == nil {
			lost--
		}
	}
	if lost > 0 {
		l.metrics.drop(p.class, lost, reasonSpool)
	}
	p.written = nil // never released
}

// runJournal runs the journal until what it gives is called, when there are no more
// batches to wait for.
func (l *Log) runJournal(ctx context.Context) (stop func()) {
	if l.journal == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { l.journal.Run(ctx) })
	return func() {
		cancel()
		wg.Wait()
	}
}

// unwritten tells once of a journal that cannot be written, until it is told again.
func (l *Log) unwritten() func(error) {
	var last atomic.Int64 // seconds
	return func(err error) {
		now := time.Now().Unix()
		if was := last.Load(); now-was < 60 || !last.CompareAndSwap(was, now) {
			return
		}
		l.o.Log.ErrorContext(context.Background(), "refusals of the last moment would be lost with this process", slog.Any("error", err))
	}
}

// maxLine bounds a line of a journal, in bytes; a record has less, however it is
// escaped.
const maxLine = 1 << 20

// recover puts what earlier processes left in their journals into batches. What is in
// a batch already is sent twice.
func (l *Log) recover() error {
	z, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed) // the level is one
	return l.spool.Left(func(r io.Reader) error {
		var b batch
		keep := func() error {
			if b.records == 0 {
				return nil
			}
			n := b.records
			p, err := b.pack(classRefusal, z)
			if err != nil {
				return err
			}
			evicted, err := l.spool.Put(p.class, p.records, p.data)
			for _, b := range evicted {
				l.metrics.drop(b.Class, b.Records, reasonSpool)
			}
			if errors.Is(err, spool.ErrFull) { // the oldest stay
				l.metrics.drop(classRefusal, n, reasonSpool)
				return nil
			}
			return err
		}
		damaged, err := journalRecords(r, func(text []byte) error {
			b.add(text, nil)
			if b.text.Len() < batchBytes {
				return nil
			}
			return keep()
		})
		if err == nil {
			err = keep()
		}
		if damaged > 0 {
			l.metrics.drop(classRefusal, damaged, reasonDamaged)
			l.o.Log.ErrorContext(context.Background(), "lines of the journal of refusals are damaged", slog.Int("lines", damaged))
		}
		return err
	})
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
