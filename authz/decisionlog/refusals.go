package decisionlog

import (
	"context"
	"encoding/json"
	"fmt"
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
	l.noRoom(e.class)
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

// noRoom counts a record that the queue does not take, and says so if it is a refusal.
func (l *Log) noRoom(class int) {
	l.metrics.drop(class, 1, reasonQueue)
	if class == classRefusal {
		if n, now := l.lost.tell(); now {
			l.o.Log.ErrorContext(context.Background(), "refusals are not in the decision log: more come than the disk takes, or the spool is full of them", slog.Int64("refusals", n))
		}
	}
}

// teller counts what happens and has it told once a minute.
type teller struct {
	n, last atomic.Int64 // last in seconds
}

// tell counts one, and gives how many there were since it was told, if it is time to.
func (t *teller) tell() (n int64, now bool) {
	t.n.Add(1)
	at := time.Now().Unix()
	if was := t.last.Load(); at-was < 60 || !t.last.CompareAndSwap(was, at) {
		return 0, false
	}
	return t.n.Swap(0), true
}

// unwritten tells of a journal that cannot be written.
func (l *Log) unwritten() func(error) {
	var late teller
	return func(err error) {
		if _, now := late.tell(); now {
			l.o.Log.ErrorContext(context.Background(), "refusals of the last moment would be lost with this process", slog.Any("error", err))
		}
	}
}
