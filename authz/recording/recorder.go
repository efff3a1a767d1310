package recording

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// The bounds of a recorder.
const (
	// queued requests wait for the disk.
	queued = 1024
	// maxKnown equal requests are known; then it is begun anew.
	maxKnown = 16384
	// refusalsPerSecond of refused and would-be refused requests are looked at.
	refusalsPerSecond = 1000
	// countEvery is how often the count of a request that comes again is written.
	countEvery = time.Minute
)

// Options are for [Open].
type Options struct {
	// Folder is made, for this user alone.
	Folder string
	// MaxBytes bounds it.
	MaxBytes int64
	// PerSecond of the requests that were allowed are recorded.
	PerSecond int
	Metrics   prometheus.Registerer
	Log       *slog.Logger
}

// Recorder records. The nil Recorder records nothing. It is safe for concurrent use.
type Recorder struct {
	o       Options
	queue   chan *Seen
	seen    *prometheus.CounterVec
	second  atomic.Int64
	allows  atomic.Int64
	refuses atomic.Int64

	// of Run
	file  *os.File
	size  int64
	known map[[sha256.Size]byte]*known
}

// known is a request that has its line in the newer file.
type known struct {
	last    *Seen
	pending int
	written time.Time
}

// Open makes the folder.
func Open(o Options) (*Recorder, error) {
	if err := os.MkdirAll(o.Folder, 0o700); err != nil {
		return nil, fmt.Errorf("recording: %w", err)
	}
	r := &Recorder{
		o: o, queue: make(chan *Seen, queued), known: map[[sha256.Size]byte]*known{},
		seen: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "writ_authz_recorded_total", Help: "Requests offered to the recording, by result: recorded, or dropped because it was busy.",
		}, []string{"result"}),
	}
	o.Metrics.MustRegister(r.seen)
	return r, r.open()
}

func (r *Recorder) open() error {
	f, err := os.OpenFile(filepath.Join(r.o.Folder, newer), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("recording: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("recording: %w", err)
	}
	r.file, r.size = f, info.Size()
	if r.size > 0 {
		// What an earlier process left torn ends here.
		return r.write([]byte("\n"))
	}
	return nil
}

// Wants says whether a request is to be offered, so that none is prepared in vain:
// each that was refused, or would have been, up to a bound, and PerSecond of others.
func (r *Recorder) Wants(refused bool, now time.Time) bool {
	if r == nil {
		return false
	}
	if s := now.Unix(); r.second.Swap(s) != s {
		r.allows.Store(0)
		r.refuses.Store(0)
	}
	if refused {
		return r.refuses.Add(1) <= refusalsPerSecond
	}
	return r.allows.Add(1) <= int64(r.o.PerSecond)
}

// Offer takes a request. It never waits.
func (r *Recorder) Offer(s *Seen) {
	select {
	case r.queue <- s:
	default:
		r.seen.WithLabelValues("dropped").Inc()
	}
}

// Run writes until ctx ends, and then what is there.
func (r *Recorder) Run(ctx context.Context) error {
	tick := time.NewTicker(countEvery)
	defer tick.Stop()
	for {
		var err error
		select {
		case s := <-r.queue:
			err = r.add(s)
		case now := <-tick.C:
			err = r.counts(now)
		case <-ctx.Done():
			for len(r.queue) > 0 && err == nil {
				err = r.add(<-r.queue)
			}
			if err == nil {
				err = r.counts(time.Now())
			}
			if cerr := r.file.Close(); err == nil {
				err = cerr
			}
			return err
		}
		if err != nil {
			r.o.Log.WarnContext(ctx, "requests are not recorded", slog.Any("error", err))
		}
	}
}

// add writes a request that is new, and counts one that is not.
func (r *Recorder) add(s *Seen) error {
	r.seen.WithLabelValues("recorded").Inc()
	at := s.Time
	s.Time, s.Count = time.Time{}, 0
	text, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("recording: %w", err)
	}
	key := sha256.Sum256(text)
	s.Time = at
	k := r.known[key]
	if k == nil {
		if len(r.known) >= maxKnown {
			if err := r.counts(at); err != nil {
				return err
			}
			clear(r.known)
		}
		k = &known{}
		r.known[key] = k
	}
	k.last = s
	k.pending++
	if k.written.IsZero() {
		return r.line(k, at)
	}
	return nil
}

// counts writes how often known requests came again.
func (r *Recorder) counts(now time.Time) error {
	for _, k := range r.known {
		if k.pending > 0 {
			if err := r.line(k, now); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *Recorder) line(k *known, now time.Time) error {
	s := *k.last
	s.Count = k.pending
	text, err := json.Marshal(&s)
	if err != nil {
		return fmt.Errorf("recording: %w", err)
	}
	if len(text) >= maxLine {
		return nil
	}
	k.pending, k.written = 0, now
	return r.write(append(text, '\n'))
}

// write appends. Once half of the bound is reached the file becomes the older one,
// and what comes again has its line in the new one too.
func (r *Recorder) write(text []byte) error {
	n, err := r.file.Write(text)
	r.size += int64(n)
	if err != nil {
		return fmt.Errorf("recording: %w", err)
	}
	if r.size < r.o.MaxBytes/2 {
		return nil
	}
	if err := r.file.Close(); err != nil {
		return fmt.Errorf("recording: %w", err)
	}
	if err := os.Rename(filepath.Join(r.o.Folder, newer), filepath.Join(r.o.Folder, older)); err != nil {
		return fmt.Errorf("recording: %w", err)
	}
	for _, k := range r.known {
		k.written = time.Time{}
	}
	return r.open()
}
