package listsource

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/internal/atomicfile"
	"github.com/writ-mesh/writ/pilot/fetch"
	"github.com/writ-mesh/writ/pilot/model"
)

const (
	// firstRetry is when a source that failed is looked at again, twice as late each
	// time up to its refresh.
	firstRetry = time.Second
	// maxFetches is how many sources of a namespace are looked at at once, so that its slow
	// ones delay no other's.
	maxFetches = 8
	// maxURLs is how many lists of a namespace may come from URLs.
	maxURLs = 100
)

var errTooMany = fmt.Errorf("more than %d AccessLists of its namespace come from URLs: of this one nothing is fetched; name fewer", maxURLs)

// Options are what a Keeper needs.
type Options struct {
	Limits Limits
	// State is the folder in which good lists are kept over a restart, empty for none.
	State   string
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Keeper has the entries of all lists. It is safe for concurrent use.
type Keeper struct {
	get     func(ctx context.Context, src *model.AccessSource, tag string) (fetch.Answer, error)
	state   string
	log     *slog.Logger
	fetches *prometheus.CounterVec
	changed chan struct{}

	mu      sync.Mutex
	sources map[string]*source
	// slots are for the looks at the sources of a namespace.
	slots map[string]chan struct{}
	// tooMany are lists that are not fetched.
	tooMany []*model.AccessList
	// running has the loops; nil before Run and after its end.
	running context.Context //nolint:containedctx // the life of the loops that Set starts
	loops   sync.WaitGroup
}

// source is one list.
type source struct {
	list  *model.AccessList
	slots chan struct{}
	good  good
	// failed is why the last look gave nothing, nil if it did.
	failed error
	stop   context.CancelFunc
}

// good is what a source gave last, as it is kept.
type good struct {
	Entries []string  `json:"entries"`
	Tag     string    `json:"tag,omitempty"`
	Fetched time.Time `json:"fetched"`
	// From is the source that it is of.
	From string `json:"from"`
}

// Problem is what is wrong with the source of a list.
type Problem struct {
	List *model.AccessList
	// Err is why the last look gave nothing.
	Err error
	// Entries is how many are in force nevertheless, Fetched when they came; zero if
	// none ever did, or if they are too old.
	Entries int
	Fetched time.Time
}

// New gives a Keeper without lists.
func New(o Options) *Keeper {
	k := &Keeper{
		get: o.Limits.get, state: o.State, log: o.Log, changed: make(chan struct{}, 1), sources: map[string]*source{}, slots: map[string]chan struct{}{},
		fetches: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "writ_pilot_access_list_fetches_total", Help: "Looks at the sources of AccessLists.",
		}, []string{"result"}),
	}
	for _, result := range []string{"new", "unchanged", "failed"} {
		k.fetches.WithLabelValues(result)
	}
	o.Metrics.MustRegister(k.fetches)
	return k
}

// Changed has a value when Fetched or Problems give something else than before.
func (k *Keeper) Changed() <-chan struct{} { return k.changed }

func (k *Keeper) tell() {
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// Run looks at the sources until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	k.mu.Lock()
	k.running = ctx
	for id := range k.sources {
		k.start(id)
	}
	k.mu.Unlock()
	<-ctx.Done()
	k.mu.Lock()
	k.running = nil
	k.mu.Unlock()
	k.loops.Wait()
	return nil
}

// Set says which lists there are. Of one that is new it takes up what was kept.
func (k *Keeper) Set(lists []*model.AccessList) {
	k.mu.Lock()
	defer k.mu.Unlock()
	there, urls := map[string]bool{}, map[string]int{}
	k.tooMany = nil
	for _, list := range lists {
		if list.From == nil {
			continue
		}
		if list.From.URL != "" {
			if urls[list.Namespace]++; urls[list.Namespace] > maxURLs {
				k.tooMany = append(k.tooMany, list)
				continue
			}
		}
		id := list.Namespace + "/" + list.Name
		there[id] = true
		s := k.sources[id]
		if s == nil {
			s = &source{list: list, slots: k.slotsOf(list.Namespace), good: k.load(id, list.Form)}
			k.sources[id] = s
			k.start(id)
			continue
		}
		before := s.list
		s.list = list
		if *before.From == *list.From && before.Form == list.Form {
			continue
		}
		if s.stop != nil {
			s.stop()
		}
		s.good.Tag = ""
		if !fits(list.Form, s.good.Entries) {
			s.good = good{}
		}
		k.start(id)
	}
	for id, s := range k.sources {
		if !there[id] {
			if s.stop != nil {
				s.stop()
			}
			delete(k.sources, id)
			k.forget(id)
		}
	}
}

// slotsOf gives those of a namespace. They stay: of namespaces there are few.
func (k *Keeper) slotsOf(namespace string) chan struct{} {
	if k.slots[namespace] == nil {
		k.slots[namespace] = make(chan struct{}, maxFetches)
	}
	return k.slots[namespace]
}

func fits(form model.AccessForm, entries []string) bool {
	return len(entries) <= model.MaxEntries(form) && !slices.ContainsFunc(entries, func(e string) bool { return model.EntryFault(form, e) != "" })
}

// start begins to look at a source.
func (k *Keeper) start(id string) {
	if k.running == nil || k.running.Err() != nil {
		return
	}
	ctx, stop := context.WithCancel(k.running)
	s := k.sources[id]
	s.stop = stop
	k.loops.Go(func() { k.follow(ctx, id, s) })
}

// follow looks at a source again and again.
func (k *Keeper) follow(ctx context.Context, id string, s *source) {
	retry := firstRetry
	for {
		k.mu.Lock()
		list, tag := s.list, s.good.Tag
		k.mu.Unlock()
		wait := list.From.Refresh
		err := k.look(ctx, id, s, list, tag)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			wait, retry = min(retry, wait), min(2*retry, wait)
		} else {
			retry = firstRetry
		}
		if !k.sleep(ctx, s, list, wait) {
			return
		}
	}
}

// sleep waits, and tells when the entries in force become too old meanwhile.
func (k *Keeper) sleep(ctx context.Context, s *source, list *model.AccessList, wait time.Duration) bool {
	next := time.NewTimer(wait)
	defer next.Stop()
	var old <-chan time.Time
	if list.From.MaxAge > 0 {
		k.mu.Lock()
		fetched := s.good.Fetched
		k.mu.Unlock()
		if left := time.Until(fetched.Add(list.From.MaxAge)); !fetched.IsZero() && left > 0 {
			timer := time.NewTimer(left)
			defer timer.Stop()
			old = timer.C
		}
	}
	for {
		select {
		case <-ctx.Done():
			return false
		case <-old:
			k.tell()
		case <-next.C:
			return true
		}
	}
}

// look looks at a source once.
func (k *Keeper) look(ctx context.Context, id string, s *source, list *model.AccessList, tag string) error {
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.slots }()
	a, err := k.get(ctx, list.From, tag)
	var entries []string
	if err == nil && !a.Unchanged {
		entries, err = parse(list.Form, a.Body)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if ctx.Err() != nil || k.sources[id] != s {
		return ctx.Err() // it is no longer asked for
	}
	if err != nil {
		k.fetches.WithLabelValues("failed").Inc()
		if s.failed == nil || s.failed.Error() != err.Error() {
			k.log.WarnContext(ctx, "the entries of an AccessList cannot be fetched; what was good last stays", slog.String("list", id), slog.Any("error", err))
			k.tell()
		}
		s.failed = err
		return err
	}
	now := time.Now()
	wasExpired := s.expired(now)
	if s.failed != nil || wasExpired {
		k.tell()
	}
	s.failed = nil
	if a.Unchanged || !s.good.Fetched.IsZero() && slices.Equal(entries, s.good.Entries) {
		k.fetches.WithLabelValues("unchanged").Inc()
		s.good.Fetched = now
		if !a.Unchanged {
			s.good.Tag = a.Tag
		}
		if list.From.MaxAge > 0 {
			k.save(id, s.good)
		}
		return nil
	}
	k.fetches.WithLabelValues("new").Inc()
	s.good = good{Entries: entries, Tag: a.Tag, Fetched: now, From: cmp.Or(list.From.URL, list.From.File)}
	k.log.InfoContext(ctx, "new entries of an AccessList", slog.String("list", id), slog.Int("entries", len(entries)))
	k.save(id, s.good)
	k.tell()
	return nil
}

// expired says that what is there is too old.
func (s *source) expired(now time.Time) bool {
	return s.list.From.MaxAge > 0 && !s.good.Fetched.IsZero() && !now.Before(s.good.Fetched.Add(s.list.From.MaxAge))
}

// Fetched gives what is in force, nil if nothing is. It is never changed later.
func (k *Keeper) Fetched() map[string]model.Fetched {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out map[string]model.Fetched
	now := time.Now()
	for id, s := range k.sources {
		if s.good.Fetched.IsZero() {
			continue
		}
		if out == nil {
			out = map[string]model.Fetched{}
		}
		f := model.Fetched{Entries: s.good.Entries, Expired: s.expired(now)}
		if f.Expired {
			f.Entries = nil
		}
		out[id] = f
	}
	return out
}

// Problems says of which lists the last look gave nothing, in the order of their names;
// behind them are those that are too many to be looked at.
func (k *Keeper) Problems() []Problem {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []Problem
	for _, id := range slices.Sorted(maps.Keys(k.sources)) {
		s := k.sources[id]
		if s.failed == nil {
			continue
		}
		p := Problem{List: s.list, Err: s.failed}
		if !s.good.Fetched.IsZero() && !s.expired(time.Now()) {
			p.Entries, p.Fetched = len(s.good.Entries), s.good.Fetched
		}
		out = append(out, p)
	}
	for _, list := range k.tooMany {
		out = append(out, Problem{List: list, Err: errTooMany})
	}
	return out
}

// file is where a list is kept. Its name is a hash: of any two lists it is another.
func (k *Keeper) file(id string) string {
	return filepath.Join(k.state, fmt.Sprintf("%x.json", sha256.Sum256([]byte(id))))
}

func (k *Keeper) save(id string, g good) {
	if k.state == "" {
		return
	}
	data, err := json.Marshal(g)
	if err == nil {
		err = os.MkdirAll(k.state, 0o700)
	}
	if err == nil {
		err = atomicfile.Write(k.file(id), data, 0o600)
	}
	if err != nil {
		k.log.Error("the entries of an AccessList are not saved; a start while their source is away will not know them", slog.String("list", id), slog.Any("error", err))
	}
}

func (k *Keeper) load(id string, form model.AccessForm) good {
	var g good
	if k.state == "" {
		return g
	}
	data, err := os.ReadFile(k.file(id))
	if err == nil {
		err = json.Unmarshal(data, &g)
	}
	switch {
	case err == nil && fits(form, g.Entries):
		return g
	case errors.Is(err, fs.ErrNotExist):
	default:
		k.log.Warn("what was kept of an AccessList cannot be used", slog.String("list", id), slog.Any("error", err))
	}
	return good{}
}

func (k *Keeper) forget(id string) {
	if k.state == "" {
		return
	}
	if err := os.Remove(k.file(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.log.Warn("what was kept of an AccessList cannot be removed", slog.String("list", id), slog.Any("error", err))
	}
}
