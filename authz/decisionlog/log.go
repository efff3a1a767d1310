package decisionlog

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/authz/decisionlog/spool"
	"github.com/writ-mesh/writ/internal/service"
)

// The bounds of what is in memory. Records are cut to a few KiB at most and to half
// a KiB usually.
const (
	queueRecords = 8192
	// pendingBatches wait for the disk: with queueRecords some seconds of 5,000
	// records a second.
	pendingBatches = 16
)

// The pauses between tries to reach the sink.
const (
	minRetry = time.Second
	maxRetry = 30 * time.Second
)

// maxUnread is how often a batch in a row may not be readable before it is set aside.
const maxUnread = 3

// errUnread says that a batch is there and cannot be read.
var errUnread = errors.New("a batch cannot be read")

// lastTry bounds how long a log that stops goes on sending.
const lastTry = 2 * time.Second

// Options are for [Open].
type Options struct {
	// Each, if it is set, gets each record at once, in place of Sink and spool.
	Each func(*Record)
	Sink Sink
	// Spool is the folder of what waits; empty is memory.
	Spool string
	// SpoolBytes bounds it.
	SpoolBytes int64
	// Flush is how long a record waits at most before it is put on disk.
	Flush time.Duration
	// RefusalWait is how long [Log.Add] waits at most until a refusal is written, so
	// that it outlives the process. It is written at once in any case.
	RefusalWait time.Duration
	// AllowPercent of the decisions that allowed are kept, 0 to 100.
	AllowPercent float64
	Metrics      prometheus.Registerer
	Log          *slog.Logger
}

// Log is the decision log. It is safe for concurrent use.
type Log struct {
	o     Options
	spool *spool.Spool
	// journal is nil if the spool is in memory.
	journal *spool.Journal
	// left is Open's, and then one goroutine's of Run.
	left    []*leftover
	lost    teller
	metrics *metrics
	queue   chan entry
	pending chan packed
	// stored and taken tell that something came into the spool, or left it.
	stored, taken chan struct{}
}

// Open finds what an earlier process left. Nothing is sent before Run.
func Open(o Options) (*Log, error) {
	s, err := spool.Open(o.Spool, o.SpoolBytes)
	if err != nil {
		return nil, err
	}
	l := &Log{
		o: o, spool: s, metrics: newMetrics(o.Metrics),
		queue: make(chan entry, queueRecords), pending: make(chan packed, pendingBatches),
		stored: make(chan struct{}, 1), taken: make(chan struct{}, 1),
	}
	if err := l.findLeft(); err != nil || len(l.left) > 0 { // such as a full disk, which must not keep anybody from deciding
		l.o.Log.WarnContext(context.Background(), "refusals of an earlier process stay in its journal until there is room", slog.Int("journals", len(l.left)), slog.Any("error", err))
	}
	l.journal = s.Journal(l.unwritten())
	l.metrics.spooled.Set(float64(s.Bytes()))
	return l, nil
}

// Add takes a record, which is the log's from then on. A decision that allowed finds
// half of the queue, a refusal all of it. Only a refusal is waited for, at most
// Options.RefusalWait.
func (l *Log) Add(r *Record) {
	class, ok := l.take(r)
	if !ok {
		return
	}
	room := queueRecords
	if class != classRefusal {
		room /= 2
	}
	if len(l.queue) >= room {
		l.noRoom(class)
		return
	}
	e := l.entry(class, r)
	select {
	case l.queue <- e:
		l.written(e)
	default:
		l.gaveUp(e)
	}
}

// Wait is Add for who can wait until there is room, and has no answer to give when a
// refusal is written. It leaves a quarter of the queue to those who cannot.
func (l *Log) Wait(ctx context.Context, r *Record) error {
	class, ok := l.take(r)
	if !ok {
		return nil
	}
	for len(l.queue) >= queueRecords*3/4 {
		select {
		case <-ctx.Done():
			l.noRoom(class)
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	e := l.entry(class, r)
	select {
	case l.queue <- e:
		return nil
	case <-ctx.Done():
		l.gaveUp(e)
		return ctx.Err()
	}
}

func (l *Log) take(r *Record) (class int, ok bool) {
	class = r.class()
	if class == classAllow && l.o.AllowPercent < 100 && rand.Float64()*100 >= l.o.AllowPercent {
		l.metrics.drop(class, 1, reasonSampled)
		return class, false
	}
	r.bound()
	return class, true
}

// Run gathers, keeps and sends until ctx ends. Then what is in the queue is put
// into the spool, and what is there is offered to the sink once more, briefly.
// Nothing may be added after that.
func (l *Log) Run(ctx context.Context) error {
	defer l.runJournal(ctx)()
	err := service.RunTasks(ctx,
		func(ctx context.Context) error { l.gather(ctx); return nil },
		func(ctx context.Context) error { l.store(ctx); return nil },
		func(ctx context.Context) error { l.ship(ctx); return nil },
		func(ctx context.Context) error { l.takeLeftLater(ctx); <-ctx.Done(); return nil },
	)
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTry)
	defer cancel()
	l.drain(last)
	return err
}

// gather makes batches of records until ctx ends, and then of those that are there.
func (l *Log) gather(ctx context.Context) {
	defer close(l.pending)
	z, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed) // the level is one
	var open [classes]batch
	finish := func(class int) {
		if b := &open[class]; b.records > 0 {
			n := b.records
			p, err := b.pack(class, z)
			if err != nil {
				l.failed(ctx, class, n, err)
				l.release(p.written)
				return
			}
			if len(p.written) > 0 {
				l.journal.Turn()
			}
			l.pending <- p
		}
	}
	add := func(e entry) {
		if l.o.Each != nil {
			l.each(e)
			return
		}
		text, err := e.encoded()
		if err != nil {
			l.failed(ctx, e.class, 1, err)
			return
		}
		b := &open[e.class]
		if b.records == 0 {
			b.due = time.Now().Add(l.o.Flush)
		}
		b.add(text, e.written)
		if b.text.Len() >= batchBytes {
			finish(e.class)
		}
	}
	timer := time.NewTicker(max(l.o.Flush/4, time.Millisecond))
	defer timer.Stop()
	for {
		select {
		case e := <-l.queue:
			add(e)
		case now := <-timer.C:
			for class := range open {
				if open[class].records > 0 && !now.Before(open[class].due) {
					finish(class)
				}
			}
		case <-ctx.Done():
			for len(l.queue) > 0 {
				add(<-l.queue)
			}
			for class := range open {
				finish(class)
			}
			return
		}
	}
}

func (l *Log) failed(ctx context.Context, class, records int, err error) {
	l.metrics.drop(class, records, reasonDamaged)
	l.o.Log.ErrorContext(ctx, "decisions are not in the log", slog.Int("records", records), slog.Any("error", err))
}

// store puts batches into the spool until there are no more. A batch that finds no
// room waits for it, and holds up those behind it, unless the log stops.
func (l *Log) store(ctx context.Context) {
	told := false
	for p := range l.pending {
		for {
			evicted, err := l.spool.Put(p.class, p.records, p.data)
			l.evicted(evicted)
			if err == nil {
				told = false
				poke(l.stored)
				break
			}
			if p.class != classRefusal {
				l.metrics.drop(p.class, p.records, reasonSpool)
				break
			}
			if ctx.Err() != nil {
				l.leave(&p)
				break
			}
			if !told {
				l.o.Log.ErrorContext(ctx, "the decision log cannot keep refusals; new ones are dropped when the queue is full", slog.Any("error", err))
				told = true
			}
			select {
			case <-ctx.Done():
			case <-l.taken:
			case <-time.After(minRetry): // the disk may have room again
			}
		}
		l.release(p.written)
	}
}

// evicted counts what made room.
func (l *Log) evicted(batches []spool.Batch) {
	for _, b := range batches {
		l.metrics.drop(b.Class, b.Records, reasonSpool)
	}
	l.metrics.spooled.Set(float64(l.spool.Bytes()))
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// ship sends what is in the spool until ctx ends.
func (l *Log) ship(ctx context.Context) {
	wait, unread := minRetry, 0
	for ctx.Err() == nil {
		b, ok := l.spool.Next()
		if !ok {
			select {
			case <-ctx.Done():
				return
			case <-l.stored:
			}
			continue
		}
		err := l.send(ctx, b)
		if err == nil {
			wait, unread = minRetry, 0
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errUnread) {
			if unread++; unread == maxUnread { // it holds up all others
				l.setAside(ctx, b, err)
				unread = 0
				continue
			}
		}
		pause := wait/2 + rand.N(wait)
		var asked waitError
		if errors.As(err, &asked) {
			pause = max(pause, asked.wait)
		}
		l.o.Log.WarnContext(ctx, "records of the decision log are not taken; they are kept", slog.Any("error", err), slog.Duration("retry_in", pause))
		wait = min(2*wait, maxRetry)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// drain sends what is in the spool until something fails.
func (l *Log) drain(ctx context.Context) {
	for ctx.Err() == nil {
		b, ok := l.spool.Next()
		if !ok || l.send(ctx, b) != nil {
			return
		}
	}
}

// send offers one batch. It is nil too if the batch is gone for good.
func (l *Log) send(ctx context.Context, b spool.Batch) error {
	data, err := l.spool.Read(b)
	if errors.Is(err, fs.ErrNotExist) {
		return l.spool.Remove(b) // it made room meanwhile
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errUnread, err)
	}
	text, err := lines(data)
	if err != nil {
		l.forget(ctx, b, b.Records, reasonDamaged, err)
		return nil
	}
	err = l.o.Sink.Send(ctx, Batch{Packed: data, Lines: text})
	if refused := (*RefusedError)(nil); errors.As(err, &refused) {
		l.metrics.batches.WithLabelValues("refused").Inc()
		lost := b.Records
		if refused.TooLarge {
			if lost, err = l.sendParts(ctx, text); err != nil {
				l.metrics.batches.WithLabelValues("error").Inc()
				return err
			}
			err = refused
		}
		l.forget(ctx, b, lost, reasonRefused, err)
		return nil
	}
	if err != nil {
		l.metrics.batches.WithLabelValues("error").Inc()
		return err
	}
	l.metrics.batches.WithLabelValues("ok").Inc()
	return l.gone(b)
}

// forget removes a batch of which so many records are lost.
func (l *Log) forget(ctx context.Context, b spool.Batch, lost int, reason string, err error) {
	if lost > 0 {
		l.metrics.drop(b.Class, lost, reason)
		l.o.Log.ErrorContext(ctx, "records of the decision log are lost", slog.String("kind", kinds[min(b.Class, classAllow)]), slog.Int("records", lost), slog.String("reason", reason), slog.Any("error", err))
	}
	if err := l.gone(b); err != nil {
		l.o.Log.ErrorContext(ctx, "the decision log cannot remove a batch", slog.Any("error", err))
	}
}

func (l *Log) gone(b spool.Batch) error {
	err := l.spool.Remove(b)
	l.metrics.spooled.Set(float64(l.spool.Bytes()))
	poke(l.taken)
	return err
}
